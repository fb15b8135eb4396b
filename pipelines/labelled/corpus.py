"""Labelled images from a corpus of ours: what a model has found becomes what a model learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.images import Originals
from ..corpus.reader import Corpus
from ..decoding.image import decode_image
from ..errors import ConfigError, CorpusError, InputRejected
from ..format.layout import shard_path
from ..format.parquet_files import open_parquet
from ..inputs.parquet import read_row
from .image import LabelledImage, checked_rle


@dataclass(frozen=True, slots=True)
class CorpusPhotograph:
    """The image of a row: embedded in its shard, or where the row says it was, or where that was moved."""

    originals: Originals
    key: str
    uri: str
    sha256: str
    most_pixels: int
    shard: Path
    row: int | None  # in the shard, of an embedded one

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3, upright. Raises ConfigError where they cannot be had, or have changed since."""
        row: dict[str, Any] = {"key": self.key, "uri": self.uri, "image_sha256": self.sha256}
        try:
            if self.row is not None:
                row["image"] = {"bytes": read_row(self.shard, self.row, "image")}
            return decode_image(self.originals.read(row), self.most_pixels).pixels_HW3
        except CorpusError as error:  # which names key and place
            raise ConfigError(str(error)) from error
        except (InputRejected, OSError) as error:
            raise ConfigError(f"{self.key}: the image cannot be read: {error}") from error


def read_corpus(folder: Path, moved: Mapping[str, str] | None = None) -> list[LabelledImage]:
    """The images of a corpus, complete or not, that have masks. Their source is `corpus`, wherever it lies;
    `moved` is as `Corpus` has it.

    Raises CorpusError where the corpus is damaged.
    """
    return list(_images(Corpus(folder, moved)))


def _images(corpus: Corpus) -> Iterator[LabelledImage]:
    rows = corpus.rows()
    for shard in corpus.shards:
        path = shard_path(corpus.path, shard)
        with open_parquet(path) as file:
            count = file.metadata.num_rows
        for index in range(count):
            row = next(rows)
            if row["status"] != "ok":
                continue
            size = (row["height"], row["width"])
            rles = []
            for number, annotation in enumerate(row["annotations"]):
                code = annotation["segmentation"]
                try:
                    rles.append(checked_rle(code["size"], code["counts"], size))
                except ValueError as error:
                    raise CorpusError(f"{path}: {row['key']}: mask {number}: {error}") from None
            photograph = CorpusPhotograph(
                originals=corpus.originals,
                key=row["key"],
                uri=row["uri"],
                sha256=row["image_sha256"],
                most_pixels=2 * size[0] * size[1],  # Pillow warns from half on
                shard=path,
                row=index if row["image"] else None,
            )
            if kept := tuple(mask for mask in rles if mask is not None):
                yield LabelledImage(str(row["image_id"]), photograph, "corpus", kept)

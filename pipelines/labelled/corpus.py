"""Labelled images from a corpus of ours: what a model has found becomes what a model learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..corpus.reader import Corpus
from ..decoding.image import decode_image
from ..errors import ConfigError, CorpusError, InputRejected
from ..format.layout import shard_path
from ..format.parquet_files import open_parquet
from ..inputs.parquet import read_row
from ..inputs.reader import read_input
from .image import LabelledImage, checked_rle


@dataclass(frozen=True, slots=True)
class CorpusPhotograph:
    """The photograph of a row: embedded in its shard, or where the row says it was."""

    key: str
    uri: str
    sha256: str
    most_pixels: int
    shard: Path
    row: int | None  # in the shard, of an embedded one

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3, upright. Raises ConfigError where they cannot be had, or have changed since."""
        try:
            data = read_input(self.uri) if self.row is None else read_row(self.shard, self.row, "image")
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise ConfigError(f"{self.key}: {self.uri} has changed since its masks were made")
            return decode_image(data, self.most_pixels).pixels_HW3
        except (InputRejected, OSError) as error:
            raise ConfigError(
                f"{self.key}: the photograph cannot be read from {self.uri}: {error}"
            ) from error


def read_corpus(folder: Path) -> list[LabelledImage]:
    """The images of a corpus, complete or not, that have masks. Their source is `corpus`, wherever it lies.

    Raises CorpusError where the corpus is damaged.
    """
    return list(_images(Corpus(folder)))


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
                key=row["key"],
                uri=row["uri"],
                sha256=row["image_sha256"],
                most_pixels=2 * size[0] * size[1],  # Pillow warns from half on
                shard=path,
                row=index if row["image"] else None,
            )
            if kept := tuple(mask for mask in rles if mask is not None):
                yield LabelledImage(str(row["image_id"]), photograph, "corpus", kept)

"""Photographs with masks that people drew.

The layout: `images/{source}/{id}.jpg` and `{source}.parquet` with one row an image: `image_id`, `file_name`
(relative to the folder), `height`, `width`, `source` and `masks`, a list of COCO RLE {size, counts}.

Validation images are set aside by the hash of their id: every run and every machine sets the same ones aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from pipelines.errors import ConfigError

VALIDATION_SHARE = 12
"""One image in so many is for validation."""

COLUMNS = ["image_id", "file_name", "source", "masks"]
"""What is read of a table."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One photograph and its masks, still compressed."""

    image_id: str
    path: Path
    source: str
    rles: tuple[dict[str, object], ...]

    @property
    def name(self) -> str:
        """Source and id: unique in a folder."""
        return f"{self.source}/{self.image_id}"

    @property
    def validates(self) -> bool:
        """Whether this image is set aside."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3. Raises ConfigError for a file that OpenCV cannot read."""
        image = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        if image is None:
            raise ConfigError(f"{self.path}: not an image, or missing; its row is in {self.source}.parquet")
        return np.ascontiguousarray(image[:, :, ::-1])

    def masks(self, chosen: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The chosen masks, N×H×W of 0 and 1."""
        return np.stack([mask_utils.decode(self.rles[index]) for index in chosen])

    def areas(self) -> NDArray[np.float64]:
        """Pixels of every mask. (One by one: pycocotools 2.0.11 fails on more than 255 at once.)"""
        return np.array([float(mask_utils.area(rle)) for rle in self.rles])


def read_labelled(folder: Path) -> list[LabelledImage]:
    """Every image of the folder that has a mask. Raises ConfigError for none, and for a bad table."""
    found: list[LabelledImage] = []
    for table in sorted(folder.glob("*.parquet")):
        try:
            found += _read_table(table, folder)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{table}: masks are to be a list of {{size, counts}}, text: {error}"
            ) from error
    if not found:
        raise ConfigError(f"{folder}: no labelled images; expected {{source}}.parquet files beside images/")
    return found


def _read_table(table: Path, folder: Path) -> Iterator[LabelledImage]:
    try:
        rows = pq.read_table(table)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{table}: cannot be read as Parquet: {error}") from error
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise ConfigError(f"{table}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    for row in rows.select(COLUMNS).to_pylist():
        rles = tuple({"size": m["size"], "counts": m["counts"].encode()} for m in row["masks"])
        if rles:
            yield LabelledImage(str(row["image_id"]), folder / row["file_name"], row["source"], rles)

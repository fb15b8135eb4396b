"""What a corpus is like: the properties by which the paper describes its data set (section 5), in one pass.

Masks per image; relative mask size, the root of a mask's area over its image's; concavity, 1 − area over the
area of the convex hull; where the masks' boxes have their middles, in an image brought to a square; sizes of
images; the two scores; what was dropped and what was rejected, and why; when the shards were committed.

Shards are read side by side, in processes, since hulls are computed mask by mask. Only the columns that are
needed are read, a row group at a time, and values are counted, not kept: memory does not grow with the
corpus.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...engine.records import DROP_REASONS
from ..corpus.reader import Corpus
from ..errors import CorpusError
from ..format.layout import shard_path
from ..format.parquet_files import open_parquet, reading
from ..format.schema import FORMAT_VERSION, ROW_SCHEMA, STATUSES
from ..machine import usable_cpus
from ..storage.paths import place
from ..text import visible
from .concavity import concavities
from .histogram import Histogram, Tallied

log = logging.getLogger(__name__)

CENTRE_BINS = 64
SIDE_BINS = 96
SIDE_OCTAVES = (4, 16)
"""Sides of 16 to 65,536 pixels, in eighths of an octave."""

SMALL_BYTES = 4 << 20

_MASKS = "annotations.list.element."
_COLUMNS = ("status", "error.class", "width", "height", "candidates", "drops")
_SCORES = tuple(_MASKS + name for name in ("area", "bbox", "predicted_iou", "stability_score"))
_COUNTS = f"{_MASKS}segmentation.counts"


@dataclass(slots=True)
class Statistics:
    """The counts of a corpus or of a part of it; two of them can be merged.

    Attributes:
        name: the name of the corpus's folder, or of the file.
        counts: `images`, images by status, `masks`, `candidates`.
        drops: dropped candidates by reason.
        rejects: rejected images by class.
        centres_YX: centres of boxes, each image as a square of `CENTRE_BINS` a side.
        sides_HW: heights and widths of images, by eighths of an octave.
        seconds: the workers' time by stage.
        commits: (time in seconds since 1970, images, masks) of each shard.

    """

    name: str
    counts: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(("images", *STATUSES, "masks", "candidates"), 0))
    )
    drops: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    masks_per_image: Tallied = field(default_factory=Tallied)
    relative_size: Histogram = field(default_factory=lambda: Histogram(0, 1, 1000))
    concavity: Histogram = field(default_factory=lambda: Histogram(0, 1, 1000))
    predicted_iou: Histogram = field(default_factory=lambda: Histogram(0, 1.2, 1200))
    stability: Histogram = field(default_factory=lambda: Histogram(0, 1, 1000))
    megapixels: Histogram = field(default_factory=lambda: Histogram(0, 128, 12800))
    centres_YX: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((CENTRE_BINS, CENTRE_BINS), np.int64)
    )
    sides_HW: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((SIDE_BINS, SIDE_BINS), np.int64)
    )
    seconds: Counter[str] = field(default_factory=Counter)
    commits: list[tuple[float, int, int]] = field(default_factory=list)

    def distributions(self) -> dict[str, Histogram | Tallied]:
        """The distributions, by the names that people read."""
        return {
            "masks per image": self.masks_per_image,
            "relative size": self.relative_size,
            "predicted IoU": self.predicted_iou,
            "stability": self.stability,
            "concavity": self.concavity,
            "megapixels": self.megapixels,
        }

    def add_images(self, widths: npt.NDArray[np.float64], heights: npt.NDArray[np.float64]) -> None:
        """Count the sizes of images that were not rejected."""
        self.megapixels.add(widths * heights / 1e6)
        low, high = SIDE_OCTAVES
        places_2N = (np.log2(np.stack([heights, widths])) - low) * (SIDE_BINS / (high - low))
        np.add.at(self.sides_HW, tuple(np.clip(places_2N, 0, SIDE_BINS - 1).astype(np.int64)), 1)

    def add_masks(
        self,
        areas: npt.NDArray[np.float64],
        boxes_M4: npt.NDArray[np.float64],
        widths: npt.NDArray[np.float64],
        heights: npt.NDArray[np.float64],
    ) -> None:
        """Count masks by area and XYWH box; the last two are their images' sizes."""
        self.counts["masks"] += len(areas)
        self.relative_size.add(np.sqrt(areas / (widths * heights)))
        x = (boxes_M4[:, 0] + boxes_M4[:, 2] / 2) / widths
        y = (boxes_M4[:, 1] + boxes_M4[:, 3] / 2) / heights
        places_2M = np.clip(np.stack([y, x]) * CENTRE_BINS, 0, CENTRE_BINS - 1).astype(np.int64)
        np.add.at(self.centres_YX, tuple(places_2M), 1)

    def merge(self, other: Statistics) -> None:
        """Add another's counts."""
        for name in ("counts", "drops", "rejects", "seconds"):
            getattr(self, name).update(getattr(other, name))
        for name in self.distributions():
            self.distributions()[name].merge(other.distributions()[name])  # type: ignore[arg-type]
        self.centres_YX += other.centres_YX
        self.sides_HW += other.sides_HW
        self.commits += other.commits

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "name": self.name,
            **self.counts,
            "drops": dict(self.drops),
            "rejects": dict(self.rejects),
            **{
                name.replace(" ", "_").lower(): found.as_json()
                for name, found in self.distributions().items()
            },
            "centres": self.centres_YX.tolist(),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "commits": sorted(self.commits),
        }


def corpus_statistics(
    path: str | Path, with_concavity: bool = True, workers: int | None = None
) -> Statistics:
    """The statistics of a corpus, be it complete or not.

    `workers` processes read it: by default one for each core, or one if the corpus is small.

    Raises CorpusError if it cannot be read or a mask is damaged.
    """
    corpus = Corpus(path)
    found = Statistics(corpus.path.name or str(path))
    found.drops.update(dict.fromkeys(DROP_REASONS, 0))
    workers = workers or (usable_cpus() if _is_large(corpus) else 1)
    one = partial(_shard, str(path), with_concavity)
    pool = _pool(workers)
    if pool is None:
        for shard in corpus.shards:
            found.merge(one(shard))
        return found
    with pool:
        for statistics in pool.map(one, corpus.shards, chunksize=max(1, len(corpus.shards) // (8 * workers))):
            found.merge(statistics)
    return found


def _pool(workers: int) -> ProcessPoolExecutor | None:
    """A pool of processes; None for a single one, and if there is no shared memory for their locks."""
    try:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers > 1 else None
    except OSError as error:
        log.warning("no shared memory for processes (%s): one process reads all", error.strerror)
        return None


def _is_large(corpus: Corpus) -> bool:
    """Whether reading the corpus takes longer than starting processes."""
    total = 0
    for shard in corpus.shards:
        total += shard_path(corpus.path, shard).stat().st_size
        if total > SMALL_BYTES:
            return True
    return False


def _shard(corpus: str, with_concavity: bool, shard: int) -> Statistics:
    found = Statistics("")
    path = shard_path(place(corpus), shard)
    columns = [*_COLUMNS, *_SCORES, *([_COUNTS] if with_concavity else [])]
    with open_parquet(path) as file:
        if not file.schema_arrow.equals(ROW_SCHEMA):
            raise CorpusError(f"{path}: damaged: the columns are not those of format {FORMAT_VERSION}")
        for group in range(file.num_row_groups):
            with reading(path):
                table = file.read_row_group(group, columns=columns)
            try:
                _count(table, found, with_concavity)
            except (ValueError, TypeError, pa.ArrowException) as error:
                raise CorpusError(f"{path}: damaged: {error}; maskmill verify says which row") from None
        said = (file.metadata.metadata or {}).get(b"maskmill.seconds", b"{}")
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            found.seconds.update({str(stage): float(seconds) for stage, seconds in json.loads(said).items()})
    with contextlib.suppress(OSError):
        found.commits.append((round(path.stat().st_mtime, 3), found.counts["images"], found.counts["masks"]))
    return found


def _count(table: pa.Table, found: Statistics, with_concavity: bool) -> None:
    statuses = table["status"].to_pylist()
    if unknown := set(statuses) - set(STATUSES):
        raise ValueError(f"unknown status {visible(str(unknown.pop()))}")
    found.counts.update(statuses)
    found.counts["images"] += len(statuses)
    found.counts["candidates"] += pc.sum(table["candidates"]).as_py() or 0
    drops = table["drops"].combine_chunks()
    for name, values in zip(drops.type.names, drops.flatten(), strict=True):
        found.drops[name] += pc.sum(values).as_py() or 0
    rejected = np.array([status == "rejected" for status in statuses], np.bool_)
    errors = (error["class"] for error in table["error"].to_pylist() if error)
    found.rejects.update(str(name) for name in errors)
    heights_R, widths_R = (_numbers(table[name].combine_chunks()) for name in ("height", "width"))
    if (np.minimum(heights_R, widths_R)[~rejected] < 1).any():
        raise ValueError("an image without a size")
    annotations = table["annotations"].combine_chunks()
    lengths_R = pc.fill_null(pc.list_value_length(annotations), 0).to_numpy().astype(np.int64)
    if lengths_R[rejected].any():
        raise ValueError("a rejected image with masks")
    found.masks_per_image.add(lengths_R[~rejected].tolist())
    found.add_images(widths_R[~rejected], heights_R[~rejected])
    masks = annotations.flatten()
    column = dict(zip(masks.type.names, masks.flatten(), strict=True))
    widths_M, heights_M = np.repeat(widths_R, lengths_R), np.repeat(heights_R, lengths_R)
    areas, boxes_M4 = _numbers(column["area"]), _numbers(column["bbox"].flatten()).reshape(-1, 4)
    found.add_masks(areas, boxes_M4, widths_M, heights_M)
    found.predicted_iou.add(_numbers(column["predicted_iou"]))
    found.stability.add(_numbers(column["stability_score"]))
    if with_concavity:
        (counts,) = column["segmentation"].flatten()
        found.concavity.add(concavities(counts, heights_M.astype(np.int64), widths_M.astype(np.int64)))


def _numbers(values: pa.Array) -> npt.NDArray[np.float64]:
    """The values as floats, with 0 in place of null."""
    return np.asarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False), np.float64)

"""Closed corpora that no model made: rows of masks from a fixed seed, with ragged edges.

The masks' run-length codes have about 600 characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from maskmill.engine.codes import single
from maskmill.engine.records import DROP_REASONS, MaskRecord
from maskmill.pipelines.config.run import digest_of
from maskmill.pipelines.format.records import ImageRow, PlannedImage
from maskmill.pipelines.format.rows import table_from_rows
from maskmill.pipelines.format.run_record import RunRecord
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import open_run

HEIGHT, WIDTH = 1500, 2250
SEED = 7
DROPPED = 900  # candidates of each image, by predicted IoU


def build(folder: Path, *, rows: int, masks: int, distinct: int, shard_size: int) -> Path:
    """A corpus of `rows` images, without their bytes; each picks `masks` of `distinct` drawn masks."""
    rng = np.random.default_rng(SEED)
    pool = [blob(rng) for _ in range(distinct)]

    def row_of(image: PlannedImage) -> ImageRow:
        return row_with(image, picked(pool, masks, rng), "f" * 64)

    return write_corpus(folder, rows, {"embed_images": False}, shard_size, row_of)


def write_corpus(
    folder: Path,
    rows: int,
    config: Mapping[str, Any],
    shard_size: int,
    row_of: Callable[[PlannedImage], ImageRow],
) -> Path:
    """A closed corpus of `rows` images, in `folder/corpus`; `row_of` is asked for each row, in order."""
    names = [f"{number:08d}.jpg" for number in range(rows)]
    inputs = pa.table({"key": names, "uri": [f"/photos/{name}" for name in names]})
    record = RunRecord(dict(config), digest_of(config), "synthetic", "a" * 64, {})
    run = open_run(folder / "corpus", inputs, record, shard_size)
    for shard in run.todo():
        table = table_from_rows([row_of(image) for image in run.plan.images(shard)])
        commit_table(run.out, shard, table, shard_metadata(run.record.digest, shard, {}))
    finish_corpus(run.out, run.plan.shards)
    return run.out


def row_with(
    image: PlannedImage, masks: list[MaskRecord], sha256: str, data: bytes | None = None
) -> ImageRow:
    """The row of an image of HEIGHT × WIDTH with these masks; `data` is the file to embed."""
    return ImageRow(
        image.row,
        image.image_id,
        image.key,
        image.uri,
        "ok",
        width=WIDTH,
        height=HEIGHT,
        orientation=1,
        image_sha256=sha256,
        candidates=len(masks) + DROPPED,
        drops=dict.fromkeys(DROP_REASONS, 0) | {"predicted_iou": DROPPED},
        image=data,
        masks=masks,
    )


def picked(pool: list[MaskRecord], count: int, rng: np.random.Generator) -> list[MaskRecord]:
    """As many masks of the pool, some perhaps twice."""
    return [pool[place] for place in rng.integers(0, len(pool), count)]


def blob(rng: np.random.Generator) -> MaskRecord:
    """A round mask with a ragged edge, of 15 to 600 pixels radius, drawn as its runs."""
    x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    radius = np.exp(rng.uniform(np.log(15), np.log(600)))
    xs = np.arange(max(0, int(x - radius)), min(WIDTH, int(x + radius) + 1))
    half = np.sqrt(np.maximum(0, radius**2 - (xs - x) ** 2)) * (1 + 0.1 * np.sin(xs / 7))
    half += rng.normal(0, 1.5, len(xs))
    tops = np.clip(y - half, 0, HEIGHT - 1).astype(int)
    bottoms = np.maximum(np.clip(y + half + 1, 0, HEIGHT).astype(int), tops + 1)
    ends = np.stack([xs * HEIGHT + tops, xs * HEIGHT + bottoms], axis=1).ravel()
    joined = np.flatnonzero(ends[1:-1:2] == ends[2::2])
    ends = np.delete(ends, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    runs = np.diff(ends, prepend=0, append=HEIGHT * WIDTH)
    code = single.from_run_lengths(runs if runs[-1] else runs[:-1], (HEIGHT, WIDTH))
    crop = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    return MaskRecord(code, single.area(code), single.bbox(code), 0.9, 0.97, crop, ((float(x), float(y)),))

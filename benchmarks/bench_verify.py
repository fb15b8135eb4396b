"""How fast a corpus is verified: checksums in bytes, all of it in masks; beside pycocotools, mask by mask.

    python -m benchmarks.bench_verify --rows 1200 --masks 100

Builds a corpus of synthetic images of 1500×2250 in a temporary folder, with a fixed seed: blobs with ragged
edges, whose codes have about 600 characters. Then measures its checksums alone, `maskmill verify`, and, for
some of the masks, what pycocotools does: decode, count, toBbox. Prints a table for people and JSON on the
last line. Elapsed time is what other programs leave over; processor time, user and system, is what to compare
on a machine that is shared. Files are read from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table

from maskmill.engine.codes import single
from maskmill.engine.records import DROP_REASONS, MaskRecord
from maskmill.pipelines.config.run import digest_of
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.records import ImageRow
from maskmill.pipelines.format.rows import table_from_rows
from maskmill.pipelines.format.run_record import RunRecord
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.storage.json_files import fingerprint
from maskmill.pipelines.verification.corpus import verify
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import Run, open_run

HEIGHT, WIDTH = 1500, 2250
PACKAGES = ("numpy", "pyarrow", "pycocotools")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--masks", type=int, default=100, help="of each row")
    parser.add_argument(
        "--distinct", type=int, default=6000, help="masks that are drawn; rows pick from them"
    )
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--sample", type=int, default=300, help="masks that pycocotools measures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = build(Path(folder), given)
        result = measure(out, given)
    packages = {name: metadata.version(name) for name in PACKAGES}
    result |= {
        "config": vars(given) | {"height": HEIGHT, "width": WIDTH},
        "versions": {"python": platform.python_version()} | packages,
        "hardware": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
    }
    show(result)
    print(json.dumps(result))


def build(folder: Path, given: argparse.Namespace) -> Path:
    """A closed corpus of `given.rows` images."""
    rng = np.random.default_rng(7)
    pool = [blob(rng) for _ in range(given.distinct)]
    names = [f"{number:08d}.jpg" for number in range(given.rows)]
    inputs = pa.table({"key": names, "uri": [f"/photos/{name}" for name in names]})
    config = {"embed_images": False}
    record = RunRecord(config, digest_of(config), "synthetic", "a" * 64, {})
    run = open_run(folder / "corpus", inputs, record, given.shard_size)
    for shard in run.todo():
        fill(run, shard, pool, given.masks, rng)
    finish_corpus(run.out, run.plan.shards)
    return run.out


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


def fill(run: Run, shard: int, pool: list[MaskRecord], masks: int, rng: np.random.Generator) -> None:
    rows = []
    for image in run.plan.images(shard):
        picked = [pool[place] for place in rng.integers(0, len(pool), masks)]
        drops = dict.fromkeys(DROP_REASONS, 0) | {"predicted_iou": 900}
        common = {"row": image.row, "image_id": image.image_id, "key": image.key, "uri": image.uri}
        size = {"width": WIDTH, "height": HEIGHT, "orientation": 1, "image_sha256": "f" * 64}
        counted = {"candidates": masks + 900, "drops": drops}
        rows.append(ImageRow(**common, status="ok", **size, **counted, masks=picked))
    commit_table(run.out, shard, table_from_rows(rows), shard_metadata(run.record.digest, shard, {}))


def measure(out: Path, given: argparse.Namespace) -> dict[str, Any]:
    shards = sorted((out / "shards").iterdir())
    size = sum(path.stat().st_size for path in shards)
    passes = max(1, (300 << 20) // size)
    with ThreadPoolExecutor(given.workers) as pool:
        _, hashing = timed(lambda: list(pool.map(fingerprint, shards * passes)))
    report, verifying = timed(lambda: verify(out, given.workers))
    if not report.ok:
        raise SystemExit(f"the corpus is not sound: {report.problems[0]}")
    codes = codes_of(out, given.sample)
    _, plain = timed(lambda: [measure_by_bitmap(code) for code in codes])
    masks = report.counts["masks"]
    return {
        "masks": masks,
        "bytes": size,
        "code_characters": float(np.mean([len(code["counts"]) for code in codes])),
        "checksum_bytes_per_s": size * passes / hashing["s"],
        "checksum_bytes_per_cpu_s": size * passes / hashing["cpu_s"],
        "masks_per_s": masks / verifying["s"],
        "masks_per_cpu_s": masks / verifying["cpu_s"],
        "pycocotools_masks_per_s": len(codes) / plain["s"],
        "pycocotools_masks_per_cpu_s": len(codes) / plain["cpu_s"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def codes_of(out: Path, count: int) -> list[dict[str, Any]]:
    codes: list[dict[str, Any]] = []
    for row in Corpus(out):
        codes += [annotation["segmentation"] for annotation in row["annotations"]]
        if len(codes) >= count:
            break
    return codes[:count]


def measure_by_bitmap(code: dict[str, Any]) -> tuple[int, list[float]]:
    return int(coco.decode(code).sum()), coco.toBbox(code).tolist()


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the work gave; the seconds that passed, and those that this process's threads were at work."""
    start, cpu = time.perf_counter(), time.process_time()
    done = work()
    return done, {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}


def show(result: dict[str, Any]) -> None:
    workers, size = result["config"]["workers"], result["bytes"] / 1e6
    table = Table(title=f"{result['masks']} masks, {size:.0f} MB, {workers} threads")
    for heading in ("", "a second", "a second of processor time"):
        table.add_column(heading, justify="left" if not heading else "right")
    rate = [result[f"checksum_bytes_per_{unit}"] / 1e6 for unit in ("s", "cpu_s")]
    table.add_row("checksums", *(f"{value:,.0f} MB" for value in rate))
    for name, key in (("maskmill verify", "masks"), ("pycocotools, one thread", "pycocotools_masks")):
        table.add_row(name, *(f"{result[f'{key}_per_{unit}']:,.0f} masks" for unit in ("s", "cpu_s")))
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()

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
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table

from benchmarks.support.machine import peak_of_all, processor, versions
from benchmarks.support.synthetic_corpus import HEIGHT, WIDTH, build
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.storage.json_files import fingerprint
from maskmill.pipelines.verification.corpus import verify

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
        shape = {name: getattr(given, name) for name in ("rows", "masks", "distinct", "shard_size")}
        out = build(Path(folder), **shape)
        result = measure(out, given)
    result |= {
        "config": vars(given) | {"height": HEIGHT, "width": WIDTH},
        "versions": versions(PACKAGES),
        "hardware": processor(),
    }
    show(result)
    print(json.dumps(result))


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
        "peak_rss_bytes": peak_of_all(),
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

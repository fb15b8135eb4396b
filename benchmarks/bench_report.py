"""How fast a corpus's statistics are computed: with and without the convex hulls of its masks.

    python -m benchmarks.bench_report --rows 1200 --masks 100

Builds the corpus that `bench_verify.py` builds: photographs of 1500×2250, masks with ragged edges whose codes
have about 600 characters. Prints a table for people and JSON on the last line. Elapsed time includes the
start of the processes. Files are read from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.support.machine import peak_of_all, processor, versions
from benchmarks.support.synthetic_corpus import build
from maskmill.pipelines.report.statistics import corpus_statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--masks", type=int, default=100, help="of each row")
    parser.add_argument(
        "--distinct", type=int, default=6000, help="masks that are drawn; rows pick from them"
    )
    parser.add_argument("--shard-size", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = {name: getattr(given, name) for name in ("rows", "masks", "distinct", "shard_size")}
        out = build(Path(folder), **shape)
        sides = {
            "without hulls": measured(out, False, given.workers),
            "with hulls": measured(out, True, given.workers),
        }
    table = Table(
        "", "seconds", "masks/s", "processor s", title="statistics of a corpus", title_justify="left"
    )
    for name, side in sides.items():
        table.add_row(
            name, f"{side['seconds']:.2f}", f"{side['masks_per_s']:,.0f}", f"{side['cpu_seconds']:.2f}"
        )
    Console().print(table)
    result = sides | {
        "peak_rss_bytes_of_a_process": peak_of_all(children=True),
        "config": vars(given),
        "versions": versions(("numpy", "opencv-python", "pyarrow")),
        "hardware": processor(),
    }
    print(json.dumps(result))


def measured(out: Path, with_concavity: bool, workers: int) -> dict[str, Any]:
    """Elapsed and processor time of one pass, that of ended processes included."""
    before, began = os.times(), time.perf_counter()
    masks = corpus_statistics(out, with_concavity, workers).counts["masks"]
    seconds, after = time.perf_counter() - began, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return {"seconds": round(seconds, 3), "masks_per_s": round(masks / seconds), "cpu_seconds": round(cpu, 3)}


if __name__ == "__main__":
    main()

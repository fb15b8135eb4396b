"""How fast a corpus becomes a COCO JSON, and that memory does not grow with it: two sizes, a process each.

    python -m benchmarks.bench_export --rows 200 800
    python -m benchmarks.bench_export --rows 30 120 --polygons

Builds corpora of synthetic images of 1500×2250 in a temporary folder, as `bench_verify.py` does, and runs
`maskmill export --format coco` over each. (SA-1B's files are not measured: most of that is copying
photographs.) Prints a table for people and JSON on the last line. Elapsed time is what other programs leave
over; processor time is what to compare on a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.support.machine import processor, versions
from benchmarks.support.synthetic_corpus import build

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--masks", type=int, default=100, help="of each row")
    parser.add_argument(
        "--distinct", type=int, default=2000, help="masks that are drawn; rows pick from them"
    )
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--polygons", action="store_true", help="outlines in place of run-length codes")
    given = parser.parse_args()
    measured = []
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            shape = {"masks": given.masks, "distinct": given.distinct, "shard_size": given.shard_size}
            corpus = build(Path(folder), rows=rows, **shape)
            measured.append(measure(corpus, rows * given.masks, ["--polygons"] if given.polygons else []))
    result = {
        "measured": measured,
        "config": vars(given),
        "versions": versions(),
        "hardware": processor(),
    }
    show(result)
    print(json.dumps(result))


def measure(corpus: Path, masks: int, more: list[str]) -> dict[str, Any]:
    """One export in a process of its own, its start (what an export that is complete takes) taken off."""
    out = corpus.parent / f"coco{''.join(more)}"
    words = [
        sys.executable,
        "-m",
        "maskmill",
        "export",
        str(corpus),
        "--format",
        "coco",
        "--out",
        str(out),
    ]
    seconds, cpu, peak = run([*words, *more])
    size = (out / "annotations.json").stat().st_size
    start_seconds, start_cpu, _ = run([*words, *more])
    return {
        "segmentation": "polygons" if more else "codes",
        "masks": masks,
        "json_bytes": size,
        "masks_per_s": masks / (seconds - start_seconds),
        "masks_per_cpu_s": masks / (cpu - start_cpu),
        "peak_rss_bytes": peak,
    }


def run(words: list[str]) -> tuple[float, float, int]:
    """Seconds that passed, processor seconds, peak memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the export ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def show(result: dict[str, Any]) -> None:
    table = Table(title="COCO's JSON")
    for heading in ("", "masks", "MB of JSON", "masks/s", "masks/s of processor time", "peak memory, MB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in result["measured"]:
        rates = (one[key] for key in ("masks_per_s", "masks_per_cpu_s"))
        table.add_row(
            one["segmentation"],
            f"{one['masks']:,}",
            f"{one['json_bytes'] / 1e6:.1f}",
            *(f"{rate:,.0f}" for rate in rates),
            f"{one['peak_rss_bytes'] / 1e6:.0f}",
        )
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()

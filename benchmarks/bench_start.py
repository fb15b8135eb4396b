"""What a Ray of the run's own costs a short run: one image, with Ray and without.

    python -m benchmarks.bench_start --repeat 7

The checkout's `maskmill generate` makes a corpus of one image (scikit-image's `astronaut`, 8×8 points, no
crops) in a process of its own, with `--workers 0` and with `--workers 1` by turns, `--repeat` times after a
first one that does not count; medians count. Prints a table and, on the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least
from benchmarks.support.machine import QUIET_SHARE, Watch

SETTINGS = ("--config", "nano", "--set", "generator.points_per_side=8", "--set", "generator.crop_n_layers=0")
WAYS = {"without Ray": "0", "with Ray": "1"}


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=at_least(1), default=7)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory(prefix="maskmill-start-") as folder:
        seconds, others = measure(Path(folder), repeat)
    medians = {way: statistics.median(seconds[way]) for way in WAYS}
    more = medians["with Ray"] - medians["without Ray"]
    quiet = statistics.median(others) < QUIET_SHARE
    table = Table(title=f"one image, {repeat} times{'' if quiet else ', other programs at work'}")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for way, median in (*medians.items(), ("more with Ray", more)):
        table.add_row(way, f"{median:.2f}")
    Console().print(table)
    print(json.dumps({"seconds": medians, "more_with_ray": more, "quiet": quiet, "runs": seconds}))


def measure(folder: Path, repeat: int) -> tuple[dict[str, list[float]], list[float]]:
    """Each way's seconds; and the shares of the machine that others took, of the runs without Ray.

    With it Ray's processes would seem to be others'.
    """
    photos = write_photo(folder / "photos")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    others: list[float] = []
    run(photos, folder / "corpus", WAYS["without Ray"])  # compiles, and warms the disk's cache
    run(photos, folder / "corpus", WAYS["with Ray"])
    for _ in range(repeat):
        for way, workers in WAYS.items():
            with Watch() as watch:
                seconds[way].append(run(photos, folder / "corpus", workers))
            if way == "without Ray":
                others.append(watch.others or 0.0)
    return seconds, others


def write_photo(folder: Path) -> Path:
    from skimage import data

    folder.mkdir()
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    return folder


def run(photos: Path, out: Path, workers: str) -> float:
    """Seconds of one command."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "maskmill", "generate", str(photos), "--out", str(out), *SETTINGS]
    start = time.perf_counter()
    done = subprocess.run([*command, "--workers", workers], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

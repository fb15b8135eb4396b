"""How long a large collection takes to be planned, and in how much memory: no image is read, none exists.

    python -m benchmarks.bench_plan --inputs 11000000

A file list of that many paths, in no order, is written, listed, planned and opened again as a rerun would; a
process of its own does that, so that its peak of memory is the planner's. Then what every run goes on to do:
look up shards. Prints a table for people and JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.support.machine import peak_of_all, versions

SHARD_SIZE = 64
LOOKED_UP = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many images to plan")
    parser.add_argument("--folder", type=Path, help="where to put the list and the corpus for the while")
    parser.add_argument("--planner", type=Path, help=argparse.SUPPRESS)  # the process that is measured
    arguments = parser.parse_args()
    if arguments.inputs < 1:
        parser.error(f"expected --inputs of at least 1, got {arguments.inputs}")
    if arguments.planner:
        print(json.dumps(plan(arguments.planner)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_list(Path(folder), arguments.inputs)
        command = [sys.executable, "-m", "benchmarks.bench_plan", "--planner", folder]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = {"inputs": arguments.inputs, **json.loads(said.splitlines()[-1])}
    for name, value in measured["stages"].items():
        print(f"{name:>20} {value:8.2f} s")
    print(f"{'planned in':>20} {measured['seconds']:8.2f} s, of CPU {measured['cpu_seconds']:.2f} s")
    print(f"{'peak of memory':>20} {measured['peak_rss_bytes'] / 2**30:8.2f} GiB")
    print(f"{'a shard looked up in':>20} {1000 * measured['lookup_seconds']:8.2f} ms")
    print(json.dumps(measured))


def write_list(folder: Path, count: int) -> None:
    """Paths of about sixty characters; a stride of a prime mixes them."""
    with (folder / "photos.txt").open("w") as file:
        for number in range(count):
            mixed = number * 7_368_787 % count
            file.write(f"collection/batch-{mixed // 10_000:05d}/photograph-{mixed:09d}.jpg\n")


def plan(folder: Path) -> dict[str, object]:
    """List, plan, and open again; seconds by stage, and the peak of this process's memory."""
    from maskmill.pipelines.format.run_record import RunRecord
    from maskmill.pipelines.inputs.listing import list_inputs
    from maskmill.pipelines.writing.open import open_run

    record = RunRecord({}, "0" * 64, "nano", "0" * 64, {})
    stages: dict[str, float] = {}

    def timed(stage: str, started: float) -> float:
        stages[stage] = round(time.perf_counter() - started, 3)
        return time.perf_counter()

    at, cpu = time.perf_counter(), time.process_time()
    listed = list_inputs([folder / "photos.txt"], [".jpg"])
    at = timed("list and sort", at)
    run = open_run(folder / "corpus", listed, record, SHARD_SIZE)
    at = timed("plan and write", at)
    seconds, peak, cpu = sum(stages.values()), peak_of_all(), time.process_time() - cpu
    open_run(folder / "corpus", listed, record, SHARD_SIZE)
    at = timed("open again", at)
    shards = run.plan.shards[:: max(1, len(run.plan.shards) // LOOKED_UP)]
    for shard in shards:
        assert run.plan.images(shard)
    timed("look up shards", at)
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "peak_rss_bytes": peak,
        "peak_rss_bytes_again": peak_of_all(),
        "lookup_seconds": stages["look up shards"] / len(shards),
        "shards": len(run.plan.shards),
        "stages": stages,
        "versions": versions(),
        "hardware": platform.machine(),
    }


if __name__ == "__main__":
    main()

"""What the driver costs as workers grow in number: shards handed out, answers taken in, deaths mended.

    python -m benchmarks.bench_scale                 # shards of 60 s and of 5 s; eighteen minutes

The driver is the real one (`maskmill.pipelines.workers.dispatcher`), with the progress that `maskmill
generate` shows; the workers are stand-ins: they sleep in place of the network, by turns for the two shards
that each holds, and commit real shards of empty rows. Some shards end their worker once, in the middle. Up to
what the machine holds the workers are Ray's actors, a process and a logical GPU each, or, with --processes,
several to a process, so that the driver has as many calls under way as with a process each. Beyond, they are
threads of this process, and what is measured is the driver without Ray.

`idle` is what scheduling costs: the share of the workers' time, from being ready on, that they held no
shard and were given one later. The driver's processor time is that of its process with Ray, and of its thread
with threads. Then the corpus is closed as `maskmill generate` does it. Prints a table for people and JSON on
the last line; --results writes the JSON to a folder too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least, positive, share
from benchmarks.support.machine import memory_bytes, short_name, versions
from benchmarks.support.scale_run import Setup, measure
from maskmill.pipelines.machine import hardware

PACKAGES = ("maskmill", "ray", "numpy", "pyarrow")
PROCESS_BYTES = 150 << 20  # of a stand-in's process
PROCESSES_A_CPU = 32  # that can be started in some seconds each


def main() -> None:
    given = arguments()
    runs = []
    for seconds in given.seconds:
        for workers in given.workers:
            with tempfile.TemporaryDirectory(prefix="maskmill-scale-", dir=given.folder) as folder:
                runs.append(measure(setup_of(given, workers, seconds), Path(folder)))
    result = {
        "runs": runs,
        "config": {name: getattr(given, name) for name in ("rounds", "shard_size", "deaths", "crew")},
        "versions": versions(PACKAGES),
        "hardware": hardware(torch.device("cpu")) | {"memory_bytes": memory_bytes("MemTotal")},
    }
    show(result)
    if given.results:
        given.results.mkdir(parents=True, exist_ok=True)
        kind = "scale" if given.crew == "auto" else f"scale-{given.crew}"
        name = f"{kind}-{short_name(result['hardware']['processor'])}.json"
        (given.results / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    """The command line; ends with 2 where it is wrong."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=at_least(1), nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=positive, nargs="+", default=[60.0, 5.0], help="that a shard takes")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="shards for each worker")
    parser.add_argument("--shard-size", type=at_least(1), default=64, help="images a shard")
    parser.add_argument("--deaths", type=share, default=0.01, help="share of shards that end their worker")
    parser.add_argument("--crew", choices=("auto", "ray", "threads"), default="auto")
    parser.add_argument("--processes", type=at_least(1), help="with Ray, that share the workers; one each")
    parser.add_argument("--folder", type=Path, help="where to put the corpora for the while")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="for the JSON, too")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.workers, given.seconds, given.rounds = [2, 64], [0.5], 4
        given.shard_size, given.deaths = 8, 0.15
    return given


def setup_of(given: argparse.Namespace, workers: int, seconds: float) -> Setup:
    """What the command line says of a run with so many workers and shards of so many seconds."""
    crew, why = chosen_crew(given, workers)
    processes = min(given.processes or workers, workers) if crew == "ray" else 0
    return Setup(workers, seconds, given.rounds, given.shard_size, given.deaths, crew, why, processes)


def chosen_crew(given: argparse.Namespace, workers: int) -> tuple[str, str]:
    """Ray or threads, and why."""
    if given.crew != "auto":
        return given.crew, "as asked for"
    processes = min(given.processes or workers, workers)
    cpus, free = os.cpu_count() or 1, memory_bytes("MemAvailable")
    most = 2 if given.quick else min(PROCESSES_A_CPU * cpus, free // 2 // PROCESS_BYTES)
    if processes <= most:
        return "ray", f"{processes} processes fit"
    return "threads", f"{processes} processes are more than the {most} that {cpus} CPUs and memory hold"


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['config']['rounds']} shards for each worker")
    columns = ("workers", "on", "s a shard", "shards", "deaths", "wall s", "ideal s", "efficiency", "idle")
    for heading in (*columns, "driver CPU ms a shard", "of a core", "MiB", "first shard s", "closing ms"):
        table.add_column(heading, justify="left" if heading == "on" else "right")
    for run in result["runs"]:
        peak = run["driver_peak_rss_bytes"]
        table.add_row(
            str(run["workers"]),
            f"Ray, {run['processes']}" if run["crew"] == "ray" else "threads",
            f"{run['shard_seconds']:g}",
            str(run["shards"]),
            str(run["deaths"]),
            f"{run['wall_seconds']:.1f}",
            f"{run['ideal_seconds']:.1f}",
            f"{run['efficiency']:.1%}",
            f"{run['idle_share']:.2%}",
            f"{run['driver_cpu_ms_a_shard']:.1f}",
            f"{run['driver_cpu_share']:.1%}",
            f"{peak / 2**20:.0f}" if peak else "",
            f"{run['first_shard_seconds']:.2f}",
            f"{run['closing_ms_a_shard']:.2f}",
        )
    console = Console(file=sys.stdout, width=150)
    console.print(table)
    for run in result["runs"]:
        console.print(f"{run['workers']} workers on {run['crew']}: {run['why']}")


if __name__ == "__main__":
    main()

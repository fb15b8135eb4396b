"""Whether one checkout is as fast as another: the same benchmarks of both, by turns.

    python -m benchmarks.bench_pairs ../before ../after

Each checkout has its own `.venv` (`make setup`) and runs its own code: `maskmill bench`, `bench_verify`,
`bench_read` and `bench_overhead`. The two take turns, which of them begins changes from pair to pair, and
what else the machine does meets both. A ratio is the second checkout's speed over the first's in the same
pair; the median of the pairs counts. Prints a table for people and JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least

GENERATE = "maskmill bench --config nano --set generator.crop_n_layers=0"
VERIFY = "python -m benchmarks.bench_verify --rows 600 --masks 100 --sample 300"
READ = "python -m benchmarks.bench_read --rows 1000 --masks 100 --rounds 3"
OVERHEAD = "python -m benchmarks.bench_overhead --images 16 --points 8 --shard-size 4 --repeat 1"

COMMANDS: dict[str, dict[str, Callable[[dict[str, Any]], float]]] = {
    GENERATE: {"generate, images/s": lambda found: found["images_per_s"]},
    VERIFY: {
        "verify, masks/s": lambda found: found["masks_per_s"],
        "verify, masks/CPU s": lambda found: found["masks_per_cpu_s"],
    },
    READ: {
        "read as tensors, images/CPU s": lambda found: found["images_per_cpu_s"]["batches"],
        "read as rows, images/CPU s": lambda found: found["images_per_cpu_s"]["rows"],
    },
    OVERHEAD: {"generate with Ray, images/s": lambda found: 1 / found["ways"]["with Ray"]["seconds"]},
}
"""A command → figures in the last line of its output; higher is better."""


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout with a .venv")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--pairs", type=at_least(1), default=5)
    given = parser.parse_args()
    checkouts = given.before.absolute(), given.after.absolute()
    for checkout in checkouts:
        if not (checkout / ".venv/bin/python").exists():
            parser.error(f"{checkout}: expected a checkout with a .venv; run `make setup` there")
    figures: dict[str, list[tuple[float, float]]] = {}
    for pair in range(given.pairs):
        for command, picks in COMMANDS.items():
            sides = {side: last_line(checkouts[side], command) for side in ((0, 1), (1, 0))[pair % 2]}
            for name, pick in picks.items():
                figures.setdefault(name, []).append((pick(sides[0]), pick(sides[1])))
                before, after = figures[name][-1]
                print(f"pair {pair + 1}: {name}: {before:.4g} → {after:.4g}", file=sys.stderr, flush=True)
    table = Table("", "before", "after", "ratio", "of each pair", title="medians", title_justify="left")
    result = {}
    for name, pairs in figures.items():
        ratios = [after / before for before, after in pairs]
        before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
        result[name] = {
            "before": before,
            "after": after,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        table.add_row(name, f"{before:.4g}", f"{after:.4g}", f"{statistics.median(ratios):.3f}", each)
    Console().print(table)
    print(json.dumps(result))


def last_line(checkout: Path, command: str) -> dict[str, Any]:
    """What a command of the checkout's own environment, run in the checkout, prints for programs."""
    program, *arguments = command.split()
    typed = [str(checkout / ".venv/bin" / program), *arguments]
    done = subprocess.run(typed, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {command}: exit code {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()

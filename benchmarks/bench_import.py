"""What the imports cost that everybody waits for, beyond Python's own start.

    python -m benchmarks.bench_import

Each statement runs in a fresh interpreter, by turns, `--rounds` times; medians count, and what an empty
program takes is subtracted. Beside them stands how many modules each loads. Prints a table for people and
JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least

STATEMENTS = (
    "pass",
    "import maskmill",
    "from maskmill import Corpus",
    "import pyarrow.parquet",
    "import torch",
)
COUNT = "import sys; print(len(sys.modules))"


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=15)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for number in range(rounds + 1):
        for statement in STATEMENTS:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if number:  # the first round warms the disk's cache
                seconds[statement].append(time.perf_counter() - started)
    bare = statistics.median(seconds["pass"])
    table = Table("", "seconds beyond Python's own", "modules", title_justify="left")
    result = {}
    for statement in STATEMENTS[1:]:
        count = int(subprocess.check_output([sys.executable, "-c", f"{statement}; {COUNT}"]))
        result[statement] = {"seconds": statistics.median(seconds[statement]) - bare, "modules": count}
        table.add_row(statement, f"{result[statement]['seconds']:.3f}", str(count))
    Console().print(table)
    print(json.dumps({"python_seconds": bare, "rounds": rounds, "imports": result}))


if __name__ == "__main__":
    main()

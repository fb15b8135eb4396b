"""What a run looks like to a person: the live line while it works, the summary at its end.

The live line goes to standard error, so that standard output holds results. On a terminal it is one line that
moves; anywhere else (a log file, a batch job) it is a plain line every few seconds, without escape codes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ..format.tally import Tally
from ..text import clock

PLAIN_LINE_SECONDS = 5.0


def _per_image(totals: Mapping[str, Any]) -> str:
    used = totals["ok"] + totals["empty"]
    return f"{totals['masks'] / used:.1f}" if used else "-"


COUNTS = (
    ("images ok", lambda totals: str(totals["ok"])),
    ("images empty", lambda totals: str(totals["empty"])),
    ("images rejected", lambda totals: str(totals["rejected"])),
    ("masks", lambda totals: str(totals["masks"])),
    ("masks per image", _per_image),
    ("candidates", lambda totals: str(totals["candidates"])),
)
"""Name and value of each count in a table of totals, as `corpus.json` has them."""


class LiveLine:
    """The progress of a run, from what it is told; a context, so that the terminal is left in order."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._total = total
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self._last_plain = self._started
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(BarColumn(30), TextColumn("{task.description}"), console=self._console)
            self._bar.add_task("starting", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, tally: Tally, workers: int) -> None:
        """Tell what has been done so far, and by how many workers."""
        now = time.monotonic()
        line = progress_line(tally, self._total, now - self._started, workers)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=tally.images, description=line)
        elif now - self._last_plain >= PLAIN_LINE_SECONDS:
            self._last_plain = now
            with suppress(OSError):  # a log on a full disk is no reason to lose work
                print(line, file=sys.stderr, flush=True)


def progress_line(tally: Tally, total: int, seconds: float, workers: int) -> str:
    """`12/40 images · 3.1 images/s · 240 masks/s · 1 rejected · 0:09 left`."""
    if not workers:
        return f"{tally.images}/{total} images · waiting for a worker"
    rate = tally.images / seconds if seconds > 0 else 0.0
    left = clock((total - tally.images) / rate) if rate else "?"
    masks_rate = tally.masks / seconds if seconds > 0 else 0.0
    return (
        f"{tally.images}/{total} images · {rate:.2f} images/s · {masks_rate:.1f} masks/s · "
        f"{tally.statuses['rejected']} rejected · {left} left"
    )


def summary_table(done: Tally, seconds: float, totals: Mapping[str, Any] | None) -> Table:
    """What this run did; beside it, where `totals` (of `corpus.json`) say more, what the corpus holds."""
    columns: list[Mapping[str, Any]] = [_from_tally(done)]
    titles = ["this run"]
    if totals is not None and totals["images"] != done.images:
        columns.append(totals)
        titles.append("corpus")
    table = Table(title=f"{done.images} images in {clock(seconds)}", title_justify="left")
    table.add_column()
    for title in titles:
        table.add_column(title, justify="right")
    for name, pick in COUNTS:
        table.add_row(name, *(pick(column) for column in columns))
    table.add_row(
        "images/s", f"{done.images / seconds:.2f}" if seconds > 0 else "-", *[""] * (len(titles) - 1)
    )
    for what, group in (("dropped", "drops"), ("rejected", "rejects")):
        for reason in dict.fromkeys(name for column in columns for name in column[group]):
            counts = [column[group].get(reason, 0) for column in columns]
            if any(counts):
                table.add_row(f"{what}: {reason}", *map(str, counts))
    return table


def _from_tally(tally: Tally) -> dict[str, Any]:
    """The tally under the names that `corpus.json` gives its totals."""
    statuses = {status: tally.statuses[status] for status in ("ok", "empty", "rejected")}
    return {
        "images": tally.images,
        **statuses,
        "masks": tally.masks,
        "candidates": tally.candidates,
        "drops": tally.drops,
        "rejects": tally.rejects,
    }

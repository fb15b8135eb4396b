"""What a run looks like to a person: the live line while it works, the summary at its end.

The live line goes to standard error, so that standard output holds results. On a terminal it is one line that
moves and fits its width; anywhere else (a log file, a batch job) it is a plain line every few seconds,
without escape codes.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from ..format.tally import Tally
from ..storage.paths import shown
from ..text import clock, redacted, visible

PLAIN_LINE_SECONDS = 5.0
WIDE = 100
"""Columns of a terminal from which on the bar is long, and all that there is to say fits beside it."""
LONG_BAR, SHORT_BAR = 30, 10


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


@dataclass(frozen=True, slots=True)
class Display:
    """How much a command shows.

    Attributes:
        quiet: nothing but warnings and errors.
        verbose: candidates and drop counts in the summary, too.

    """

    quiet: bool = False
    verbose: bool = False

    def console(self, *, stderr: bool = False) -> Console:
        """Return the console for notices and the summary; it takes nothing that they quote for markup."""
        return Console(stderr=stderr, quiet=self.quiet, soft_wrap=True, markup=False, highlight=False)

    def live_line(self, total: int) -> LiveLine:
        """Return the line that shows the progress of a run over so many images."""
        return LiveLine(total, Console(stderr=True, quiet=self.quiet))


class LiveLine:
    """Shows the progress of a run; a context manager, so that the terminal is left in order."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._total = total
        self._console = console or Console(stderr=True)
        self._started = time.monotonic()
        self._last_plain = self._started
        self._bar = BarColumn(LONG_BAR)
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
            self._progress = Progress(self._bar, text, console=self._console)
            self._progress.add_task("starting", total=self._total)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, tally: Tally, workers: int) -> None:
        """Show what has been done so far, and by how many workers."""
        now = time.monotonic()
        seconds = now - self._started
        if self._progress is not None:
            width = self._console.width
            self._bar.bar_width = LONG_BAR if width >= WIDE else SHORT_BAR
            room = width - self._bar.bar_width - len("  ")
            line = progress_line(tally, self._total, seconds, workers, room)
            self._progress.update(self._progress.task_ids[0], completed=tally.images, description=line)
        elif not self._console.quiet and now - self._last_plain >= PLAIN_LINE_SECONDS:
            self._last_plain = now
            with suppress(OSError):  # a log on a full disk is no reason to lose work
                print(progress_line(tally, self._total, seconds, workers), file=sys.stderr, flush=True)


def progress_line(tally: Tally, total: int, seconds: float, workers: int, room: int | None = None) -> str:
    """Format `12/40 images · 3.1 images/s · 240 masks/s · 1 rejected · 0:09 left`, with fewer parts where the
    line has no room for all of them.
    """
    images = f"{tally.images}/{total} images"
    if not workers:
        return f"{images} · waiting for a worker"
    rate = tally.images / seconds if seconds > 0 else 0.0
    masks_rate = tally.masks / seconds if seconds > 0 else 0.0
    parts = {
        "images": images,
        "rate": f"{rate:.2f} images/s",
        "masks": f"{masks_rate:.1f} masks/s",
        "rejected": f"{tally.statuses['rejected']} rejected",
        "left": f"{clock((total - tally.images) / rate) if rate else '?'} left",
    }
    for least in ("masks", "rejected", "rate", "left"):
        if room is None or len(" · ".join(parts.values())) <= room:
            break
        del parts[least]
    return " · ".join(parts.values())


def summary_table(done: Tally, seconds: float, corpus: Tally | None, *, verbose: bool = False) -> Table:
    """Make a table of what this run did; beside it stands what the corpus holds, where that is more."""
    columns: dict[str, Mapping[str, Any]] = {"this run": _from_tally(done)}
    if corpus is not None and corpus.images != done.images:
        columns["corpus"] = _from_tally(corpus)
    both = list(columns.values())
    table = Table(Column(""), *(Column(name, justify="right") for name in columns), box=SIMPLE_HEAD)
    for name in ("images", "masks"):
        table.add_row(name, *(str(column[name]) for column in both), style="bold")
    for name in ("empty", "rejected"):
        table.add_row(name, *(str(column[name]) for column in both))
    for row in _counts("rejected", "rejects", both):
        table.add_row(*row, style="yellow")
    table.add_row("time", clock(seconds))
    table.add_row("images/s", f"{done.images / seconds:.2f}" if seconds > 0 else "-")
    if verbose:
        table.add_section()
        table.add_row("masks per image", *map(_per_image, both))
        table.add_row("candidates", *(str(column["candidates"]) for column in both))
        for row in _counts("dropped", "drops", both):
            table.add_row(*row)
    return table


def _counts(what: str, group: str, columns: list[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yield the name and the counts of each reason in the group that any column counts."""
    for reason in dict.fromkeys(name for column in columns for name in column[group]):
        counts = [column[group].get(reason, 0) for column in columns]
        if any(counts):
            yield [f"  {what}: {reason}", *map(str, counts)]


def print_summary(
    console: Console,
    out: Path,
    done: Tally,
    seconds: float,
    corpus: Tally | None,
    *,
    verbose: bool,
) -> None:
    """Show what this run did to the corpus `out`, as `summary_table` has it, and its first rejects."""
    console.print(summary_table(done, seconds, corpus, verbose=verbose))
    for line in first_rejects(done, out):
        console.print(line)


def first_rejects(done: Tally, out: Path) -> list[str]:
    """Describe the first images that this run rejected, a line each, and say how to see the others."""
    lines = [visible(redacted(f"rejected: {key}: {name}: {why}")) for key, name, why in done.first_rejects]
    if more := done.statuses["rejected"] - len(lines):
        lines.append(f"and {more} more: {shlex.join(['maskmill', 'rejects', shown(out)])} lists them all")
    return lines


def named(out: Path) -> str:
    """Return the corpus's path as messages print it."""
    return visible(redacted(shown(out)))


def next_commands(out: Path) -> str:
    """Say where the corpus is, and which two commands to type next."""
    word = shlex.quote(shown(out))
    return (
        f"{named(out)} is complete. To look at its masks, and to verify it:\n"
        f"  maskmill view {word}\n"
        f"  maskmill verify {word}"
    )


def _from_tally(tally: Tally) -> dict[str, Any]:
    """Return the counts under the names that `corpus.json` gives its totals."""
    statuses = {status: tally.statuses[status] for status in ("ok", "empty", "rejected")}
    return {
        "images": tally.images,
        **statuses,
        "masks": tally.masks,
        "candidates": tally.candidates,
        "drops": tally.drops,
        "rejects": tally.rejects,
    }

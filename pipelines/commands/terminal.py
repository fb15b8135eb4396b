"""What commands show on a terminal: one kind of bar, on standard error, and lines that --quiet leaves out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

WIDTH = 20
"""Columns of a bar: with all that stands beside it, 60 do."""

Show = Callable[[int, int | None], None]
"""Told how much is done, and of how much; None where that is not known."""


@contextmanager
def bar(what: str, quiet: bool = False) -> Iterator[Show]:
    """A bar that counts things, `bytes` in units of their own; only where standard error is a terminal."""
    count: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn(what))
    if what == "bytes":
        count = (DownloadColumn(), TransferSpeedColumn())
    columns = (BarColumn(WIDTH), *count, TimeRemainingColumn())
    hidden = quiet or sys.stderr is None or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def say(line: str, quiet: bool) -> None:
    """Print a line of standard output, unless it is to be quiet."""
    if not quiet:
        typer.echo(line)

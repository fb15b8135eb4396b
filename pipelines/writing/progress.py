"""What a run and a corpus look like to a person: the live line, the summary, the statistics.

The live line goes to standard error, so that standard output holds results. On a terminal it is one line that
moves; anywhere else (a log file, a batch job) it is a plain line every few seconds, without escape codes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..generation.status import Status
    from ..report.statistics import Statistics
    from ..workers.tasks import Tally

PLAIN_LINE_SECONDS = 5.0
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
    left = _clock((total - tally.images) / rate) if rate else "?"
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
    table = Table(title=f"{done.images} images in {_clock(seconds)}", title_justify="left")
    table.add_column()
    for title in titles:
        table.add_column(title, justify="right")
    for name, pick in _LINES:
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


def status_table(status: Status) -> Table:
    """How far a run is."""
    title = f"running on {status.holder}" if status.holder else status.state
    table = Table("", "", title=title, title_justify="left", show_header=False)
    table.add_row("shards", _of(status.shards, status.shards_planned))
    table.add_row("images", _of(status.images, status.images_planned))
    for name, count in status.statuses.items():
        table.add_row(f"images {name}", str(count))
    for name, count in status.rejects.items():
        table.add_row(f"rejected: {name}", str(count))
    table.add_row("last commit", status.last_commit or "none yet")
    rate, left = status.images_per_second, status.seconds_left
    table.add_row("images/s", "-" if rate is None else f"{rate:.2f}")
    if left is not None:
        table.add_row("time left", _clock(left))
    return table


def _of(done: int, planned: int) -> str:
    return f"{done} of {planned} ({done / planned:.1%})"


def corpus_tables(statistics: Statistics) -> Iterable[Table]:
    """Counts, and quantiles of what the masks are like."""
    counts = Table("", "", title="counts", title_justify="left", show_header=False)
    for name, pick in _LINES:
        counts.add_row(name, pick(statistics.counts))
    for reason, count in statistics.drops.items():
        counts.add_row(f"dropped: {reason}", str(count))
    for reason, count in statistics.rejects.most_common():
        counts.add_row(f"rejected: {reason}", str(count))
    yield counts
    table = Table("", *(f"{share:.0%}" for share in SHARES), title="quantiles", title_justify="left")
    for name, found in statistics.distributions().items():
        if found.total or name != "concavity":
            quantiles = found.quantiles(SHARES)
            table.add_row(name, *([f"{value:.3g}" for value in quantiles] or ["-"] * len(SHARES)))
    yield table


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


def _per_image(totals: Mapping[str, Any]) -> str:
    used = totals["ok"] + totals["empty"]
    return f"{totals['masks'] / used:.1f}" if used else "-"


_LINES = (
    ("images ok", lambda totals: str(totals["ok"])),
    ("images empty", lambda totals: str(totals["empty"])),
    ("images rejected", lambda totals: str(totals["rejected"])),
    ("masks", lambda totals: str(totals["masks"])),
    ("masks per image", _per_image),
    ("candidates", lambda totals: str(totals["candidates"])),
)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def evaluation_table(scores: Mapping[str, float], by_source: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of a model, a row each, over everything and by source; 80 columns do for eight of these."""
    table = Table(title="means over masks", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("score", no_wrap=True)
    columns = {"all": scores, **by_source}
    for source in columns:
        table.add_column(source, justify="right", overflow="fold", min_width=len("0.000"))
    for name in scores:
        table.add_row(name, *(_score(of[name]) if name in of else "-" for of in columns.values()))
    return table


def _score(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"  # masks an image may be many


def bench_tables(result: Mapping[str, Any]) -> Iterable[Table]:
    """What was measured, for a person."""
    stages = Table("stage", "seconds an image", title="photograph to Parquet", title_justify="left")
    stages.columns[1].justify = "right"
    for stage, seconds in result["stages"].items():
        stages.add_row(stage, f"{seconds / result['images']:.4f}")
    stages.add_section()
    stages.add_row("elapsed", f"{result['seconds'] / result['images']:.4f}")
    stages.add_row("images/s", f"{result['images_per_s']:.3f}")
    stages.add_row("masks/s", f"{result['masks_per_s']:.1f}")
    stages.add_row("peak memory, GiB", f"{result['peak_rss_bytes'] / 2**30:.2f}")
    yield stages
    if "speedup" in result:
        sides = Table("array to RLE", "seconds", "masks", title_justify="left")
        sides.add_row("maskmill", f"{result['generator_seconds']:.2f}", str(result["masks"]))
        sides.add_row("released", f"{result['released_seconds']:.2f}", str(result["released_masks"]))
        sides.add_row("ratio", f"{result['speedup']:.1f}×", f"{result['matched']:.1%} matched")
        yield sides

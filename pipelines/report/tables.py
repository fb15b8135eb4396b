"""The statistics of a corpus as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from ..writing.progress import COUNTS
from .histogram import SHARES
from .statistics import Statistics


def corpus_tables(statistics: Statistics) -> Iterable[Table]:
    """Counts, and quantiles of what the masks are like."""
    counts = Table("", "", title="counts", title_justify="left", show_header=False)
    for name, pick in COUNTS:
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

"""Counts of what was done: rows by status, masks, drops, rejects, seconds, retries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from .records import ImageRow

FIRST_REJECTS = 5  # kept by name


@dataclass(slots=True)
class Tally:
    """Counts over rows, and seconds by stage."""

    statuses: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    candidates: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    first_rejects: list[tuple[str, str, str]] = field(default_factory=list)  # key, class, message
    examples: dict[str, str] = field(default_factory=dict)  # class of rejection → the first image, and why
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    retries: Counter[str] = field(default_factory=Counter)  # "read", "write" → times tried again

    @property
    def images(self) -> int:
        """The number of rows, whatever their status."""
        return self.statuses.total()

    def add_row(self, row: ImageRow) -> None:
        """Count one row."""
        self.statuses[row.status] += 1
        self.masks += len(row.masks)
        self.candidates += row.candidates
        self.drops.update(row.drops)
        if row.error is not None:
            self.rejects[row.error.error_class] += 1
            if len(self.first_rejects) < FIRST_REJECTS:
                self.first_rejects.append((row.key, row.error.error_class, row.error.message))
            self.examples.setdefault(row.error.error_class, f"{row.key} ({row.error.message})")

    def add(self, other: Tally) -> None:
        """Add another tally's counts."""
        self.masks += other.masks
        self.candidates += other.candidates
        self.statuses.update(other.statuses)
        self.drops.update(other.drops)
        self.rejects.update(other.rejects)
        self.first_rejects = [*self.first_rejects, *other.first_rejects][:FIRST_REJECTS]
        self.examples = {**other.examples, **self.examples}
        self.retries.update(other.retries)
        self.add_seconds(other.seconds)

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add time spent, stage by stage."""
        for stage, spent in seconds.items():
            self.seconds[stage] += spent

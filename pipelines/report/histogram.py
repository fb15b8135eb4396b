"""Distributions that count values and do not keep them: a value costs no memory, and two can be merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that tables, pages and JSON show."""


@dataclass(slots=True)
class Histogram:
    """Counts values in equal bins from `low` to `high`; values outside count in the bin at that end.

    Mean, least and greatest value are exact; quantiles are exact to the width of a bin.
    """

    low: float
    high: float
    bins: int
    counts: npt.NDArray[np.int64] = field(init=False)
    sum: float = 0.0
    least: float = np.inf
    greatest: float = -np.inf

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, np.int64)

    def add(self, values: npt.ArrayLike) -> None:
        """Count values; those that are not finite are left out."""
        values_N = np.asarray(values, np.float64)
        values_N = values_N[np.isfinite(values_N)]
        if len(values_N) == 0:
            return
        places_N = np.floor((values_N - self.low) * (self.bins / (self.high - self.low)) + 1e-6)
        self.counts += np.bincount(np.clip(places_N, 0, self.bins - 1).astype(np.int64), minlength=self.bins)
        self.sum += float(values_N.sum())
        self.least = min(self.least, float(values_N.min()))
        self.greatest = max(self.greatest, float(values_N.max()))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram with the same bins."""
        self.counts += other.counts
        self.sum += other.sum
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """The mean of all values; NaN if there is none."""
        return self.sum / self.total if self.total else float("nan")

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The ends of the bins."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The values below which these shares of all values lie; empty if there is no value."""
        if not self.total:
            return []
        below = np.concatenate([[0], np.cumsum(self.counts)])
        found = np.interp(np.asarray(shares) * self.total, below, self.edges)
        return [float(value) for value in np.clip(found, self.least, self.greatest)]

    def as_json(self) -> dict[str, Any]:
        """Mean, extremes, quantiles and the bins that are not empty."""
        filled = np.flatnonzero(self.counts)
        return _summary(self) | {
            "low": self.low,
            "bin": (self.high - self.low) / self.bins,
            "counts": {str(place): int(self.counts[place]) for place in filled},
        }


@dataclass(slots=True)
class Tallied:
    """Counts whole numbers, each by itself, so that everything it says is exact."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, values: Iterable[int]) -> None:
        """Count values."""
        self.counts.update(values)

    def merge(self, other: Tallied) -> None:
        """Add another's counts."""
        self.counts.update(other.counts)

    @property
    def total(self) -> int:
        """The number of values."""
        return self.counts.total()

    @property
    def mean(self) -> float:
        """The mean of all values; NaN if there is none."""
        return (
            sum(value * count for value, count in self.counts.items()) / self.total
            if self.total
            else float("nan")
        )

    @property
    def least(self) -> float:
        """The smallest value."""
        return min(self.counts, default=np.inf)

    @property
    def greatest(self) -> float:
        """The largest value."""
        return max(self.counts, default=-np.inf)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The quantiles that `numpy.quantile` gives of all values; empty if there is no value."""
        if not self.total:
            return []
        values = np.array(sorted(self.counts))
        ends = np.cumsum([self.counts[int(value)] for value in values])
        places = np.asarray(shares) * (self.total - 1)
        low, high = np.floor(places), np.ceil(places)
        lower, upper = (values[np.searchsorted(ends, place, side="right")] for place in (low, high))
        return [float(value) for value in lower + (upper - lower) * (places - low)]

    def as_json(self) -> dict[str, Any]:
        """Mean, extremes, quantiles and how often each value is there."""
        return _summary(self) | {"counts": {str(value): self.counts[value] for value in sorted(self.counts)}}


def _summary(found: Histogram | Tallied) -> dict[str, Any]:
    if not found.total:
        return {"total": 0}
    quantiles = dict(zip((f"{share:.0%}" for share in SHARES), found.quantiles(SHARES), strict=True))
    values = {"mean": found.mean, "least": float(found.least), "greatest": float(found.greatest)}
    return {"total": found.total, **values, "quantiles": quantiles}

"""In which order a corpus is read, and which part of it one of several readers gets.

A reader gets a *part*: of all rows, shard after shard, one of `parts` stretches that differ by a row at most.
Parts of one order have no row in common and together have all. The shards come in plan order, or permuted by
the seed. The rows of a part are read in windows (`corpus.windows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Order:
    """One of `parts` parts, in plan order or, with a seed, shuffled: differently in each epoch.

    Raises ValueError for numbers that mean nothing.
    """

    seed: int | None = None
    epoch: int = 0
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"expected a seed of at least 0, got {self.seed}")
        if self.epoch < 0:
            raise ValueError(f"expected an epoch of at least 0, got {self.epoch}")
        if not 0 <= self.part < self.parts:
            raise ValueError(f"expected a part from 0 to {self.parts - 1}, got {self.part}")

    def stretches(self, shards: Sequence[int], rows_of: Callable[[], Sequence[int]]) -> list[Stretch]:
        """What of each shard is in this part, in order.

        `rows_of` counts the rows of each of these shards; it is asked only where there are several parts.
        """
        order = list(range(len(shards)))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(shards)).tolist()
        if self.parts == 1:
            return [Stretch(shards[place], 0, None) for place in order]
        rows = rows_of()
        first, stop = (sum(rows) * part // self.parts for part in (self.part, self.part + 1))
        found, start = [], 0
        for place in order:
            end = start + rows[place]
            if start < stop and end > first:
                found.append(Stretch(shards[place], max(first, start) - start, min(stop, end) - start))
            start = end
        return found

    def permutation(self, window: int, rows: int) -> npt.NDArray[np.int64]:
        """The order of the rows of a window."""
        if self.seed is None:
            return np.arange(rows)
        return np.random.default_rng([self.seed, self.epoch, self.part, self.parts, window]).permutation(rows)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The rows `first` to `stop` − 1 of a shard; to its last one where `stop` is None."""

    shard: int
    first: int
    stop: int | None

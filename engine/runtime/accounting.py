"""The account of one image: every candidate and every second is written down where it is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..records import DROP_REASONS, GeneratedMasks, MaskRecord

STAGES = ("resize", "encode", "prompt", "draw", "resample", "filter", "nms", "rle")


class Ledger:
    """Candidates, drops by reason and seconds by stage.

    On a GPU work is queued: its time shows in the stage that first waits for a result.
    """

    def __init__(self) -> None:
        self.candidates = 0
        self.drops = dict.fromkeys(DROP_REASONS, 0)
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def count(self, candidates: int, drops: Mapping[str, int]) -> None:
        """Enter candidates that were drawn up, and those dropped."""
        self.candidates += candidates
        for reason, number in drops.items():
            self.drops[reason] += number

    def add(self, part: Ledger, lanes: int) -> None:
        """Enter the account of a part of the work that went on in one of several lanes side by side.

        Of its seconds a share counts, so that the stages add up to the time that passed.
        """
        self.count(part.candidates, part.drops)
        for name, seconds in part.seconds.items():
            self.seconds[name] += seconds / lanes

    def close(self, masks: list[MaskRecord]) -> GeneratedMasks:
        """The result; raises ValueError if a candidate is unaccounted for."""
        return GeneratedMasks(masks, self.candidates, self.drops, self.seconds)

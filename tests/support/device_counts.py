"""What a device is asked to do, counted by stage of the generator and by the line of maskmill that asked."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from unittest import mock

from maskmill.engine.runtime.accounting import Ledger

ROOT = Path(__file__).parents[2]
PRODUCT = tuple(str(ROOT / name) + os.sep for name in ("maskmill", "engine", "model", "pipelines"))
READER = str(Path("engine", "runtime", "transfer.py"))
"""The one module that may read a device's numbers."""

MOVERS = (READER, str(Path("model", "networks", "device_tensors.py")))
"""Modules that move what others have: the line that counts is the one that called them."""

OUTSIDE = "between"
"""The stage of what is asked outside of all stages."""

MEASURES = ("launches", "bytes", "waits")


class Asked(NamedTuple):
    """In which stage, for what, and by which line."""

    stage: str
    what: str
    line: str


class Counts:
    """Launches, bytes that they read and write, and waits of the host for the device."""

    def __init__(self) -> None:
        self.launches: Counter[Asked] = Counter()
        self.bytes: Counter[Asked] = Counter()
        self.waits: Counter[Asked] = Counter()
        self.stage = OUTSIDE

    def clear(self) -> None:
        """Begin anew."""
        for measure in MEASURES:
            getattr(self, measure).clear()

    def launch(self, what: str, nbytes: int) -> None:
        """Something that goes into the device's queue."""
        asked = self._asked(what)
        self.launches[asked] += 1
        self.bytes[asked] += nbytes

    def wait(self, what: str) -> None:
        """Something for which the host waits until the queue is empty."""
        self.waits[self._asked(what)] += 1

    def kinds_of_waits(self) -> Counter[str]:
        """How often the host waited, by what for."""
        kinds: Counter[str] = Counter()
        for asked, number in self.waits.items():
            kinds[asked.what] += number
        return kinds

    def by_stage(self) -> dict[str, dict[str, int]]:
        """Launches, bytes and waits of each stage that asked for anything."""
        table: dict[str, dict[str, int]] = {}
        for measure in MEASURES:
            for asked, number in getattr(self, measure).items():
                row = table.setdefault(asked.stage, dict.fromkeys(MEASURES, 0))
                row[measure] += number
        return table

    def most(self, stage: str, measure: str) -> str:
        """The line that asked for the most in a stage, and for what."""
        of_stage = Counter({a: n for a, n in getattr(self, measure).items() if a.stage == stage})
        ((asked, number),) = of_stage.most_common(1)
        return f"{asked.line} asks for the most, {number:,} for {asked.what}"

    def _asked(self, what: str) -> Asked:
        line, frame = "?", None
        for frame in product_frames():
            line = f"{inside(frame)}:{frame.f_lineno}"
            if inside(frame) not in MOVERS:
                break
        return Asked(self._stage(), what, line)

    def _stage(self) -> str:
        """Painting is entered into the ledgers as resampling; here it is a stage of its own."""
        if self.stage == "resample" and any(f.f_code.co_name == "final_masks" for f in product_frames()):
            return "paint"
        return self.stage

    @contextmanager
    def following(self) -> Iterator[None]:
        """While the block runs, know which stage the generator is in: the innermost that a ledger times."""
        timed = Ledger.stage

        @contextmanager
        def stage(ledger: Ledger, name: str) -> Iterator[None]:
            before, self.stage = self.stage, name
            try:
                with timed(ledger, name):
                    yield
            finally:
                self.stage = before

        with mock.patch.object(Ledger, "stage", stage):
            yield


def product_frames() -> Iterator[FrameType]:
    """The calls of maskmill's that are under way, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PRODUCT):
            yield frame
        frame = frame.f_back


def inside(frame: FrameType) -> str:
    """The file of a call, from the package's top: engine/generator.py."""
    return frame.f_code.co_filename[len(str(ROOT)) + 1 :].removeprefix("maskmill" + os.sep)


def asked_by_reader() -> bool:
    """Whether the innermost call of maskmill's may read a device's numbers."""
    return any(inside(frame) == READER for frame in islice(product_frames(), 1))

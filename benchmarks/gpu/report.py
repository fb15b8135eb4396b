"""Parts of a benchmark, one after the other, each with a time limit; what is known is written after each.

A part that fails, or is not done in time, is recorded, and the next goes on. Where all take too long, because
one hangs in a call that no signal interrupts, what is known so far is printed and the process ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

TRACEBACK_LINES = 12
HUNG = 3
"""Exit code where the process was ended for the time."""


class TimeOverError(Exception):
    """A part was not done within its seconds."""


class Report:
    """What is known so far: `result` is the JSON, `path` the file that has it after each part."""

    def __init__(self, path: Path, result: dict[str, Any], *, most_seconds: float) -> None:
        self.path = path
        self.result: dict[str, Any] = {**result, "parts": {}, "seconds": {}, "failed": []}
        self._deadline = time.monotonic() + most_seconds
        self._write = threading.Lock()
        self.save()
        self._end = threading.Timer(most_seconds, self._give_up)
        self._end.daemon = True
        self._end.start()

    def part(self, name: str, seconds: float, work: Callable[[Callable[[], float]], dict[str, Any]]) -> bool:
        """Run a part, given the means to ask how many of its seconds are left; whether it gave a result."""
        start = time.monotonic()
        until = min(start + seconds, self._deadline)
        try:
            with limited(max(0.1, until - start)):
                found = work(lambda: until - time.monotonic())
        except Exception as error:
            lines = traceback.format_exception(error)
            found = {"failed": f"{type(error).__name__}: {error}", "traceback": lines[-TRACEBACK_LINES:]}
            self.result["failed"].append(name)
        self.result["parts"][name] = found
        self.result["seconds"][name] = round(time.monotonic() - start, 3)
        self.save()
        say(name, found)
        return "failed" not in found

    def save(self) -> None:
        """Write the file, whole."""
        with self._write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.result, indent=2) + "\n")
            part.replace(self.path)

    def close(self) -> int:
        """Print the JSON on a line of its own; the exit code: 0 where every part gave a result."""
        self._end.cancel()
        self.save()
        print(json.dumps(self.result), flush=True)
        return 1 if self.result["failed"] else 0

    def _give_up(self) -> None:
        self.result["failed"].append("time")
        self.close()
        os._exit(HUNG)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeOverError in the block, which the main thread runs, when its seconds are over."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeOverError(f"not done in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def say(name: str, found: dict[str, Any]) -> None:
    """A part for people: its plain values, a line each."""
    print(f"\n{name}")
    for key, value in found.items():
        if key == "traceback":
            print("".join(value), file=sys.stderr)
        elif isinstance(value, dict):
            print(f"  {key:<32}" + ", ".join(f"{inner} {plain(one)}" for inner, one in value.items()))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                print("  " + ", ".join(f"{inner} {plain(one)}" for inner, one in row.items()))
        else:
            print(f"  {key:<32}{plain(value)}")
    sys.stdout.flush()


def plain(value: object) -> str:
    """A value with no more digits than it is worth."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def version_of(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

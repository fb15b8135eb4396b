"""What Ctrl-C and SIGTERM do: the first one ends a command in good order, the second one at once.

SIGTERM is what a batch system sends before it takes the machine away; it counts like Ctrl-C. Python's own
way, an exception out of nowhere, is right for most of a command and wrong for the one who feeds workers:
there the signal is held back and looked at where it can be acted on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
"""The exit code."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupts:
    """The handler of both signals.

    Attributes:
        received: whether one has come.
        held_back: whether the first is to be noted only; else it raises KeyboardInterrupt.

    `how_to_go_on` is asked for the rest of the last line when the second signal ends the process.

    """

    def __init__(self, how_to_go_on: Callable[[], str] = str) -> None:
        self.received = False
        self.held_back = False
        self._how_to_go_on = how_to_go_on

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Take a signal in; the second one ends the process here."""
        if self.received:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # which a progress bar has hidden
            with suppress(OSError):
                os.write(2, f"maskmill: ended at once{self._how_to_go_on()}\n".encode(errors="replace"))
            for pid in descendants(os.getpid()):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            os._exit(INTERRUPTED)
        self.received = True
        if not self.held_back:
            raise KeyboardInterrupt


@contextmanager
def orderly(how_to_go_on: Callable[[], str] = str, *, ends: bool = False) -> Iterator[None]:
    """Handle both signals in the block, save one that was ignored before; nothing outside the main thread.

    `how_to_go_on` says what the last line adds where the process is ended at once. Where the process `ends`
    after the block, a signal that follows an interruption is still taken there, as the second one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = Interrupts(how_to_go_on)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, was in before.items():
        if was is not signal.SIG_IGN:  # as nohup and a shell's background jobs leave it
            signal.signal(number, handler)
    try:
        yield
    finally:
        if not (ends and handler.received):
            for number, was in before.items():
                signal.signal(number, was)


@contextmanager
def held_back() -> Iterator[Interrupts]:
    """Note the first signal in the block, for whoever looks; without `orderly` around it, none is noted."""
    handler = signal.getsignal(signal.SIGTERM)
    if not isinstance(handler, Interrupts):
        handler = Interrupts()
    handler.held_back = True
    try:
        yield handler
    finally:
        handler.held_back = False


def descendants(pid: int) -> list[int]:
    """What a process started, and what that started, where Linux tells which they are; else nothing."""
    found = [pid]
    for one in found:  # which grows
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, path.read_text().split())
    return found[1:]

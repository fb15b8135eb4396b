"""What Ctrl-C and SIGTERM do: the first one ends a command in good order, the second one at once.

SIGTERM is what a batch system sends before it takes the machine away; it counts like Ctrl-C. Python's own
way, an exception out of nowhere, is right for most of a command and wrong for the one who feeds workers:
there the signal is held back and looked at where it can be acted on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The handler of both signals.

    Attributes:
        received: whether one has come.
        held_back: whether the first is to be noted only; else it raises KeyboardInterrupt.

    """

    def __init__(self) -> None:
        self.received = False
        self.held_back = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        """Take a signal in; the second one ends the process here."""
        if self.received:
            os.write(2, b"maskmill: ended at once; the same command, without --overwrite, goes on\n")
            os._exit(INTERRUPTED)  # a Ray of our own ends with this process
        self.received = True
        if not self.held_back:
            raise KeyboardInterrupt


@contextmanager
def orderly() -> Iterator[None]:
    """Handle both signals in the block, save one that was ignored before; nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = Interrupts()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, was in before.items():
        if was is not signal.SIG_IGN:  # as nohup and a shell's background jobs leave it
            signal.signal(number, handler)
    try:
        yield
    finally:
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

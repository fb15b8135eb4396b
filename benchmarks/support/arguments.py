"""What the benchmarks' command lines have in common: a wrong argument is one line, and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An `argparse` that does not print its usage before the error."""

    def error(self, message: str) -> NoReturn:
        """End with 2 and the message in a line."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, not below `smallest`."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
        return int(text)

    return whole


def positive(text: str) -> float:
    """The type of an argument that is a number of seconds, above 0 and finite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def share(text: str) -> float:
    """The type of an argument that is a share, from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value

"""Says why a file is rejected while it is decoded: a function for each class, and the limit on pixels."""

from __future__ import annotations

from ..errors import InputRejected


def unsupported(message: str) -> InputRejected:
    """The file is an image, but docs/inputs.md has no rule for its format or its colours."""
    return InputRejected("decode", "Unsupported", message)


def too_large(message: str) -> InputRejected:
    """The image has more pixels, scans or text than the limit."""
    return InputRejected("decode", "TooLarge", message)


def over_limit(size: str, max_pixels: int) -> InputRejected:
    """The image has more pixels than the configuration allows; `size` says how many."""
    return too_large(f"{size}, over the limit of {max_pixels} (input.max_pixels)")


def truncated(message: str) -> InputRejected:
    """The file is cut short."""
    return InputRejected("decode", "Truncated", message)


def corrupt(message: str) -> InputRejected:
    """The file is damaged in another way."""
    return InputRejected("decode", "Corrupt", message)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise InputRejected where an image of that size has more pixels than the limit."""
    if width * height > max_pixels:
        raise over_limit(f"{width}×{height} pixels", max_pixels)

"""Loads a BMP of plain pixels. Pillow finds missing rows by itself; all else is in the header."""

from __future__ import annotations

from .pillow import LoadedImage, load_with_pillow
from .rejections import check_size, truncated, unsupported

_PLAIN = {0, 3, 6}  # uncompressed, and with masks for the colours


def load(data: bytes, max_pixels: int) -> LoadedImage:
    """Load the image; raises InputRejected, and what Pillow raises."""
    check_size(*_size(data), max_pixels)
    return LoadedImage(load_with_pillow("BMP", data, max_pixels))


def _size(data: bytes) -> tuple[int, int]:
    """Return width and height; raises InputRejected where the pixels are not plain."""
    if len(data) < 34:
        raise truncated("cut in the header")
    if int.from_bytes(data[14:18], "little") == 12:
        return int.from_bytes(data[18:20], "little"), int.from_bytes(data[20:22], "little")
    if (compression := int.from_bytes(data[30:34], "little")) not in _PLAIN:
        raise unsupported(f"BMP compression {compression}; taken are plain pixels")
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    return abs(width), abs(height)

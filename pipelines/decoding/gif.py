"""Loads a GIF. Every block is read first, since Pillow takes a file that stops behind its first frame."""

from __future__ import annotations

from .pillow import LoadedImage, load_with_pillow
from .rejections import check_size, corrupt, truncated

_EXTENSION, _FRAME, _END = 0x21, 0x2C, 0x3B


def load(data: bytes, max_pixels: int) -> LoadedImage:
    """Load the first frame on its canvas; raises InputRejected, and what Pillow raises."""
    check_size(*_canvas(data), max_pixels)
    return LoadedImage(load_with_pillow("GIF", data, max_pixels))


def _canvas(data: bytes) -> tuple[int, int]:
    """Read every block; return the size of a canvas with room for the first frame. Raises InputRejected."""
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    frames, at = 0, 13 + _palette_bytes(data, 10)
    while True:
        kind = _byte(data, at)
        at += 1
        if kind == _END:
            break
        if kind == _EXTENSION:
            at = _end_of_blocks(data, at + 1)
        elif kind == _FRAME:
            left, top, across, down = (
                int.from_bytes(data[at + 2 * place : at + 2 * place + 2], "little") for place in range(4)
            )
            if not frames:
                width, height = max(width, left + across), max(height, top + down)
            frames += 1
            at = _end_of_blocks(data, at + 10 + _palette_bytes(data, at + 8))
        elif kind:  # some writers put zeros between blocks
            raise corrupt(f"a GIF has no block of kind {kind}")
    if not frames or not width or not height:
        raise corrupt("no image in the GIF file")
    return width, height


def _palette_bytes(data: bytes, flags_at: int) -> int:
    flags = _byte(data, flags_at)
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int) -> int:
    """Return where a chain of blocks, each led by its length, ends."""
    while length := _byte(data, at):
        at += 1 + length
    return at + 1


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise truncated("the GIF has no trailer")
    return data[at]

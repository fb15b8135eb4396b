"""Unpacks Deflate streams for their checksum alone, in pieces that are dropped at once."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from .rejections import corrupt, truncated

_STEP = 1 << 18


def check_inflate(parts: Iterable[bytes | memoryview], least: int, most: int, what: str) -> None:
    """Raise InputRejected unless a zlib stream ends, with its checksum, after `least` to `most` bytes.

    Beside the parts themselves it takes less than a megabyte, whatever they hold and would unpack to; the
    work grows with both, and ends at `most`.
    """
    stream, size = zlib.decompressobj(), 0
    try:
        for length in _unpacked(stream, parts):
            size += length
            if size > most:
                raise corrupt(f"{what} unpacks to more than its {most} bytes")
    except zlib.error as error:
        raise corrupt(f"{what}: {error}") from None
    if not stream.eof or size < least:
        raise truncated(f"{what} ends after {size} of {least} bytes")


def _unpacked(stream: zlib._Decompress, parts: Iterable[bytes | memoryview]) -> Iterator[int]:
    """Yield the length of each piece that comes out. zlib copies what it has not read, so it gets little."""
    for part in parts:
        for at in range(0, len(part), _STEP):
            left = part[at : at + _STEP]
            while left and not stream.eof:
                yield len(stream.decompress(left, _STEP))
                left = stream.unconsumed_tail
    while not stream.eof and (more := len(stream.decompress(b"", _STEP))):
        yield more

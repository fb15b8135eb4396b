"""Deflate streams unpacked for their checksum alone, in pieces that are dropped at once."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from pipelines.errors import InputRejected

_STEP = 1 << 18


def check_inflate(parts: Iterable[bytes | memoryview], least: int, most: int, what: str) -> None:
    """That a zlib stream ends, with its checksum, after `least` to `most` bytes; raises InputRejected.

    Memory is a quarter of a megabyte, whatever the stream would unpack to, and the work ends at `most`.
    """
    stream, size = zlib.decompressobj(), 0
    try:
        for part in parts:
            left = bytes(part)
            while left and not stream.eof:
                size += len(stream.decompress(left, _STEP))
                left = stream.unconsumed_tail
                if size > most:
                    raise InputRejected("decode", "Corrupt", f"{what} unpacks to more than its {most} bytes")
        while not stream.eof and (more := stream.decompress(stream.unconsumed_tail, _STEP)):
            size += len(more)
            if size > most:
                raise InputRejected("decode", "Corrupt", f"{what} unpacks to more than its {most} bytes")
    except zlib.error as error:
        raise InputRejected("decode", "Corrupt", f"{what}: {error}") from None
    if not stream.eof or size < least:
        raise InputRejected("decode", "Truncated", f"{what} ends after {size} of {least} bytes")

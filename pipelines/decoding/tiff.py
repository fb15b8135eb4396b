"""The directory of a TIFF file, read before Pillow and libtiff read it; EXIF is the same directory again.

They trust much of it: older Pillows let a thousand tags each take the whole file for their value; strips that
are not listed stay black; a damaged checksum of a Deflate strip is passed over; JPEG inside fills with grey.
So the directory is held against the file first, and each strip or tile against what its rows need.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputRejected
from .deflate import check_inflate

_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of a value, by its type
_LETTERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # those that sizes and offsets come in

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION = 256, 257, 258, 259, 274
_PHOTOMETRIC, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _SAMPLE_FORMAT = 262, 277, 278, 284, 339
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets, byte counts
_TILE_WIDTH, _TILE_HEIGHT, _JPEG_TABLES = 322, 323, 347

_PLAIN, _LZW, _JPEG, _PACK_BITS = 1, 5, 7, 32773
_DEFLATE = {8, 32946}
_JPEG_BLOCK = 32  # pixels a side of what a JPEG codes at once, at its largest


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    value: bytes


class _Damaged(Exception):  # noqa: N818
    """The directory makes no sense."""


@dataclass(frozen=True, slots=True)
class Tiff:
    """What has to be known of the first image before it is decoded.

    Attributes:
        width: in pixels.
        height: in pixels.
        compression: the tag; one of those that are taken.
        pieces: offset and length of each strip or tile that is listed.
        needed: how many the image has.
        tiled: whether they are tiles.
        piece_size: width and height of a whole piece, in pixels.
        piece_bytes: what a whole piece holds when it is unpacked.
        jpeg_tables: of a TIFF with JPEG inside; empty where there are none.

    """

    width: int
    height: int
    compression: int
    pieces: npt.NDArray[np.int64]
    needed: int
    tiled: bool
    piece_size: tuple[int, int]
    piece_bytes: int
    jpeg_tables: bytes


def orientation(exif: bytes) -> int:
    """The tag of an EXIF block; 1 where there is none. Damaged EXIF does not spoil a photograph."""
    try:
        order, tags = _directory(exif, wanted={_ORIENTATION})
        value = _number(tags, _ORIENTATION, order, 1)
        return value if value <= 0xFFFF else 1
    except (_Damaged, InputRejected, struct.error):
        return 1


def read_tiff(data: bytes) -> Tiff:
    """Read and check the first directory; raises InputRejected."""
    try:
        order, tags = _directory(data)
        return _layout(order, tags)
    except (_Damaged, struct.error) as error:
        raise InputRejected("decode", "Corrupt", f"the TIFF directory is damaged: {error}") from None


def check_pieces(data: bytes, tiff: Tiff) -> None:
    """That each strip or tile is there, and holds all its rows; raises InputRejected."""
    starts, lengths = tiff.pieces.T
    if len(starts) != tiff.needed:
        message = f"{len(starts)} of {tiff.needed} strips or tiles are listed"
        raise InputRejected("decode", "Truncated", message)
    if (starts + lengths > len(data)).any() or not lengths.all():
        raise _cut()
    if lengths.sum() > len(data):
        message = "the strips or tiles together are longer than the file"
        raise InputRejected("decode", "Corrupt", message)
    rows = tiff.piece_size[1]
    down = -(-tiff.height // rows)
    whole = tiff.piece_bytes
    for at, (start, length) in enumerate(tiff.pieces.tolist()):
        needed = whole
        if not tiff.tiled and at % down == down - 1:  # the last strip may be lower
            needed = whole // rows * (tiff.height - (down - 1) * rows)
        if tiff.compression == _PLAIN and length < needed:
            raise InputRejected("decode", "Truncated", f"piece {at} has {length} bytes of {needed}")
        if tiff.compression in _DEFLATE:
            check_inflate([memoryview(data)[start : start + length]], needed, whole, f"piece {at}")


def jpeg_pieces(data: bytes, tiff: Tiff) -> Iterator[bytes]:
    """Each strip or tile as a JPEG file of its own, one at a time; none where the compression is another."""
    if tiff.compression != _JPEG:
        return
    tables = tiff.jpeg_tables[:-2] if tiff.jpeg_tables else b"\xff\xd8"
    for start, length in tiff.pieces.tolist():
        yield tables + data[start + 2 : start + length]


def check_jpeg_size(tiff: Tiff, width: int, height: int) -> None:
    """That a piece's own header claims no more than a piece in whole blocks; raises InputRejected."""
    across, down = tiff.piece_size
    if width > -(-across // _JPEG_BLOCK) * _JPEG_BLOCK or height > -(-down // _JPEG_BLOCK) * _JPEG_BLOCK:
        message = f"a JPEG of {width}×{height} pixels in a strip or tile of {across}×{down}"
        raise InputRejected("decode", "Corrupt", message)


def _directory(data: bytes, wanted: set[int] | None = None) -> tuple[str, dict[int, _Entry]]:
    """Byte order and first directory. Of a file's own directory, no tag twice and no byte in two values."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise _Damaged("no byte order")
    version = struct.unpack_from(order + "H", data, 2)[0]
    big = version == 43
    if version not in (42, 43):
        raise _Damaged(f"version {version}")
    head, entry, slot = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    step = struct.calcsize(order + entry) + slot
    if at + struct.calcsize(head) > len(data):
        raise _cut()
    count = struct.unpack_from(order + head, data, at)[0]
    at += struct.calcsize(order + head)
    if at + count * step > len(data):
        raise _cut()
    tags: dict[int, _Entry] = {}
    total = 0
    for place in range(at, at + count * step, step):
        tag, kind, number = struct.unpack_from(order + entry, data, place)
        if wanted is not None and tag not in wanted:
            continue
        size = (_SIZES[kind] if kind < len(_SIZES) else 0) * number
        start = place + step - slot
        if size > slot:
            start = struct.unpack_from(order + ("Q" if big else "I"), data, start)[0]
            total += size
        if tag in tags:
            raise _Damaged(f"tag {tag} twice")
        if start + size > len(data):
            raise _cut()
        if total > len(data):
            raise _Damaged("its values together are longer than the file")
        tags[tag] = _Entry(kind, number, data[start : start + size])
    return order, tags


def _layout(order: str, tags: dict[int, _Entry]) -> Tiff:
    width, height = _number(tags, _WIDTH, order), _number(tags, _HEIGHT, order)
    compression = _number(tags, _COMPRESSION, order, 1)
    if compression not in {_PLAIN, _LZW, _JPEG, _PACK_BITS} | _DEFLATE:
        taken = "none, LZW, Deflate, PackBits, JPEG"
        raise InputRejected("decode", "Unsupported", f"TIFF compression {compression}; taken are {taken}")
    if not width or not height:
        raise _Damaged(f"{width}×{height} pixels")
    samples = _number(tags, _SAMPLES, order, 1)
    planes = samples if _number(tags, _PLANAR, order, 1) == 2 else 1
    tiled = _TILE_WIDTH in tags
    if tiled:
        piece = _number(tags, _TILE_WIDTH, order), _number(tags, _TILE_HEIGHT, order)
    else:
        piece = width, min(height, _number(tags, _ROWS_PER_STRIP, order, height))
    if not all(piece):
        raise _Damaged("strips or tiles without pixels")
    needed = -(-width // piece[0]) * -(-height // piece[1]) * planes
    if tiled and needed > 2 + width * height // 64 * planes:
        raise _Damaged(f"{needed} tiles")  # lists of them would be far larger than the image
    starts, lengths = (_numbers(tags, tag, order, needed) for tag in (_TILES if tiled else _STRIPS))
    bits = _pixel_bits(tags, order, samples)
    piece_bytes = -(-piece[0] * (bits // planes) // 8) * piece[1]
    tables = tags[_JPEG_TABLES].value if _JPEG_TABLES in tags else b""
    pieces = np.stack([starts[: len(lengths)], lengths[: len(starts)]], 1)
    return Tiff(width, height, compression, pieces, needed, tiled, piece, piece_bytes, tables)


def _pixel_bits(tags: dict[int, _Entry], order: str, samples: int) -> int:
    """Bits of a pixel in all its samples; raises InputRejected for those that Pillow would show wrongly."""
    each = _numbers(tags, _BITS, order, samples) if _BITS in tags else np.ones(1, np.int64)
    bits = int(each[0])
    kind = int(_numbers(tags, _SAMPLE_FORMAT, order, samples)[0]) if _SAMPLE_FORMAT in tags else 1
    refused = {
        "samples of different depths": bool((each != bits).any()),
        f"{bits} bits a sample": bits not in (1, 2, 4, 8, 16, 32),
        "32 bits a sample without a sign": bits == 32 and kind not in (2, 3),
        "floats that are not one sample of 32 bits": kind == 3 and (samples, bits) != (1, 32),
        "planes of more than 8 bits": bits > 8 and _number(tags, _PLANAR, order, 1) == 2,
        "more than 8 bits with 0 for white": bits > 8 and _number(tags, _PHOTOMETRIC, order, 1) == 0,
    }
    for what, found in refused.items():
        if found:
            raise InputRejected("decode", "Unsupported", f"TIFF with {what}")
    return bits * samples


def _number(tags: dict[int, _Entry], tag: int, order: str, default: int | None = None) -> int:
    if tag not in tags and default is not None:
        return default
    return int(_numbers(tags, tag, order, 1)[0])


def _numbers(tags: dict[int, _Entry], tag: int, order: str, at_most: int) -> npt.NDArray[np.int64]:
    if tag not in tags:
        raise _Damaged(f"tag {tag} is missing")
    entry = tags[tag]
    if entry.kind not in _LETTERS or not 0 < entry.count <= at_most:
        raise _Damaged(f"tag {tag} has {entry.count} values of type {entry.kind}")
    values = np.frombuffer(entry.value, order + _LETTERS[entry.kind])
    if (values > 2**40).any():
        raise _Damaged(f"tag {tag} has a value past 2⁴⁰")
    return values.astype(np.int64)


def _cut() -> InputRejected:
    return InputRejected("decode", "Truncated", "the TIFF directory points behind the file's end")

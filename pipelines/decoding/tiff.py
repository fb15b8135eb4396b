"""Loads a TIFF, once its strips or tiles are known to be whole.

Pillow and libtiff trust much of a file: strips that are not listed stay black; a damaged checksum of a
Deflate strip is passed over; JPEG inside fills with grey. So each strip or tile is checked against what its
rows need, and JPEG inside is first decoded by the rules of JPEG.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .deflate import check_inflate
from .jpeg import Jpeg, load_whole, read_jpeg
from .pillow import LoadedImage, open_with_pillow
from .rejections import check_size, corrupt, truncated, unsupported
from .tiff_directory import Damaged, Directory, orientation, past_the_end, read_directory

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_PHOTOMETRIC, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _SAMPLE_FORMAT = 262, 277, 278, 284, 339
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets, byte counts
_TILE_WIDTH, _TILE_HEIGHT, _JPEG_TABLES = 322, 323, 347

_PLAIN, _LZW, _JPEG, _PACK_BITS = 1, 5, 7, 32773
_DEFLATE = {8, 32946}
_JPEG_BLOCK = 32  # pixels a side of what a JPEG codes at once, at its largest


@dataclass(frozen=True, slots=True)
class _Tiff:
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


def load(data: bytes, max_pixels: int) -> LoadedImage:
    """Load the first page, which Pillow turns upright; raises InputRejected, and what Pillow raises."""
    tiff = _read(data)
    check_size(tiff.width, tiff.height, max_pixels)
    check_size(*tiff.piece_size, max_pixels)
    _check_pieces(data, tiff)
    for piece in _jpeg_pieces(data, tiff):
        jpeg = read_jpeg(piece)
        _check_jpeg_size(tiff, jpeg)
        load_whole(jpeg, max_pixels)
    image = open_with_pillow("TIFF", io.BytesIO(data), max_pixels)
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)  # where a TIFF has no orientation, Pillow would turn it by this one
    image.load()
    return LoadedImage(image, orientation(data), turned=True)


def _read(data: bytes) -> _Tiff:
    """Read and check the first directory; raises InputRejected."""
    try:
        return _layout(read_directory(data))
    except (Damaged, struct.error) as error:
        raise corrupt(f"the TIFF directory is damaged: {error}") from None


def _layout(directory: Directory) -> _Tiff:
    width, height = directory.number(_WIDTH), directory.number(_HEIGHT)
    compression = directory.number(_COMPRESSION, 1)
    if compression not in {_PLAIN, _LZW, _JPEG, _PACK_BITS} | _DEFLATE:
        taken = "none, LZW, Deflate, PackBits, JPEG"
        raise unsupported(f"TIFF compression {compression}; taken are {taken}")
    if not width or not height:
        raise Damaged(f"{width}×{height} pixels")
    samples = directory.number(_SAMPLES, 1)
    planes = samples if directory.number(_PLANAR, 1) == 2 else 1
    tiled = _TILE_WIDTH in directory
    if tiled:
        piece = directory.number(_TILE_WIDTH), directory.number(_TILE_HEIGHT)
    else:
        piece = width, min(height, directory.number(_ROWS_PER_STRIP, height))
    if not all(piece):
        raise Damaged("strips or tiles without pixels")
    needed = -(-width // piece[0]) * -(-height // piece[1]) * planes
    if tiled and needed > 2 + width * height // 64 * planes:
        raise Damaged(f"{needed} tiles")  # lists of them would be far larger than the image
    starts, lengths = (directory.numbers(tag, needed) for tag in (_TILES if tiled else _STRIPS))
    bits = _pixel_bits(directory, samples)
    piece_bytes = -(-piece[0] * (bits // planes) // 8) * piece[1]
    pieces = np.stack([starts[: len(lengths)], lengths[: len(starts)]], 1)
    tables = directory.content(_JPEG_TABLES)
    return _Tiff(width, height, compression, pieces, needed, tiled, piece, piece_bytes, tables)


def _pixel_bits(directory: Directory, samples: int) -> int:
    """Return the bits of a pixel in all samples; raises InputRejected for what Pillow would show wrongly."""
    each = directory.numbers(_BITS, samples) if _BITS in directory else np.ones(1, np.int64)
    bits = int(each[0])
    kind = int(directory.numbers(_SAMPLE_FORMAT, samples)[0]) if _SAMPLE_FORMAT in directory else 1
    rejected = {
        "samples of different depths": bool((each != bits).any()),
        f"{bits} bits a sample": bits not in (1, 2, 4, 8, 16, 32),
        "32 bits a sample without a sign": bits == 32 and kind not in (2, 3),
        "floats that are not one sample of 32 bits": kind == 3 and (samples, bits) != (1, 32),
        "planes of more than 8 bits": bits > 8 and directory.number(_PLANAR, 1) == 2,
        "more than 8 bits with 0 for white": bits > 8 and directory.number(_PHOTOMETRIC, 1) == 0,
    }
    for what, found in rejected.items():
        if found:
            raise unsupported(f"TIFF with {what}")
    return bits * samples


def _check_pieces(data: bytes, tiff: _Tiff) -> None:
    """Raise InputRejected unless each strip or tile is there, and holds all its rows."""
    starts, lengths = tiff.pieces.T
    if len(starts) != tiff.needed:
        raise truncated(f"{len(starts)} of {tiff.needed} strips or tiles are listed")
    if (starts + lengths > len(data)).any() or not lengths.all():
        raise past_the_end()
    if lengths.sum() > len(data):
        raise corrupt("the strips or tiles together are longer than the file")
    rows = tiff.piece_size[1]
    down = -(-tiff.height // rows)
    whole = tiff.piece_bytes
    for at, (start, length) in enumerate(tiff.pieces.tolist()):
        needed = whole
        if not tiff.tiled and at % down == down - 1:  # the last strip may be lower
            needed = whole // rows * (tiff.height - (down - 1) * rows)
        if tiff.compression == _PLAIN and length < needed:
            raise truncated(f"piece {at} has {length} bytes of {needed}")
        if tiff.compression in _DEFLATE:
            check_inflate([memoryview(data)[start : start + length]], needed, whole, f"piece {at}")


def _jpeg_pieces(data: bytes, tiff: _Tiff) -> Iterator[bytes]:
    """Yield each strip or tile as a JPEG file of its own; none where the compression is another."""
    if tiff.compression != _JPEG:
        return
    tables = tiff.jpeg_tables[:-2] if tiff.jpeg_tables else b"\xff\xd8"
    for start, length in tiff.pieces.tolist():
        yield tables + data[start + 2 : start + length]


def _check_jpeg_size(tiff: _Tiff, jpeg: Jpeg) -> None:
    """Raise InputRejected where a piece's own header claims more than a piece in whole blocks."""
    across, down = tiff.piece_size
    blocks_across, blocks_down = -(-across // _JPEG_BLOCK), -(-down // _JPEG_BLOCK)
    if jpeg.width > blocks_across * _JPEG_BLOCK or jpeg.height > blocks_down * _JPEG_BLOCK:
        raise corrupt(f"a JPEG of {jpeg.width}×{jpeg.height} pixels in a strip or tile of {across}×{down}")

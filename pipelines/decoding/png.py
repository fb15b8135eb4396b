"""Loads a PNG, once every chunk and the data of the image are known to be whole.

Pillow skips the checksums of the image's data, fills the rows that are not there with black, and does not
mind that a file stops in the middle of what it does not need.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .deflate import check_inflate
from .pillow import LoadedImage, open_with_pillow
from .rejections import check_size, corrupt, truncated
from .tiff_directory import orientation

_SIGNATURE = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PALETTE = 3
# Column and row of the first pixel, and the steps, of the seven passes of an interlaced PNG.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True, slots=True)
class _Png:
    """What a PNG says beside its pixels.

    Attributes:
        width: in pixels.
        height: in pixels.
        exif: a TIFF file in itself; empty where there is none.
        unpacked: the bytes that the image's zlib stream has to hold.

    """

    width: int
    height: int
    exif: bytes
    unpacked: int


def load(data: bytes, max_pixels: int) -> LoadedImage:
    """Load the image, or the first one of an animation; raises InputRejected, and what Pillow raises."""
    png = _read(data)
    check_size(png.width, png.height, max_pixels)
    # Walked again, since a list of the chunks may outgrow the file; not summed again.
    idat = (body for name, body in _chunks(data, summed=True) if name == b"IDAT")
    check_inflate(idat, png.unpacked, png.unpacked, "the image's data")
    image = open_with_pillow("PNG", io.BytesIO(data), max_pixels)
    if image.tile and "16B" in str(image.tile[0][3]):
        image.info.pop("transparency", None)  # Pillow confuses this colour of 16 bits with others
    image.load()
    return LoadedImage(image, orientation(png.exif))


def _read(data: bytes) -> _Png:
    """Read every chunk up to the last and check its CRC; raises InputRejected."""
    header, exif, palette = b"", b"", False
    for name, body in _chunks(data):
        if not header and name != b"IHDR":
            raise corrupt("a PNG begins with its header")
        if name == b"IHDR":
            if header or len(body) != 13:
                raise corrupt("the PNG header is damaged")
            header = bytes(body)
        elif name == b"PLTE":
            palette = len(body) > 0
        elif name == b"eXIf":
            exif = bytes(body).removeprefix(b"Exif\0\0")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colours, interlaced = header[8], header[9], header[12]
    if not 0 < width < 1 << 31 or not 0 < height < 1 << 31 or colours not in _SAMPLES or interlaced > 1:
        raise corrupt("the PNG header is damaged")
    if colours == _PALETTE and not palette:
        raise corrupt("the PNG has no palette for its pixels")
    return _Png(width, height, exif, _unpacked_bytes(width, height, depth * _SAMPLES[colours], interlaced))


def _unpacked_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Return what the rows of all passes take, each with the byte that names its filter."""
    unpacked = 0
    for left, top, right, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            unpacked += (1 + -(-columns * bits // 8)) * rows
    return unpacked


def _chunks(data: bytes, summed: bool = False) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and content of each chunk, its CRC checked unless it was `summed` before."""
    view, at, name = memoryview(data), _SIGNATURE, b""
    while name != b"IEND":
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        body, crc = view[at + 8 : at + 8 + length], view[at + 8 + length : at + 12 + length]
        if len(crc) < 4:
            raise truncated("the PNG has no end chunk")
        if not summed and zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(crc, "big"):
            raise corrupt(f"the checksum of a chunk {name.decode('ascii', 'replace')!r} is wrong")
        yield name, body
        at += 12 + length

"""Which format the bytes are; and PNG, WebP, GIF and BMP, walked before Pillow sees them.

Pillow leaves out what a strict reader would do: it skips the checksums of a PNG's picture and fills the rows
that are not there with black, allocates a WebP's canvas before anyone could ask for its size, and does not
mind that a file stops in the middle of what it does not need. Here a file has to hold together to its end.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputRejected
from .deflate import check_inflate

# Nothing that runs another program (EPS) or is a drawing (WMF, SVG). JPEG 2000 and AVIF are left out: their
# headers do not bound the memory that decoding takes, and nothing in them tells damage.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

_MAGIC = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PPM": re.compile(rb"P[1-6fF]\s"),
}
_OTHER_MAGIC = re.compile(
    rb"%!PS|%PDF|8BPS|....ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51|\0\0\x01\0|\xff\x0a|\0\0\0\x0cJXL |qoif"
    rb"|gimp xcf|SIMPLE  =|v/1\x01|#\?RADIANCE|FUJIFILMCCD-RAW|icns|DDS |P7\n|\s*<svg|\s*<\?xml",
    re.DOTALL,
)

_PNG_SIGNATURE = 8
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_PALETTE = 3
# Column and row of the first pixel, and the steps, of the seven passes of an interlaced PNG.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, 0x3B
_BMP_PLAIN = {0, 3, 6}  # uncompressed, and with masks for the colours


@dataclass(frozen=True, slots=True)
class Container:
    """What a file says of its first picture.

    Attributes:
        width: in pixels; of a GIF or WebP, of its canvas.
        height: in pixels.
        exif: a TIFF file in itself; empty where there is none.

    """

    width: int
    height: int
    exif: bytes = b""


@dataclass(frozen=True, slots=True)
class Png(Container):
    """A PNG whose every chunk has its checksum.

    Attributes:
        unpacked: the bytes that the picture's zlib stream has to hold.

    """

    unpacked: int = 0


def sniff(data: bytes) -> str:
    """Which of FORMATS the first bytes are; raises InputRejected for any other."""
    for kind, magic in _MAGIC.items():
        if magic.match(data):
            return kind
    if _OTHER_MAGIC.match(data):
        raise InputRejected("decode", "Unsupported", f"expected one of {', '.join(FORMATS)}")
    raise InputRejected("decode", "NotAnImage", "the bytes are no known image format")


def read_png(data: bytes) -> Png:
    """Every chunk up to the last, each with its CRC; raises InputRejected."""
    header, exif, palette = b"", b"", False
    for name, body in _png_chunks(data):
        if not header and name != b"IHDR":
            raise _corrupt("a PNG begins with its header")
        if name == b"IHDR":
            if header or len(body) != 13:
                raise _corrupt("the PNG header is damaged")
            header = bytes(body)
        elif name == b"PLTE":
            palette = len(body) > 0
        elif name == b"eXIf":
            exif = bytes(body).removeprefix(b"Exif\0\0")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colours, interlaced = header[8], header[9], header[12]
    if not 0 < width < 1 << 31 or not 0 < height < 1 << 31 or colours not in _PNG_SAMPLES or interlaced > 1:
        raise _corrupt("the PNG header is damaged")
    if colours == _PNG_PALETTE and not palette:
        raise _corrupt("the PNG has no palette for its pixels")
    bits = depth * _PNG_SAMPLES[colours]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    unpacked = 0
    for left, top, right, down in passes:
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            unpacked += (1 + -(-columns * bits // 8)) * rows
    return Png(width, height, exif, unpacked)


def check_png(data: bytes, png: Png) -> None:
    """That the picture's data are all there and add up to their checksum; raises InputRejected."""
    # Walked again, since a list of the chunks may outgrow the file; not summed again.
    idat = (body for name, body in _png_chunks(data, summed=True) if name == b"IDAT")
    check_inflate(idat, png.unpacked, png.unpacked, "the picture's data")


def read_webp(data: bytes) -> Container:
    """Every chunk of the file, and its canvas; raises InputRejected."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise _truncated(f"{len(data)} bytes of {end}")
    size, exif, at = (0, 0), b"", 12
    while at + 8 <= end:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise _truncated(f"cut in a chunk {name.decode('ascii', 'replace')!r}")
        head = data[at + 8 : at + 18]
        if size == (0, 0):
            size = _webp_size(name, head)
        if name == b"EXIF" and not exif:
            exif = data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    if 0 in size:
        raise _corrupt("no picture in the WebP file")
    return Container(*size, exif)


def read_gif(data: bytes) -> Container:
    """Every block up to the trailer; the canvas has room for the first frame; raises InputRejected."""
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    frames, at = 0, 13 + _gif_palette(data, 10)
    while True:
        kind = _byte(data, at)
        at += 1
        if kind == _GIF_END:
            break
        if kind == _GIF_EXTENSION:
            at = _gif_blocks(data, at + 1)
        elif kind == _GIF_FRAME:
            left, top, across, down = (
                int.from_bytes(data[at + 2 * place : at + 2 * place + 2], "little") for place in range(4)
            )
            if not frames:
                width, height = max(width, left + across), max(height, top + down)
            frames += 1
            at = _gif_blocks(data, at + 10 + _gif_palette(data, at + 8))
        elif kind:  # some writers put zeros between blocks
            raise _corrupt(f"a GIF has no block of kind {kind}")
    if not frames or not width or not height:
        raise _corrupt("no picture in the GIF file")
    return Container(width, height)


def read_bmp(data: bytes) -> Container:
    """The header alone: a BMP is either plain or refused; raises InputRejected."""
    if len(data) < 34:
        raise _truncated("cut in the header")
    if int.from_bytes(data[14:18], "little") == 12:
        return Container(int.from_bytes(data[18:20], "little"), int.from_bytes(data[20:22], "little"))
    if (compression := int.from_bytes(data[30:34], "little")) not in _BMP_PLAIN:
        raise InputRejected("decode", "Unsupported", f"BMP compression {compression}; taken are plain pixels")
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    return Container(abs(width), abs(height))


def _png_chunks(data: bytes, summed: bool = False) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each chunk; its CRC is held unless that was done before."""
    view, at, name = memoryview(data), _PNG_SIGNATURE, b""
    while name != b"IEND":
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        body, crc = view[at + 8 : at + 8 + length], view[at + 8 + length : at + 12 + length]
        if len(crc) < 4:
            raise _truncated("the PNG has no end chunk")
        if not summed and zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(crc, "big"):
            raise _corrupt(f"the checksum of a chunk {name.decode('ascii', 'replace')!r} is wrong")
        yield name, body
        at += 12 + length


def _webp_size(name: bytes, head: bytes) -> tuple[int, int]:
    """Width and height, from the first ten bytes of the chunk that knows; (0, 0) from others."""
    if name == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if name == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    if name == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0


def _gif_palette(data: bytes, flags_at: int) -> int:
    flags = _byte(data, flags_at)
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks(data: bytes, at: int) -> int:
    """Where a chain of blocks, each led by its length, ends."""
    while length := _byte(data, at):
        at += 1 + length
    return at + 1


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise _truncated("the GIF has no trailer")
    return data[at]


def _truncated(message: str) -> InputRejected:
    return InputRejected("decode", "Truncated", message)


def _corrupt(message: str) -> InputRejected:
    return InputRejected("decode", "Corrupt", message)

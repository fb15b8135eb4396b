"""Loads a JPEG, if it is all there: libjpeg fills what is missing with grey, and Pillow says nothing of it.

A JPEG has no checksum. What can be told is whether every scan ran to its end, and it is told by the decoder:

- one scan (nearly every camera): the end marker is replaced by bits that are no code. A decoder that has all
  it needs by then never looks at them; one that wants more than two blocks more finds the file cut short,
  where at an end marker it would have filled in. This costs nothing.
- several scans (progressive): nothing is drawn before the end marker, so the file is decoded a second time
  with bytes added at the end of each scan. A scan that is whole never looks at them; one that was cut goes on
  with them, to another image. The scan headers say whether all bits of all coefficients were sent.

Only what shapes the pixels is handed on: no EXIF, no profile, no thumbnail, nothing behind the end marker.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from PIL import Image

from .pillow import LoadedImage, load_with_pillow, open_with_pillow
from .rejections import check_size, corrupt, too_large, truncated, unsupported
from .tiff_directory import orientation

MAX_SCANS = 32
"""Encoders write 1 to 20. A scan of a few bytes costs a pass over the whole image."""

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers that no length follows
_PROGRESSIVE = 0xC2
_FRAMES = {0xC0, 0xC1, _PROGRESSIVE}  # the first two baseline and extended; all with Huffman codes
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7}
_EXIF = b"Exif\0\0"
# Tables, restart interval, JFIF, Adobe.
_SHAPES_PIXELS = {0xC4, 0xDB, 0xDD, 0xE0, 0xEE, _SCAN} | _FRAMES
_NO_CODE = b"\xff\0" * 8  # 64 ones, what a decoder likes to have at hand; no Huffman code is all ones
_FILLER = bytes((165 + 89 * at) % 255 for at in range(170))  # not zeros, which libjpeg itself would add
_BAND_ROWS = 256


@dataclass(frozen=True, slots=True)
class Jpeg:
    """The first image of a file.

    Attributes:
        width: in pixels.
        height: in pixels.
        parts: the bytes that the decoder needs, each scan's data a part of its own, the end marker the last.
        scan_parts: which parts those are.
        exif: the first EXIF segment, a TIFF file in itself; empty where there is none.

    """

    width: int
    height: int
    parts: tuple[bytes, ...]
    scan_parts: frozenset[int]
    exif: bytes

    def padded(self) -> bytes:
        """Return the same image with bytes that nobody needs at the end of each scan."""
        return b"".join(part + _FILLER * (at in self.scan_parts) for at, part in enumerate(self.parts))


def load(data: bytes, max_pixels: int) -> LoadedImage:
    """Load the first image of the file; raises InputRejected, and what Pillow raises."""
    jpeg = read_jpeg(data)
    check_size(jpeg.width, jpeg.height, max_pixels)
    return LoadedImage(load_whole(jpeg, max_pixels), orientation(jpeg.exif))


def read_jpeg(data: bytes) -> Jpeg:
    """Walk through the segments; raises InputRejected where one is cut, out of order or not understood."""
    at, parts, scan_parts, exif = 2, [b"\xff\xd8"], set(), b""
    size, missing_bits, progressive = (0, 0), dict[int, list[int]](), False
    while (marker := _next(data, at)) is None or marker[0] != _END:
        if marker is None:
            raise truncated("there is no end marker")
        kind, at = marker
        if kind in _BARE:
            continue
        if kind == _START:
            raise corrupt("a second image begins inside the first")
        length = int.from_bytes(data[at : at + 2], "big")
        if at + max(length, 2) > len(data):
            raise truncated("cut in a segment")
        if length < 2:
            raise corrupt("a segment has no length")
        body, at = data[at + 2 : at + length], at + length
        if kind in _OTHER_FRAMES:
            raise unsupported("JPEG that is lossless or arithmetically coded")
        if kind == 0xE1 and body.startswith(_EXIF) and not exif:
            exif = body[len(_EXIF) :]
        if kind not in _SHAPES_PIXELS:
            continue
        parts.append(bytes([0xFF, kind]) + length.to_bytes(2, "big") + body)
        if kind in _FRAMES:
            if missing_bits:
                raise corrupt("two frame headers")
            size, missing_bits, progressive = *_frame(body), kind == _PROGRESSIVE
        if kind == _SCAN:
            _sent(body, missing_bits, progressive)
            end = _SCAN_END.search(data, at)
            if end is None:
                raise truncated("cut in the image's data: there is no end marker")
            scan_parts.add(len(parts))
            parts.append(data[at : end.start()].rstrip(b"\xff"))  # of which any number may lead a marker
            at = end.start()
            _check_restarts(parts[-1])
            if len(scan_parts) > MAX_SCANS:
                raise too_large(f"more than {MAX_SCANS} scans in a JPEG")
    if not missing_bits:
        raise corrupt("no frame header")
    if any(any(bits) for bits in missing_bits.values()):
        raise truncated("scans are missing")
    return Jpeg(*size, (*parts, b"\xff\xd9"), frozenset(scan_parts), exif)


def load_whole(jpeg: Jpeg, max_pixels: int) -> Image.Image:
    """Decode the image; raises InputRejected or OSError where the decoder would have to make up a part."""
    if len(jpeg.scan_parts) == 1:
        return load_with_pillow("JPEG", b"".join(jpeg.parts[:-1]) + _NO_CODE, max_pixels)
    image, again = (
        open_with_pillow("JPEG", io.BytesIO(whole), max_pixels)
        for whole in (b"".join(jpeg.parts), jpeg.padded())
    )
    image.load()
    again.load()
    if not all(_same(image, again, top) for top in range(0, image.height, _BAND_ROWS)):
        raise truncated("cut in the data of a scan")
    return image


def _same(one: Image.Image, other: Image.Image, top: int) -> bool:
    box = (0, top, one.width, min(one.height, top + _BAND_ROWS))
    return one.crop(box).tobytes() == other.crop(box).tobytes()


def _next(data: bytes, at: int) -> tuple[int, int] | None:
    found = _MARKER.search(data, at)
    return (found[1][0], found.end()) if found else None


def _frame(body: bytes) -> tuple[tuple[int, int], dict[int, list[int]]]:
    """Return width and height, and for each component the bits that each of 64 coefficients still wants."""
    if len(body) < 9 or len(body) < 6 + 3 * body[5] or not body[5]:
        raise corrupt("the frame header is damaged")
    if body[0] != 8:
        raise unsupported(f"JPEG of {body[0]} bits a sample")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if not width or not height:
        raise corrupt(f"{width}×{height} pixels")
    return (width, height), {body[6 + 3 * index]: [16] * 64 for index in range(body[5])}


def _sent(body: bytes, missing_bits: dict[int, list[int]], progressive: bool) -> None:
    """Take away what this scan's header promises: all there is, whatever it says, unless progressive."""
    components = body[0] if body else 0
    if len(body) < 4 + 2 * components or not components:
        raise corrupt("a scan header is damaged")
    first, last, bits = body[1 + 2 * components : 4 + 2 * components] if progressive else (0, 63, 0)
    for index in range(components):
        if body[1 + 2 * index] not in missing_bits:
            raise corrupt("a scan of a component that is not there")
        for place in range(first, min(last, 63) + 1):
            missing_bits[body[1 + 2 * index]][place] = bits & 15


def _check_restarts(scan: bytes) -> None:
    """Raise InputRejected where a restart marker is out of turn: they count to eight, over and over."""
    for turn, found in enumerate(_RESTART.finditer(scan)):
        if found[1][0] != 0xD0 + turn % 8:
            raise corrupt("a stretch between two restart markers is missing")

"""Image files put together by hand: valid ones, and those that no library would write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height=61, width=83) -> np.ndarray:
    """A picture whose every row and column differs from the next, without much noise."""
    rng = np.random.default_rng(0)
    return np.clip(np.cumsum(rng.normal(0, 6, (height, width, 3)), 0) + 128, 0, 255).astype(np.uint8)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, stream: bytes, before=b"", after=b"", interlaced=0) -> bytes:
    """8-bit RGB around the given zlib stream; `before` and `after`: chunks round it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    parts = png_chunk(b"IHDR", header), before, png_chunk(b"IDAT", stream), after, png_chunk(b"IEND", b"")
    return PNG_SIGNATURE + b"".join(parts)


def png_rows(pixels_HW3: np.ndarray) -> bytes:
    """What a PNG's stream unpacks to."""
    return b"".join(b"\0" + row.tobytes() for row in pixels_HW3)


def interlaced_rows(pixels_HW3: np.ndarray) -> bytes:
    """The same of an interlaced PNG: the seven passes of Adam7, each a picture of its own."""
    steps = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    passes = [pixels_HW3[top::down, left::right] for left, top, right, down in steps]
    return b"".join(png_rows(part) for part in passes if part.size)


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = ((side - 1).to_bytes(3, "little") for side in (width, height))
    return b"VP8X", bytes([flags, 0, 0, 0]) + b"".join(sides)


def gif(canvas: tuple[int, int], frame: tuple[int, int], pixels: int) -> bytes:
    """A grey GIF whose stream ends in order after that many pixels of value 7; codes are nine bits wide."""
    codes = [256]
    for at in range(pixels):
        codes += [7] if at % 200 else [256, 7]
    bits = [code >> place & 1 for code in [*codes, 257] for place in range(9)]
    stream = np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()
    blocks = b"".join(
        bytes([len(part)]) + part for part in (stream[at : at + 255] for at in range(0, len(stream), 255))
    )
    palette = bytes(value for value in range(256) for _ in range(3))
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *canvas, 0xF7, 0, 0)
        + palette
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, *frame, 0)
        + b"\x08"
        + blocks
        + b"\0;"
    )


def tiff(tags: dict[int, tuple[int, int, int]], body: bytes = b"") -> bytes:
    """A little-endian TIFF from {tag: (type, count, value)}; then the body, at `tiff_body(tags)`."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


def tiff_body(tags) -> int:
    return 8 + 2 + 12 * len(tags) + 4


def grey_tiff(width: int, height: int, **changes) -> dict[int, tuple[int, int, int]]:
    """Tags of a plain 8-bit grey image in one strip. `changes`: t259=(3, 1, 5); None: leave it out."""
    tags = {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 0), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, min(width * height, 2**32 - 1)),
    }  # fmt: skip
    tags |= {int(name[1:]): value for name, value in changes.items()}
    tags = {tag: value for tag, value in tags.items() if value is not None}
    if 273 in tags and tags[273][2] == 0:
        tags[273] = (4, tags[273][1], tiff_body(tags))
    return tags


def jpeg_of_size(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG, its header claiming another size."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]

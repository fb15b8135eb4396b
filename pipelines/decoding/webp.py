"""Loads a WebP. Its chunks are read first, since Pillow allocates the canvas before it tells its size."""

from __future__ import annotations

from .pillow import LoadedImage, load_with_pillow
from .rejections import check_size, corrupt, truncated
from .tiff_directory import orientation


def load(data: bytes, max_pixels: int) -> LoadedImage:
    """Load the image, or the first frame of an animation; raises InputRejected, and what Pillow raises."""
    (width, height), exif = _read(data)
    check_size(width, height, max_pixels)
    return LoadedImage(load_with_pillow("WEBP", data, max_pixels), orientation(exif))


def _read(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Read every chunk; return the canvas's size, and EXIF where there is any. Raises InputRejected."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated(f"{len(data)} bytes of {end}")
    size, exif, at = (0, 0), b"", 12
    while at + 8 <= end:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise truncated(f"cut in a chunk {name.decode('ascii', 'replace')!r}")
        head = data[at + 8 : at + 18]
        if size == (0, 0):
            size = _size(name, head)
        if name == b"EXIF" and not exif:
            exif = data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
        at += 8 + length + length % 2
    if 0 in size:
        raise corrupt("no image in the WebP file")
    return size, exif


def _size(name: bytes, head: bytes) -> tuple[int, int]:
    """Return width and height from the first ten bytes of a chunk that has them; (0, 0) from others."""
    if name == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if name == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    if name == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0

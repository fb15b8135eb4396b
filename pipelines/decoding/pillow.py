"""Lets Pillow decode what a format's own module has found whole, within our limit and in known modes."""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, ImageFile

from .rejections import check_size, over_limit, unsupported

_MODES = {"1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F"}

_pillow_limit = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow has to say becomes the row's error


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image as Pillow decoded it, with all of its pixels in memory.

    Attributes:
        image: in one of Pillow's modes; its pixels may still lie turned.
        orientation: the EXIF tag as read, 1 where there is none.
        turned: whether Pillow has applied the orientation already, as it does while it loads a TIFF.

    """

    image: Image.Image
    orientation: int = 1
    turned: bool = False


def load_with_pillow(kind: str, data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Decode the whole image. Raises InputRejected, and on damaged bytes whatever Pillow raises."""
    image = open_with_pillow(kind, io.BytesIO(data), max_pixels)
    image.load()
    return image


def open_with_pillow(kind: str, file: BinaryIO, max_pixels: int) -> ImageFile.ImageFile:
    """Let Pillow read the header, and check the size that it finds against the limit once more.

    Pillow's own limit is set to ours for that moment, because some of its plugins allocate while they open.
    It raises above twice its number.
    """
    with _pillow_limited_to(max_pixels):
        try:
            image = Image.open(file, formats=[kind])
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise over_limit(f"{pixels[0] if pixels else 'too many'} pixels", max_pixels) from None
    check_size(*image.size, max_pixels)
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise unsupported(f"{kind} in colour mode {image.mode}")
    return image


@contextlib.contextmanager
def _pillow_limited_to(max_pixels: int) -> Iterator[None]:
    with _pillow_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # only compared
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before

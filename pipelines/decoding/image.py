"""Turns a file's bytes into upright RGB pixels, or says why it cannot; `docs/inputs.md` is the policy.

What a file is, its first bytes say, never its name. Each format of the table has a module with a
`load(data, max_pixels)`, which walks through the file first: its size is held against the limit before
anything of that size is allocated, and what is cut or broken is found. Then Pillow decodes. What it raises on
damaged bytes is many things; here all becomes `InputRejected` with one of a few stable class names:

    read    EmptyFile    no bytes at all
            Missing      the folder is there, the file is not any more
            Unreadable   no permission, or no ordinary file
    decode  NotAnImage   nothing that is known as an image
            Unsupported  an image of another format, or in colours that have no rule below
            TooLarge     more pixels, or more bytes, than the limit
            Truncated    cut short
            Corrupt      damaged in another way

How pixels become 8-bit RGB:
- one bit, grey, palette, CMYK, YCbCr: as Pillow converts them; the CMYK of a JPEG is taken as inverted, with
  Adobe's marker or without, as most readers take it;
- transparency, whether a channel, a palette entry or a colour: over white, which is how a page shows it; but
  the one colour that a PNG of 16 bits may name is left as it is: Pillow confuses it with others;
- 16 bits: the upper eight (value >> 8);
- integers with a sign and floats, which have no white of their own: floats within 0 to 1 times 255, anything
  else stretched from its least finite value to its greatest; values that are not finite become black;
- ICC profiles are not applied; of an animation or several pages the first is taken; the EXIF orientation is
  applied.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import InputRejected
from . import bmp, gif, jpeg, png, tiff, webp
from .pillow import LoadedImage, load_with_pillow
from .rejections import corrupt, too_large, truncated, unsupported


class Format(NamedTuple):
    """A format that is taken: how its first bytes look, and what loads it.

    `load` takes a file's bytes and the most pixels that it may have. It raises InputRejected, and on damaged
    bytes whatever Pillow raises.
    """

    magic: re.Pattern[bytes]
    load: Callable[[bytes, int], LoadedImage]


def _load_ppm(data: bytes, max_pixels: int) -> LoadedImage:
    """A portable map has nothing to walk through: Pillow finds missing rows by itself."""
    return LoadedImage(load_with_pillow("PPM", data, max_pixels))


# Nothing that runs another program (EPS) or is a drawing (WMF, SVG). JPEG 2000 and AVIF are left out: their
# headers do not bound the memory that decoding takes, and nothing in them tells damage.
FORMATS = {
    "JPEG": Format(re.compile(rb"\xff\xd8\xff"), jpeg.load),
    "PNG": Format(re.compile(rb"\x89PNG\r\n\x1a\n"), png.load),
    "WEBP": Format(re.compile(rb"RIFF....WEBP", re.DOTALL), webp.load),
    "GIF": Format(re.compile(rb"GIF8[79]a"), gif.load),
    "BMP": Format(re.compile(rb"BM"), bmp.load),
    "TIFF": Format(re.compile(rb"II[*+]\0|MM\0[*+]"), tiff.load),
    "PPM": Format(re.compile(rb"P[1-6fF]\s"), _load_ppm),
}
_OTHER_MAGIC = re.compile(
    rb"%!PS|%PDF|8BPS|....ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51|\0\0\x01\0|\xff\x0a|\0\0\0\x0cJXL |qoif"
    rb"|gimp xcf|SIMPLE  =|v/1\x01|#\?RADIANCE|FUJIFILMCCD-RAW|icns|DDS |P7\n|\s*<svg|\s*<\?xml",
    re.DOTALL,
)

_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_PIXELS = 1 << 22

MAX_PIXELS = 100_000_000
"""Images larger than this are rejected, unless another limit is given."""

# What Pillow's decoders raise on damaged bytes. MemoryError is not among them: that is the machine's.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image, the right way up.

    Attributes:
        pixels_HW3: RGB, uint8, contiguous.
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        orientation: the EXIF tag as read, 1 where there is none; only 2 to 8 turn the image.
        sha256: of the file's bytes, in hex.
        data: the file's bytes.

    """

    pixels_HW3: npt.NDArray[np.uint8]
    width: int
    height: int
    orientation: int
    sha256: str
    data: bytes


def decode_image(data: bytes, max_pixels: int) -> DecodedImage:
    """Decode a file's bytes by the rules above; raises InputRejected, class and message saying why."""
    if not data:
        raise InputRejected("read", "EmptyFile", "the file has no bytes")
    load = FORMATS[sniff(data)].load
    try:
        loaded = load(data, max_pixels)
        # Pillow looks at palettes no sooner than it converts.
        pixels_HW3 = _upright_rgb(loaded.image, 1 if loaded.turned else loaded.orientation)
    except _DAMAGE as error:
        raise _rejection(error) from None
    height, width = pixels_HW3.shape[:2]
    sha256 = hashlib.sha256(data).hexdigest()
    return DecodedImage(pixels_HW3, width, height, loaded.orientation, sha256, data)


def sniff(data: bytes) -> str:
    """Return the name in FORMATS that the first bytes belong to; raises InputRejected where there is none."""
    for name, (magic, _) in FORMATS.items():
        if magic.match(data):
            return name
    if _OTHER_MAGIC.match(data):
        raise unsupported(f"expected one of {', '.join(FORMATS)}")
    raise InputRejected("decode", "NotAnImage", "the bytes are no known image format")


def _upright_rgb(image: Image.Image, orientation: int) -> npt.NDArray[np.uint8]:
    """Convert and turn the image in bands of rows, so that it is never held in more than two forms."""
    image = _eight_bits(image) if image.mode in ("I", "F") else image
    see_through = image.has_transparency_data
    width, height = image.size
    swapped, from_end = orientation in (5, 6, 7, 8), orientation in (3, 4, 6, 7)
    pixels_HW3 = np.empty((width, height, 3) if swapped else (height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        end = min(height, top + rows)
        band = _rgb(image.crop((0, top, width, end)), see_through)
        if orientation in _TURNED:
            band = band.transpose(_TURNED[orientation])
        place = slice(height - end, height - top) if from_end else slice(top, end)
        pixels_HW3[(slice(None), place) if swapped else place] = np.asarray(band)
    return pixels_HW3


def _rgb(image: Image.Image, see_through: bool) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not see_through:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(colours.convert("RGB"), mask=colours.getchannel("A"))
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Make 8-bit grey of 32-bit integers or floats. Pillow may open 16-bit PNG and PPM as integers."""
    values_HW = np.asarray(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return Image.fromarray((np.clip(values_HW, 0, 0xFFFF) >> 8).astype(np.uint8))
    finite_HW = np.isfinite(values_HW)
    if not finite_HW.any():
        return Image.new("L", image.size)
    values_HW = np.where(finite_HW, values_HW, np.nan).astype(np.float64)
    low, high = float(np.nanmin(values_HW)), float(np.nanmax(values_HW))
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled_HW = (values_HW - low) / (high - low) * 255 if high > low else np.zeros_like(values_HW)
    return Image.fromarray(np.nan_to_num(np.rint(scaled_HW)).astype(np.uint8))


def _rejection(error: Exception) -> InputRejected:
    """Find the class of Pillow's failure; the message is the same in every run."""
    if isinstance(error, UnidentifiedImageError):
        return corrupt("the header is damaged")
    message = re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__
    if re.search(r"decompressed data too large|memory used in text", message, re.IGNORECASE):
        return too_large("a text or colour profile unpacks to more than a megabyte")
    cut = re.search(r"truncated|expected to read|not enough", message, re.IGNORECASE)
    return truncated(message) if cut else corrupt(message)

"""From a file's bytes to upright RGB pixels, or to the reason why not; `docs/inputs.md` is the policy.

What a file is, its first bytes say, never its name. Its container is walked first (`containers`, `jpeg`,
`tiff`): its size is held against the limit before anything of that size is allocated, and what is cut or
broken is found. Then Pillow decodes. What it raises on damaged bytes is many things; here all becomes
`InputRejected` with one of a few stable class names:

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

import contextlib
import hashlib
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import InputRejected
from .containers import Container, Png, check_png, read_bmp, read_gif, read_png, read_webp, sniff
from .jpeg import load_whole, read_jpeg
from .tiff import check_jpeg_size, check_pieces, jpeg_pieces, read_tiff
from .tiff import orientation as orientation_of

_READERS: dict[str, Callable[[bytes], Container]] = {
    "PNG": read_png, "WEBP": read_webp, "GIF": read_gif, "BMP": read_bmp,
}  # fmt: skip
_MODES = {"1", "L", "P", "RGB", "RGBX", "RGBA", "RGBa", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F"}

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

_pillow_limit = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow has to say becomes the row's error


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A photograph, the right way up.

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
    kind = sniff(data)
    try:
        image, orientation = _checked(kind, data, max_pixels)
        # Pillow turns TIFF itself while it loads; and it looks at palettes no sooner than it converts.
        pixels_HW3 = _upright_rgb(image, 1 if kind == "TIFF" else orientation)
    except _DAMAGE as error:
        raise _rejection(error) from None
    height, width = pixels_HW3.shape[:2]
    return DecodedImage(pixels_HW3, width, height, orientation, hashlib.sha256(data).hexdigest(), data)


def _checked(kind: str, data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """The loaded image and its EXIF orientation. Raises InputRejected, and what Pillow raises."""

    def opened(file: BinaryIO) -> Image.Image:
        return _open(kind, file, max_pixels)

    if kind == "JPEG":
        jpeg = read_jpeg(data)
        _hold(jpeg.width, jpeg.height, max_pixels)
        return load_whole(jpeg, opened), orientation_of(jpeg.exif)
    exif = b""
    if kind == "TIFF":
        tiff, exif = read_tiff(data), data
        _hold(tiff.width, tiff.height, max_pixels)
        _hold(*tiff.piece_size, max_pixels)
        check_pieces(data, tiff)
        for piece in jpeg_pieces(data, tiff):
            jpeg = read_jpeg(piece)
            check_jpeg_size(tiff, jpeg.width, jpeg.height)
            load_whole(jpeg, lambda file: _open("JPEG", file, max_pixels))
    elif kind in _READERS:
        container = _READERS[kind](data)
        _hold(container.width, container.height, max_pixels)
        exif = container.exif
        if isinstance(container, Png):
            check_png(data, container)
    image = opened(io.BytesIO(data))
    image.load()
    return image, orientation_of(exif)


def _open(kind: str, file: BinaryIO, max_pixels: int) -> Image.Image:
    """Let Pillow read the header, and hold its size against the limit once more.

    Pillow's own limit is set to ours for that moment, because some of its plugins allocate while they open.
    It raises above twice its number.
    """
    with _pillow_limited_to(max_pixels):
        try:
            image = Image.open(file, formats=[kind])
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise _too_large(f"{pixels[0] if pixels else 'too many'} pixels", max_pixels) from None
    _hold(*image.size, max_pixels)
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise InputRejected("decode", "Unsupported", f"{kind} in colour mode {image.mode}")
    if kind == "PNG" and image.tile and "16B" in str(image.tile[0][3]):
        image.info.pop("transparency", None)
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)  # where a TIFF has no orientation, Pillow would turn it by this one
    return image


def _hold(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(f"{width}×{height} pixels", max_pixels)


@contextlib.contextmanager
def _pillow_limited_to(max_pixels: int) -> Iterator[None]:
    with _pillow_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # only compared
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _too_large(size: str, max_pixels: int) -> InputRejected:
    return InputRejected("decode", "TooLarge", f"{size}, over the limit of {max_pixels} (input.max_pixels)")


def _upright_rgb(image: Image.Image, orientation: int) -> npt.NDArray[np.uint8]:
    """H×W×3, in bands of rows: a large image is never held in more than two forms at once."""
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
    """Grey of 8 bits from 32-bit integers or floats. Pillow may open 16-bit PNG and PPM as integers."""
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
    """Which class Pillow's failure is; messages repeat from run to run."""
    if isinstance(error, UnidentifiedImageError):
        return InputRejected("decode", "Corrupt", "the header is damaged")
    message = re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__
    if re.search(r"decompressed data too large|memory used in text", message, re.IGNORECASE):
        return InputRejected("decode", "TooLarge", "a text or colour profile unpacks to more than a megabyte")
    cut = re.search(r"truncated|expected to read|not enough", message, re.IGNORECASE)
    return InputRejected("decode", "Truncated" if cut else "Corrupt", message)

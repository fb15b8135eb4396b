"""From a file's bytes to upright RGB pixels, or to the reason why not.

The header is read first and its size held against the limit before anything of that size is allocated.
Pillow decodes, since it refuses files that are cut short where OpenCV returns grey rows. What it raises on
damaged bytes is many things; here that becomes `InputRejected` with one of a few stable class names:

    read    EmptyFile    no bytes at all
            Missing      the folder is there, the file is not any more
            Unreadable   no permission, or no ordinary file
    decode  NotAnImage   nothing that is known as an image
            Unsupported  an image of another format, or in colours that have no rule below
            TooLarge     more pixels, or more bytes, than the limit
            Truncated    cut short
            Corrupt      damaged in another way

How pixels become 8-bit RGB:
- one bit, grey, palette, CMYK, YCbCr: as Pillow converts them; Adobe's inverted CMYK is turned round first;
- transparency, whether a channel, a palette entry or a colour: over white, which is how a page shows it; but
  the one colour that a PNG of 16 bits may name is left as it is: Pillow confuses it with others;
- 16 bits: the upper eight (value >> 8);
- 32-bit integers and floats, which have no white of their own: floats within 0 to 1 times 255, anything else
  stretched from its least finite value to its greatest; values that are not finite become black;
- ICC profiles are not applied; of an animation or several pages the first is taken; the EXIF orientation is
  applied.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipelines.errors import InputRejected
from pipelines.sources import path_of

MAX_BYTES = 1 << 30
"""A photograph's file is far smaller; an embedded one has to fit a Parquet value of 2 GiB."""

# No format that runs another program (EPS) or is a drawing (WMF, SVG). Older Pillows have no AVIF.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_OUR_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|RIFF....WEBP|P[1-7fF]\s"
    rb"|....ftypavi[fs]|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)
_OTHER_MAGIC = re.compile(
    rb"%!PS|%PDF|8BPS|....ftyp(hei|hev|mif|msf|crx)|\0\0\x01\0|\xff\x0a|\0\0\0\x0cJXL |qoif|gimp xcf"
    rb"|SIMPLE  =|v/1\x01|#\?RADIANCE|FUJIFILMCCD-RAW|icns|DDS |\s*<svg|\s*<\?xml",
    re.DOTALL,
)
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
_ORIENTATION = 0x0112
_BAND_PIXELS = 1 << 22

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


def read_input(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of an input.

    Raises InputRejected where the fault is the file's own: it is gone from a folder that is there, may not be
    read, is no ordinary file, is empty, or is over `max_bytes`. Raises OSError for everything else, a whole
    folder that is gone included: that is a disk or a mount, and worth another try.
    """
    path = path_of(uri)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputRejected("read", "Unreadable", "not an ordinary file")
        if status.st_size > max_bytes:
            raise InputRejected("read", "TooLarge", f"{status.st_size} bytes, over the limit of {max_bytes}")
        data = path.read_bytes()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        raise InputRejected("read", "Missing", "there is no such file any more") from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        raise InputRejected("read", "Unreadable", error.strerror or type(error).__name__) from None
    if not data:
        raise InputRejected("read", "EmptyFile", "the file has no bytes")
    return data


def decode_image(data: bytes, max_pixels: int) -> DecodedImage:
    """Decode a file's bytes by the rules above; raises InputRejected, class and message saying why."""
    if not data:
        raise InputRejected("read", "EmptyFile", "the file has no bytes")
    try:
        image = _open(data, max_pixels)
        # Pillow turns TIFF itself while it loads, and forgets the tag; PNG may have the tag after the pixels.
        before = _orientation(image) if image.format == "TIFF" else None
        image.load()
        left = _orientation(image)
    except _DAMAGE as error:
        raise _rejection(data, error) from None
    pixels_HW3 = _upright_rgb(image, left)
    height, width = pixels_HW3.shape[:2]
    orientation = left if before is None else before
    return DecodedImage(pixels_HW3, width, height, orientation, hashlib.sha256(data).hexdigest(), data)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header and hold its size against the limit.

    Pillow's own limit is set to ours for that moment, because some of its plugins allocate while they open.
    It raises above twice its number.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    with _pillow_limited_to(max_pixels):
        try:
            image = Image.open(io.BytesIO(data), formats=known)
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise _too_large(f"{pixels[0] if pixels else 'too many'} pixels", max_pixels) from None
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"{width}×{height} pixels", max_pixels)
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise InputRejected("decode", "Unsupported", f"{image.format} in colour mode {image.mode}")
    if image.format == "PNG" and image.tile and "16B" in str(image.tile[0][3]):
        image.info.pop("transparency", None)
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


def _too_large(size: str, max_pixels: int) -> InputRejected:
    return InputRejected("decode", "TooLarge", f"{size}, over the limit of {max_pixels} (input.max_pixels)")


def _orientation(image: Image.Image) -> int:
    """The EXIF tag; 1 where there is none or it makes no sense. Damaged EXIF does not spoil a photograph."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) and 0 <= value <= 0xFFFF else 1


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


def _rejection(data: bytes, error: Exception) -> InputRejected:
    """Which class this failure is, told from the bytes where they tell; messages repeat from run to run."""
    ours = _OUR_MAGIC.match(data)
    if isinstance(error, UnidentifiedImageError) and not ours:
        other = _OTHER_MAGIC.match(data)
        if other:
            return InputRejected("decode", "Unsupported", f"expected one of {', '.join(FORMATS)}")
        return InputRejected("decode", "NotAnImage", "the bytes are no known image format")
    if isinstance(error, UnidentifiedImageError):
        message = "the header is damaged"
    else:
        message = re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__
    cut = _is_cut_short(data) or re.search(r"truncated|expected to read", message, re.IGNORECASE)
    return InputRejected("decode", "Truncated" if cut else "Corrupt", message)


def _is_cut_short(data: bytes) -> bool:
    """Whether a container says of itself that more should follow."""
    if len(data) < 32:
        return True
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") + 2 > len(data)
    if data[4:8] in (b"ftyp", b"jP  "):
        return _boxes_end(data) > len(data)
    return False


def _boxes_end(data: bytes) -> int:
    """Where the boxes of an ISO base media file say they end."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1 and at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: to the end of the file
            break
        at += size
    return at

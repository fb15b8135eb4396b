"""Any bytes, and damaged files of every format: an image or an InputRejected, soon and in little memory.

The default run is short and the same every time; `-m slow` draws anew, and many more.
"""

import io
import resource
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskmill.pipelines.decoding.image import FORMATS, decode_image
from maskmill.pipelines.errors import InputRejected
from tests.support.image_files import PNG_SIGNATURE, encoded, gif, interlaced_rows, png, smooth, tiff

LIMIT = 100_000
SECONDS = 5.0  # of processor time, for one file; most take milliseconds
MEGABYTES = 200  # that the process may grow by, over all files
CLASSES = {"EmptyFile", "NotAnImage", "Unsupported", "TooLarge", "Truncated", "Corrupt"}
KNOWN_STARTS = [
    b"\xff\xd8\xff", PNG_SIGNATURE, b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0",
    b"RIFF\x40\0\0\0WEBPVP8X", b"RIFF\x40\0\0\0WEBPVP8L", b"P3 ", b"P5 2 2 255\n", b"Pf\n", b"P4 ",
]  # fmt: skip
SHORT = settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(SHORT, max_examples=10_000, derandomize=False, print_blob=True)


def seeds() -> list[bytes]:
    """A picture of each format, and of their variants that are decoded on other paths."""
    picture = Image.fromarray(smooth(24, 37))
    exif = Image.Exif()
    exif[0x0112] = 6
    masked = picture.convert("RGBA")
    grey = picture.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256)
    frames = {"save_all": True, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)]}
    return [
        *(encoded(picture, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        *(encoded(picture, kind) for kind in ("BMP", "PPM", "GIF")),
        *(encoded(picture, kind, **frames) for kind in ("GIF", "PNG", "WEBP", "TIFF")),
        encoded(picture, "JPEG", progressive=True, restart_marker_rows=1),
        encoded(picture.convert("CMYK"), "JPEG", restart_marker_blocks=2),
        encoded(masked, "PNG"),
        encoded(masked, "WEBP"),
        encoded(picture, "WEBP", lossless=True),
        encoded(picture.quantize(16), "PNG", transparency=3),
        png(37, 24, zlib.compress(interlaced_rows(np.asarray(picture))), interlaced=1),
        *(encoded(picture, "TIFF", compression=f"tiff_{name}") for name in ("lzw", "adobe_deflate", "jpeg")),
        encoded(picture, "TIFF", compression="packbits"),
        *(
            encoded(image, "TIFF")
            for image in (grey, deep, masked, picture.convert("CMYK"), grey.convert("1"))
        ),
        encoded(grey.convert("I"), "TIFF"),
        encoded(grey.convert("F"), "TIFF"),
        encoded(deep, "PNG"),
        gif((9, 7), (9, 7), 63),
        tiff({256: (4, 1, 9), 257: (4, 1, 9)}),
    ]


SEEDS = seeds()


def check(data: bytes) -> None:
    started = time.process_time()
    try:
        decoded = decode_image(data, LIMIT)
    except InputRejected as error:
        rejection = error
    else:
        assert decoded.pixels_HW3.dtype == np.uint8
        assert decoded.pixels_HW3.shape == (decoded.height, decoded.width, 3)
        assert 0 < decoded.height * decoded.width <= LIMIT
        rejection = None
    if rejection:
        assert rejection.error_class in CLASSES
        assert rejection.message
        assert rejection.message.isprintable()
    assert time.process_time() - started < SECONDS


def with_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks all have the CRC of what they now hold, so that the damage gets further."""
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        parts += [data[at : at + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        at += 12 + length
    return b"".join(parts)


@st.composite
def damaged(draw) -> bytes:
    """A valid file after one to eight cuts, copies, insertions and changed bytes, more at its head."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 8))):
        reach = draw(st.sampled_from([32, 200, len(data)]))
        at = draw(st.integers(0, max(0, min(reach, len(data)) - 1)))
        what = draw(st.sampled_from(["byte", "byte", "number", "cut", "remove", "copy", "insert"]))
        length = draw(st.integers(1, 40))
        if what == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif what == "number":
            data[at : at + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]))
        elif what == "cut":
            del data[max(1, len(data) - length) :]
        elif what == "remove":
            del data[at : at + length]
        elif what == "copy":
            data[at:at] = data[at : at + length] * draw(st.sampled_from([1, 1, 50]))
        else:
            data[at:at] = draw(st.binary(max_size=40))
    if data.startswith(PNG_SIGNATURE) and draw(st.booleans()):
        return with_checksums(bytes(data))
    return bytes(data)


any_bytes = st.one_of(
    st.binary(max_size=400), st.tuples(st.sampled_from(KNOWN_STARTS), st.binary(max_size=400)).map(b"".join)
)


@pytest.fixture(autouse=True)
def _little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


def test_every_seed_is_an_image_and_every_format_has_one():
    for data in SEEDS[:-1]:
        check(data)
        assert decode_image(data, LIMIT).width
    assert {Image.open(io.BytesIO(data)).format for data in SEEDS[:-1]} >= set(FORMATS)


@given(any_bytes)
@SHORT
def test_any_bytes(data):
    check(data)


@given(damaged())
@SHORT
def test_damaged_files(data):
    check(data)


@pytest.mark.slow
@given(any_bytes)
@LONG
def test_any_bytes_at_length(data):
    check(data)


@pytest.mark.slow
@given(damaged())
@LONG
def test_damaged_files_at_length(data):
    check(data)

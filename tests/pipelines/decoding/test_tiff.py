"""TIFF as tifffile writes it, which shares no code with Pillow: layouts and depths, taken or named."""

import io

import numpy as np
import pytest
import tifffile

from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.decoding.tiff_directory import orientation
from maskmill.pipelines.errors import InputRejected
from tests.support.image_files import smooth, tiff

LIMIT = 10**6
COLOUR = smooth(100, 150)
GREY = np.ascontiguousarray(COLOUR[..., 0])
PLANES = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
DEEP = (COLOUR.astype(np.uint16) << 8) | 77
DEEP_GREY = np.ascontiguousarray(DEEP[..., 0])
OPAQUE = np.full((100, 150, 1), 255, np.uint8)
INK = np.concatenate([255 - COLOUR, 0 * OPAQUE], axis=2)  # cyan, magenta, yellow, no black
RAMP = (np.stack([np.arange(256), 255 - np.arange(256), np.arange(256)]) * 257).astype(np.uint16)


def written(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


RGB = {"photometric": "rgb"}
BLACK_IS_0, WHITE_IS_0 = {"photometric": "minisblack"}, {"photometric": "miniswhite"}

TAKEN = {
    "one strip": (COLOUR, COLOUR, RGB),
    "strips": (COLOUR, COLOUR, {**RGB, "rowsperstrip": 7}),
    "tiles": (COLOUR, COLOUR, {**RGB, "tile": (64, 48)}),
    "planes": (PLANES, COLOUR, {**RGB, "planarconfig": "separate", "rowsperstrip": 7}),
    "planes in tiles": (PLANES, COLOUR, {**RGB, "planarconfig": "separate", "tile": (64, 48)}),
    "BigTIFF": (COLOUR, COLOUR, {**RGB, "bigtiff": True}),
    "big-endian": (COLOUR, COLOUR, {**RGB, "byteorder": ">"}),
    "Deflate": (COLOUR, COLOUR, {**RGB, "compression": "zlib", "rowsperstrip": 7}),
    "Deflate in tiles": (COLOUR, COLOUR, {**RGB, "compression": "zlib", "tile": (64, 48)}),
    "Deflate and planes": (PLANES, COLOUR, {**RGB, "compression": "zlib", "planarconfig": "separate"}),
    "differences": (COLOUR, COLOUR, {**RGB, "compression": "zlib", "predictor": True}),
    "16 bits": (DEEP, COLOUR, RGB),
    "16 bits, big-endian, Deflate": (DEEP, COLOUR, {**RGB, "byteorder": ">", "compression": "zlib"}),
    "grey": (GREY, GREY, BLACK_IS_0),
    "grey, 0 is white": (255 - GREY, GREY, WHITE_IS_0),
    "grey of 16 bits": (DEEP_GREY, GREY, BLACK_IS_0),
    "grey of 16 bits, big-endian": (DEEP_GREY, GREY, {**BLACK_IS_0, "byteorder": ">"}),
    "grey of 16 bits in tiles": (DEEP_GREY, GREY, {**BLACK_IS_0, "tile": (64, 48)}),
    "one bit": (GREY > 128, (GREY > 128) * np.uint8(255), BLACK_IS_0),
    "one bit, 0 is white": (GREY <= 128, (GREY > 128) * np.uint8(255), WHITE_IS_0),
    "palette": (GREY, np.dstack([GREY, 255 - GREY, GREY]), {"photometric": "palette", "colormap": RAMP}),
    "CMYK": (INK, COLOUR, {"photometric": "separated"}),
    "CMYK of 16 bits": (INK.astype(np.uint16) * 257, COLOUR, {"photometric": "separated"}),
    "alpha": (np.dstack([COLOUR, OPAQUE]), COLOUR, {**RGB, "extrasamples": ["unassalpha"]}),
    "a fourth of no use": (np.dstack([COLOUR, 0 * OPAQUE]), COLOUR, {**RGB, "extrasamples": ["unspecified"]}),
    "grey and alpha": (np.dstack([GREY, OPAQUE]), GREY, {**BLACK_IS_0, "extrasamples": ["unassalpha"]}),
    "multiplied alpha": (
        np.dstack([COLOUR // 2, OPAQUE // 255 * 128]),
        COLOUR // 2 + 127,
        {**RGB, "extrasamples": ["assocalpha"]},
    ),
}  # fmt: skip

NAMED = {
    "planes of 16 bits": (DEEP.transpose(2, 0, 1).copy(), {**RGB, "planarconfig": "separate"}),
    "16 bits, 0 is white": (65535 - DEEP_GREY, WHITE_IS_0),
    "32 bits without sign": (DEEP_GREY.astype(np.uint32) << 16, BLACK_IS_0),
    "half floats": ((GREY / 255).astype(np.float16), BLACK_IS_0),
    "doubles": (GREY / 255, BLACK_IS_0),
    "floats in colour": ((COLOUR / 255).astype(np.float32), RGB),
    "floats, 0 is white": ((1 - GREY / 255).astype(np.float32), WHITE_IS_0),
    "Lab": (COLOUR, {"photometric": "cielab"}),
}


@pytest.mark.parametrize("name", NAMED)
def test_rejected_by_name(name):
    array, options = NAMED[name]
    with pytest.raises(InputRejected) as caught:
        decode_image(written(array, **options), LIMIT)
    assert caught.value.error_class == "Unsupported"


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name):
    array, expected, options = TAKEN[name]
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, axis=2)
    assert np.array_equal(decode_image(written(array, **options), LIMIT).pixels_HW3, expected)


def test_integers_with_a_sign_are_stretched():
    values = np.array([[-300, 0, 300]], np.int16)
    decoded = decode_image(written(values, **BLACK_IS_0), LIMIT).pixels_HW3[..., 0]
    assert decoded.tolist() == [[0, 128, 255]]


# EXIF, which is the same directory


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (b"", 1),
        (b"II*\0", 1),
        (b"garbage" * 9, 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"II*\0\x08\0\0\0\xff\xff" + bytes(40), 1),  # more entries than bytes
        (tiff({}), 1),
        (tiff({274: (3, 1, 6)}), 6),
        (tiff({274: (4, 1, 6)}), 6),  # a long where a short belongs
        (tiff({274: (2, 1, 6)}), 1),  # text
        (tiff({274: (3, 2, 6)}), 1),  # two of them
        (tiff({274: (3, 0, 6)}), 1),
        (tiff({274: (4, 1, 2**31)}), 1),
        (tiff({271: (2, 2**32 - 1, 2**32 - 1), 274: (3, 1, 6)}), 6),  # another tag is damaged
        (b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x08\0\0\0\0\0\0", 8),
    ],
)
def test_orientation_of_any_bytes(exif, expected):
    assert orientation(exif) == expected

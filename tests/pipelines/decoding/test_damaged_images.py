"""Damage that decoders pass over in silence, format by format: each is made here, and each is rejected."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.errors import InputRejected
from tests.support.image_files import (
    PNG_SIGNATURE,
    encoded,
    gif,
    grey_tiff,
    interlaced_rows,
    jpeg_of_size,
    png,
    png_chunk,
    png_rows,
    smooth,
    tiff,
    webp,
    webp_canvas,
)

LIMIT = 10**6
PICTURE = smooth()
ROWS = png_rows(PICTURE)


def pixels(data: bytes) -> np.ndarray:
    return decode_image(data, LIMIT).pixels_HW3


def rejected_as(data: bytes) -> str:
    with pytest.raises(InputRejected) as caught:
        decode_image(data, LIMIT)
    assert caught.value.stage == "decode"
    return caught.value.error_class


def pillow_takes(data: bytes) -> bool:
    """Whether Pillow alone gives a picture; so the rejection is ours."""
    Image.open(io.BytesIO(data)).load()
    return True


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


# PNG


def test_the_hand_made_png_is_sound():
    assert np.array_equal(pixels(png(83, 61, zlib.compress(ROWS))), PICTURE)


PNG_DAMAGE = {
    "crc of the picture": flipped(png(83, 61, zlib.compress(ROWS)), -13),
    "crc of the end": flipped(png(83, 61, zlib.compress(ROWS)), -1),
    "adler cut off": png(83, 61, zlib.compress(ROWS)[:-4]),
    "adler wrong": png(83, 61, flipped(zlib.compress(ROWS), -1)),
    "rows missing": png(83, 61, zlib.compress(ROWS[: 250 * 30])),
    "one byte missing": png(83, 61, zlib.compress(ROWS[:-1])),
    "more than its rows": png(83, 61, zlib.compress(ROWS + b"\0")),
    "no end chunk": png(83, 61, zlib.compress(ROWS))[:-12],
    "no picture": png(83, 61, b""),
    "crc of a text": png(83, 61, zlib.compress(ROWS), before=flipped(png_chunk(b"tEXt", b"a\0b"), -1)),
    "two headers": png(83, 61, zlib.compress(ROWS), before=png_chunk(b"IHDR", bytes(13))),
    "no header": b"\x89PNG\r\n\x1a\n" + png_chunk(b"IEND", b""),
    "no width": png(0, 61, zlib.compress(ROWS)),
    "a chunk past the end": png(83, 61, zlib.compress(ROWS))[:8] + b"\x7f\xff\xff\xffIHDR" + bytes(40),
}


@pytest.mark.parametrize("name", PNG_DAMAGE)
def test_png(name):
    expected = "Truncated" if name.split()[-1] in ("missing", "off", "chunk", "picture", "end") else "Corrupt"
    if name in ("crc of the picture", "crc of the end"):
        expected = "Corrupt"
    assert rejected_as(PNG_DAMAGE[name]) == expected


def test_a_png_is_summed_once(monkeypatch):
    data, summed = encoded(smooth(), "PNG"), []
    plain = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda part, start=0: summed.append(len(part)) or plain(part, start))
    pixels(data)
    assert data[37:41] == b"IDAT"
    assert summed.count(int.from_bytes(data[33:37], "big")) == 1


@pytest.mark.parametrize("name", ["crc of the picture", "adler cut off", "rows missing"])
def test_pillow_alone_takes_such_a_png(name):
    assert pillow_takes(PNG_DAMAGE[name])


@pytest.mark.parametrize("colours", [0, 2, 3, 4, 6])
def test_palettes_and_transparency_of_any_length(colours):
    """Pillow asks for them only where the pixels become RGB; what they cannot be is damage there as well."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, colours, 0, 0, 0))
    picture = png_chunk(b"IDAT", zlib.compress(bytes(5)[: 1 + {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]]))
    end = png_chunk(b"IEND", b"")
    for entries in (0, 1, 2, 255, 256, 257):
        palette = png_chunk(b"PLTE", bytes(3 * entries)) if entries else b""
        for length in (None, 0, 1, 2, 3, 6, 255, 256, 257, 999):
            transparent = b"" if length is None else png_chunk(b"tRNS", bytes(length))
            data = b"".join([PNG_SIGNATURE, header, palette, transparent, picture, end])
            if colours == 3 and (not 0 < entries <= 256 or (length or 0) > 256):
                assert rejected_as(data) == "Corrupt"
                continue
            try:
                assert pixels(data).shape == (1, 1, 3)
            except InputRejected as error:
                assert error.error_class in ("Corrupt", "Truncated")  # noqa: PT017
    if colours == 3:  # behind the picture, where Pillow does not look for it in time
        late = PNG_SIGNATURE, header, picture, png_chunk(b"PLTE", bytes(3)), end
        assert rejected_as(b"".join(late)) == "Corrupt"


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (8, 8), (9, 17), (83, 61)])
def test_interlaced_png_of_every_shape(size):
    """Put together by hand: Pillow does not write them."""
    width, height = size
    picture = smooth(height, width)
    rows = interlaced_rows(picture)
    assert np.array_equal(pixels(png(width, height, zlib.compress(rows), interlaced=1)), picture)
    assert rejected_as(png(width, height, zlib.compress(rows[:-1]), interlaced=1)) == "Truncated"


# JPEG

JPEGS = {
    "plain": {},
    "full colour": {"subsampling": 0},
    "restart markers": {"restart_marker_blocks": 3},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive with restart markers": {"progressive": True, "restart_marker_rows": 1},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_cut_and_closed_with_an_end_marker(name, mode):
    """libjpeg fills the rest with grey. A loss of two blocks of 8×8 pixels, in one scan, may pass."""
    data = encoded(Image.fromarray(smooth(64, 96)).convert(mode), "JPEG", quality=90, **JPEGS[name])
    whole = pixels(data)
    body = data.index(b"\xff\xda") + 20
    for end in {*range(body, len(data) - 2, max(1, len(data) // 15)), *range(len(data) - 8, len(data) - 2)}:
        if data[end - 1] == 0xFF:
            continue
        cut = data[:end] + b"\xff\xd9"
        try:
            left = pixels(cut)
        except InputRejected as error:
            assert error.error_class == "Truncated"  # noqa: PT017
            continue
        differing = np.abs(left.astype(int) - whole).max(axis=2) > 0
        rows, columns = np.nonzero(differing)
        assert "progressive" not in name or not len(rows)
        # Both may be colour, at half the size: one square of 16×16 pixels, and its neighbours by a pixel.
        assert not len(rows) or (rows.min() >= 47 and columns.min() >= 79)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (16, 1), (17, 33), (2, 4000), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_whole_jpeg_of_any_shape_is_taken_as_pillow_decodes_it(size, mode):
    image = Image.fromarray(smooth(*size)).convert(mode)
    for subsampling in (0, 1, 2):
        for options in JPEGS.values():
            data = encoded(image, "JPEG", **{"subsampling": subsampling, **options})
            assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


PLAIN = encoded(PICTURE, "JPEG", restart_marker_rows=1)
PROGRESSIVE = encoded(PICTURE, "JPEG", progressive=True)


def without(data: bytes, start: bytes, end: bytes) -> bytes:
    return data[: data.index(start)] + data[data.index(end) :]


JPEG_DAMAGE = {
    "no end marker": (PLAIN[:-2], "Truncated"),
    "half, and zeros": (PLAIN[: len(PLAIN) // 2] + bytes(len(PLAIN) // 2), "Truncated"),
    "half, and another file": (PLAIN[: len(PLAIN) // 2] + PLAIN, "Corrupt"),
    "a restart interval gone": (without(PLAIN, b"\xff\xd0", b"\xff\xd1"), "Corrupt"),
    "the last restart interval gone": (PLAIN[: PLAIN.rindex(b"\xff\xd2")] + b"\xff\xd9", "Truncated"),
    "scans gone": (PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xc4")] + b"\xff\xd9", "Truncated"),
    "more rows than data": (jpeg_of_size(PLAIN, 83, 400), "Truncated"),
    "no frame": (b"\xff\xd8\xff\xe0\0\x02\xff\xd9" + bytes(30), "Corrupt"),
    "no width": (jpeg_of_size(PLAIN, 0, 61), "Corrupt"),
}


@pytest.mark.parametrize("name", JPEG_DAMAGE)
def test_jpeg(name):
    data, expected = JPEG_DAMAGE[name]
    assert rejected_as(data) == expected


@pytest.mark.parametrize("marker", [0xC3, 0xC9, 0xCA, 0xF7])
def test_jpegs_of_other_kinds_are_named(marker):
    data = bytearray(PLAIN)
    data[data.index(b"\xff\xc0") + 1] = marker
    assert rejected_as(bytes(data)) == "Unsupported"


def test_what_stands_behind_a_jpeg_does_not_matter():
    assert np.array_equal(pixels(PLAIN + b"\0" * 99 + PLAIN), pixels(PLAIN))


def test_a_baseline_scan_that_names_no_coefficients():
    """Its header's last three bytes are 0 in files of some writers; libjpeg sends all 64 nevertheless."""
    spectral = PLAIN.index(b"\xff\xda") + 4 + 1 + 2 * 3
    assert PLAIN[spectral : spectral + 3] == b"\0\x3f\0"
    assert np.array_equal(pixels(PLAIN[:spectral] + bytes(3) + PLAIN[spectral + 3 :]), pixels(PLAIN))


@pytest.mark.parametrize("fill", [1, 2, 9])
def test_fill_bytes_behind_a_scan(fill):
    """Any number of FF may stand before a marker."""
    head = PROGRESSIVE.index(b"\xff\xda")
    filled = re.sub(rb"\xff([\xc4\xda\xd9])", lambda found: b"\xff" * fill + found[0], PROGRESSIVE[head:])
    assert len(filled) > len(PROGRESSIVE) - head + 10 * fill
    assert np.array_equal(pixels(PROGRESSIVE[:head] + filled), pixels(PROGRESSIVE))


# WebP


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_webp_cut_and_relabelled(lossless, share):
    """Both lengths say that the file is whole; the picture's own code does not."""
    data = encoded(smooth(200, 300), "WEBP", lossless=lossless)
    name, body = data[12:16], data[20:]
    assert np.array_equal(pixels(webp((name, body))), pixels(data))
    assert rejected_as(webp((name, body[: int(len(body) * share)]))) in ("Corrupt", "Truncated")


def test_webp():
    data = encoded(PICTURE, "WEBP")
    assert rejected_as(data[:-1]) == "Truncated"
    assert rejected_as(webp()) == "Corrupt"
    assert rejected_as(webp(webp_canvas(83, 61))) == "Corrupt"
    assert rejected_as(data[:16] + b"\xff\xff\xff\x7f" + data[20:]) == "Truncated"


# GIF


def test_gif():
    assert pixels(gif((30, 20), (30, 20), 600)).tolist() == np.full((20, 30, 3), 7).tolist()
    assert rejected_as(gif((30, 20), (30, 20), 599)) == "Truncated"
    assert rejected_as(gif((30, 20), (30, 20), 600)[:-1]) == "Truncated"
    assert rejected_as(b"GIF89a" + struct.pack("<HHBBB", 30, 20, 0x80, 0, 0) + bytes(6) + b";") == "Corrupt"
    assert rejected_as(b"GIF89a" + struct.pack("<HHBBB", 30, 20, 0x80, 0, 0) + bytes(6) + b"?;") == "Corrupt"


def test_what_a_gif_frame_leaves_of_its_canvas_is_no_damage():
    assert pixels(gif((30, 40), (30, 20), 600)).shape == (40, 30, 3)


# BMP and PPM


def test_bmp():
    data = encoded(PICTURE, "BMP")
    assert rejected_as(data[:-4]) == "Truncated"  # three bytes fill up the last row
    assert rejected_as(data[:30]) == "Truncated"
    run_lengths = data[:30] + struct.pack("<I", 1) + data[34:]
    assert rejected_as(run_lengths) == "Unsupported"


def test_ppm():
    data = encoded(PICTURE, "PPM")
    assert rejected_as(data[:-1]) == "Truncated"
    assert rejected_as(b"P6 83") == "Corrupt"
    assert rejected_as(b"P3 2 1 255 1 2 3 4 5") == "Truncated"


# TIFF


def grey(width=6, height=4, data=None, **changes) -> bytes:
    return tiff(grey_tiff(width, height, **changes), bytes(range(width * height)) if data is None else data)


def test_the_hand_made_tiff_is_sound():
    assert pixels(grey())[..., 0].ravel().tolist() == list(range(24))


TIFF_DAMAGE = {
    "cut": (grey()[:-1], "Truncated"),
    "strips not listed": (grey(t278=(4, 1, 1)), "Truncated"),
    "a strip too short": (grey(t279=(4, 1, 23)), "Truncated"),
    "a strip of nothing": (grey(t279=(4, 1, 0)), "Truncated"),
    "a strip behind the end": (grey(t273=(4, 1, 9999)), "Truncated"),
    "no strips": (grey(t273=None), "Corrupt"),
    "no lengths": (grey(t279=None), "Corrupt"),
    "no width": (grey(t256=(4, 1, 0)), "Corrupt"),
    "more strips than rows": (grey(t273=(4, 5, 8)), "Corrupt"),
    "a width of text": (grey(t256=(2, 1, 6)), "Corrupt"),
    "tiles of one pixel": (grey(t322=(4, 1, 1), t323=(4, 1, 1), t324=(4, 24, 8), t325=(4, 24, 8)), "Corrupt"),
    "no directory": (b"II*\0\xff\xff\0\0" + bytes(30), "Truncated"),
    "PackBits cut": (grey(data=b"\x05abcdef", t259=(3, 1, 32773), t279=(4, 1, 7)), "Corrupt"),
    "Deflate cut": (grey(data=zlib.compress(bytes(24))[:-4], t259=(3, 1, 8), t279=(4, 1, 7)), "Truncated"),
    "Deflate of fewer rows": (
        grey(data=zlib.compress(bytes(18)), t259=(3, 1, 8), t279=(4, 1, len(zlib.compress(bytes(18))))),
        "Truncated",
    ),
}


@pytest.mark.parametrize("name", TIFF_DAMAGE)
def test_tiff(name):
    data, expected = TIFF_DAMAGE[name]
    assert rejected_as(data) == expected


def test_a_tag_that_stands_there_twice():
    """Pillow and libtiff would each take another one."""
    data = grey(t255=(4, 1, 1))
    assert np.array_equal(pixels(data), pixels(grey()))
    assert rejected_as(data.replace(struct.pack("<HH", 255, 4), struct.pack("<HH", 256, 4))) == "Corrupt"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_strips(compression):
    """In the middle of each strip in turn, and of several: half of it gone, or zeros in its place."""
    data = encoded(smooth(200, 300), "TIFF", compression=compression)
    tags = Image.open(io.BytesIO(data)).tag_v2
    assert len(tags[273]) == 3
    for start, length in zip(tags[273], tags[279], strict=True):
        half = start + length // 2
        wiped = data[:half] + bytes(start + length - half) + data[start + length :]
        assert rejected_as(wiped) in ("Corrupt", "Truncated")
    if compression == "jpeg":  # the strip closed with an end marker: grey rows
        closed = data[: half - 2] + b"\xff\xd9" + bytes(start + length - half) + data[start + length :]
        assert pillow_takes(closed)
        assert rejected_as(closed) == "Truncated"
    if compression == "tiff_adobe_deflate":
        checksum = tags[273][0] + tags[279][0] - 1
        assert rejected_as(flipped(data, checksum)) == "Corrupt"

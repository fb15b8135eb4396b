"""Small files that would become large: each is answered in one small process, in time."""

import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from maskmill.pipelines.decoding.deflate import check_inflate
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.errors import InputRejected
from tests.support.image_files import (
    encoded,
    gif,
    grey_tiff,
    jpeg_of_size,
    png,
    png_chunk,
    png_rows,
    smooth,
    tiff,
    tiff_body,
    webp,
    webp_canvas,
)

LIMIT = 4_000_000
"""Pixels; a picture of that many takes 12 MB as RGB and 16 MB in Pillow."""

MEGABYTE = 1 << 20
PICTURE = smooth()
STREAM = zlib.compress(png_rows(PICTURE))
BOMB = zlib.compress(bytes(200 * MEGABYTE), 1)  # under a megabyte


def greedy_directory(tag: int, kind: int, value: int) -> bytes:
    """A TIFF directory of 1000 tags, each of which takes the whole file for its value: four gigabytes."""
    tags = dict.fromkeys(range(40000, 41000), (1, 4 * MEGABYTE, 8))
    return tiff({**tags, tag: (kind, 1, value)}, bytes(4 * MEGABYTE))


def progressive(scans: int) -> bytes:
    data = encoded(PICTURE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def exif_segments(exif: bytes) -> bytes:
    parts = (exif[at : at + 65000] for at in range(0, len(exif), 65000))
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)


def bombs() -> dict[str, tuple[bytes, str]]:
    jpeg, vp8 = encoded(PICTURE, "JPEG"), encoded(PICTURE, "WEBP")[20:]
    exif = greedy_directory(274, 3, 6)
    piece = tiff_body(grey_tiff(1, 1))
    return {
        "png of 2³¹ by 2³¹": (png(2**31 - 1, 2**31 - 1, STREAM), "TooLarge"),
        "png picture": (png(83, 61, BOMB), "Corrupt"),
        "png of one pixel": (png(1, 1, BOMB), "Corrupt"),
        "png zTXt": (png(83, 61, STREAM, before=png_chunk(b"zTXt", b"a\0\0" + BOMB)), "TooLarge"),
        "png iTXt": (png(83, 61, STREAM, before=png_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), "TooLarge"),
        "png profile": (png(83, 61, STREAM, before=png_chunk(b"iCCP", b"a\0\0" + BOMB)), "TooLarge"),
        "png text at the end": (png(83, 61, STREAM, after=png_chunk(b"zTXt", b"a\0\0" + BOMB)), "TooLarge"),
        "png of many texts": (
            png(83, 61, STREAM, before=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MEGABYTE))) * 999),
            "TooLarge",
        ),
        "png exif": (png(83, 61, STREAM, before=png_chunk(b"eXIf", exif)), "decoded"),
        "jpeg of 65500 by 65500": (jpeg_of_size(jpeg, 65500, 65500), "TooLarge"),
        "jpeg of more rows": (jpeg_of_size(jpeg, 2000, 2000), "Truncated"),
        "jpeg exif": (jpeg[:2] + exif_segments(exif) + jpeg[20:], "decoded"),
        "jpeg of many scans": (progressive(9999), "TooLarge"),
        "webp canvas": (webp(webp_canvas(1 << 24, 1 << 24), (b"VP8 ", vp8)), "TooLarge"),
        "webp animation's canvas": (webp(webp_canvas(1 << 16, 1 << 15, 2), (b"VP8 ", vp8)), "TooLarge"),
        "webp exif": (webp(webp_canvas(83, 61, 8), (b"VP8 ", vp8), (b"EXIF", exif)), "decoded"),
        "gif canvas": (gif((65535, 65535), (1, 1), 1), "TooLarge"),
        "gif frame past its canvas": (gif((1, 1), (65535, 65535), 1), "TooLarge"),
        "bmp": (encoded(PICTURE, "BMP")[:18] + b"\xff\xff\xff\x7f" * 2 + bytes(99), "TooLarge"),
        "bmp run lengths": (bmp_that_skips(), "Unsupported"),
        "ppm": (b"P6 99999999 99999999 255\n" + bytes(99), "TooLarge"),
        "tiff": (tiff(grey_tiff(2**31, 2**31), bytes(99)), "TooLarge"),
        "tiff tags": (greedy_directory(256, 4, 9), "Corrupt"),
        "tiff tile": (
            tiff(grey_tiff(9, 9, t322=(4, 1, 60000), t323=(4, 1, 60000), t324=(4, 1, 8), t325=(4, 1, 9))),
            "TooLarge",
        ),
        "tiff strip": (
            tiff(grey_tiff(2000, 2000, t259=(3, 1, 8), t279=(4, 1, len(BOMB))), BOMB),
            "Corrupt",
        ),
        "tiff strip's rows": (
            tiff(grey_tiff(2000, 2000, t259=(3, 1, 5), t278=(4, 1, 2**32 - 1), t279=(4, 1, 99)), bytes(99)),
            "Corrupt",
        ),
        "tiff of one strip for all": (
            tiff(grey_tiff(9, 900, t278=(4, 1, 1), t273=(4, 900, piece), t279=(4, 900, piece)), bytes(9999)),
            "Truncated",
        ),
        "tiff of one jpeg for all": (one_jpeg_for_all(1000), "Corrupt"),
        "jpeg 2000": (encoded(np.zeros((16, 16, 3), np.uint8), "JPEG2000"), "Unsupported"),
    }


def one_jpeg_for_all(strips: int) -> bytes:
    """Each strip is the same JPEG with four comments of 64 KiB, which would be copied for each of them."""
    grey = encoded(np.full((16, 16), 7, np.uint8), "JPEG")
    jpeg = grey[:2] + (b"\xff\xfe\xff\xff" + bytes(0xFFFD)) * 4 + grey[2:]
    changes = {"t259": (3, 1, 7), "t278": (4, 1, 16), "t279": (4, strips, 0)}
    tags = grey_tiff(16, 16 * strips, t273=(4, strips, 1), **changes)
    body = tiff_body(tags)
    tags |= {273: (4, strips, body), 279: (4, strips, body + 4 * strips)}
    lists = struct.pack("<I", body + 8 * strips) * strips + struct.pack("<I", len(jpeg)) * strips
    return tiff(tags, lists + jpeg)


def bmp_that_skips() -> bytes:
    """Run lengths that jump 255 rows of a million pixels at a time; Pillow fills them in."""
    header = struct.pack("<IIIIiiHHIIiiII", 0, 0, 1078, 40, 1_000_000, 4, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + header + bytes(1024) + b"\0\2\xff\xff" * 99 + b"\0\1"


BOMBS = bombs()
SCRIPT = """
import json, pathlib, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.errors import InputRejected
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data, started = path.read_bytes(), time.process_time()
    try:
        decode_image(data, int(sys.argv[3]))
        answer = "decoded"
    except InputRejected as error:
        answer = error.error_class
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(json.dumps([path.name, answer, time.process_time() - started, grown]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Class, seconds and growth of the process's peak by name; all in one process of 1.5 GiB at most."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (data, _) in BOMBS.items():
        (folder / name).write_bytes(data)
    words = [sys.executable, "-c", SCRIPT, str(folder), str(3 << 29), str(LIMIT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb(answers, name):
    answer, seconds, grown = answers[name]
    assert answer == BOMBS[name][1]
    assert seconds < 5
    assert grown < 160 * MEGABYTE  # among them the file itself, and a picture of LIMIT pixels in two forms


def most_memory(call: Callable[[], object]) -> int:
    """Bytes that Python held at once during a call, beyond those before it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_stream_is_unpacked_without_copies_of_it():
    stream = memoryview(zlib.compress(np.random.default_rng(0).bytes(8 * MEGABYTE), 0))
    assert most_memory(lambda: check_inflate([stream], 8 * MEGABYTE, 8 * MEGABYTE, "noise")) < MEGABYTE


def test_a_picture_in_very_many_pieces_is_not_kept_in_them():
    data = png(83, 61, STREAM, before=png_chunk(b"IDAT", b"") * 10_000)
    assert most_memory(lambda: decode_image(data, LIMIT)) < MEGABYTE


def test_a_strip_whose_jpeg_is_larger_than_the_strip():
    jpeg = encoded(np.zeros((999, 1999), np.uint8), "JPEG")
    with pytest.raises(InputRejected, match="a JPEG of 1999×999 pixels in a strip or tile of 16×16"):
        decode_image(tiff(grey_tiff(16, 16, t259=(3, 1, 7), t279=(4, 1, len(jpeg))), jpeg), LIMIT)


def test_the_orientation_of_a_greedy_directory_is_still_read():
    exif = greedy_directory(274, 3, 6)
    turned = decode_image(png(83, 61, STREAM, before=png_chunk(b"eXIf", exif)), LIMIT)
    assert (turned.orientation, turned.width, turned.height) == (6, 61, 83)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 4000), (4000, 2), (1, 9)])
def test_slivers_are_decoded(height, width):
    picture = smooth(height, width)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode_image(encoded(picture, kind), LIMIT).pixels_HW3, picture)
    for kind in ("JPEG", "WEBP", "GIF"):
        image = Image.fromarray(picture).convert("L" if kind == "GIF" else "RGB")
        assert decode_image(encoded(image, kind), LIMIT).pixels_HW3.shape == picture.shape

"""`docs/inputs.md`: every test it leans on is there, and what it says of names, maps and XMP holds."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.pipelines.decoding import jpeg
from maskmill.pipelines.decoding.image import FORMATS, decode_image
from maskmill.pipelines.errors import InputRejected
from tests.support.image_files import encoded, smooth

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
LIMIT = 10**6


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    there = set(
        re.findall(
            r"^def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py")), re.M
        )
    )
    assert len(named) > 40
    assert named <= there


def test_the_page_names_every_format_and_limit():
    rows = re.findall(r"^\| ([\w ,]+) \| (?!accepted)\S", TEXT, re.MULTILINE)
    assert {name.upper() for row in rows for name in row.split(", ")} >= set(FORMATS)
    assert f"| scans of a JPEG | {jpeg.MAX_SCANS}:" in TEXT


def test_the_name_says_nothing(tmp_path):
    for kind in ("PNG", "WEBP", "TIFF"):
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(encoded(smooth(), kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert np.array_equal(decode_image(path.read_bytes(), LIMIT).pixels_HW3, smooth())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P1 2 1 0 1", [255, 0]),
        (b"P2 3 1 100 0 50 100", [0, 128, 255]),  # scaled from their own white
        (b"P4 8 1\n\x0f", [255] * 4 + [0] * 4),
        (b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000), [0, 127, 255]),
        (b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.5, 1), [128, 255]),
    ],
)
def test_portable_maps(data, expected):
    grey = decode_image(data, LIMIT).pixels_HW3[0, :, 1].astype(int)
    assert np.abs(grey - expected).max() <= 1


def test_portable_maps_in_colour():
    assert decode_image(b"P3 1 1 255\n1 2 3\n", LIMIT).pixels_HW3.tolist() == [[[1, 2, 3]]]
    deep = b"P6 1 1 65535\n" + struct.pack(">3H", 0, 0x1234, 0xFFFF)
    assert decode_image(deep, LIMIT).pixels_HW3.tolist() == [[[0, 0x12, 255]]]
    with pytest.raises(InputRejected, match="Unsupported"):
        decode_image(b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n\0", LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_turns_nothing(kind):
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture = Image.fromarray(smooth())
    options = {"xmp": packet} if kind == "WEBP" else {}
    if kind == "TIFF":
        options = {"tiffinfo": {700: packet}}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", packet.decode())
        options = {"pnginfo": text}
    data = encoded(picture, kind, **options)
    if kind == "JPEG":
        segment = b"http://ns.adobe.com/xap/1.0/\0" + packet
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert b"tiff:Orientation" in data
    decoded = decode_image(data, LIMIT)
    assert (decoded.orientation, decoded.width, decoded.height) == (1, 83, 61)

"""Bytes to upright RGB: what is rejected and why first, then every colour mode and orientation by hand."""

import errno
import hashlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.errors import InputRejected
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.storage.paths import uri_of

LIMIT = 10**6

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)


def encoded(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return decode_image(data, LIMIT).pixels_HW3


def rejection(data: bytes, limit: int = LIMIT) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        decode_image(data, limit)
    return caught.value


def smooth(height=61, width=83) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(np.cumsum(rng.normal(0, 6, (height, width, 3)), 0) + 128, 0, 255).astype(np.uint8)


def samples() -> dict[str, bytes]:
    """The same picture in every format, and in their variants that decode on other paths."""
    image = Image.fromarray(smooth())
    grey = image.convert("L")
    return {
        "jpeg": encoded(image, "JPEG"),
        "jpeg progressive": encoded(image, "JPEG", progressive=True),
        "jpeg grey": encoded(grey, "JPEG"),
        "png": encoded(image, "PNG"),
        "png palette": encoded(image.quantize(32), "PNG"),
        "webp": encoded(image, "WEBP"),
        "webp lossless": encoded(image, "WEBP", lossless=True),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
        "tiff": encoded(image, "TIFF"),
        "tiff lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded(image, "TIFF", compression="jpeg"),
        "ppm": encoded(image, "PPM"),
    }


SAMPLES = samples()


def test_nothing_at_all():
    error = rejection(b"")
    assert (error.stage, error.error_class) == ("read", "EmptyFile")


@pytest.mark.parametrize(
    "data", [b"x", b"GIF", b"no photograph" * 9, bytes(4096), b"\xff" * 100, os.urandom(999)]
)
def test_not_an_image(data):
    error = rejection(data)
    assert (error.stage, error.error_class) == ("decode", "NotAnImage")


@pytest.mark.parametrize(
    "data",
    [
        encoded(np.zeros((4, 4), np.uint8), "EPS"),  # would run ghostscript
        encoded(np.zeros((4, 4), np.uint8), "PDF"),
        encoded(np.zeros((16, 16), np.uint8), "ICO"),
        b"8BPS\0\1" + bytes(40),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        encoded(Image.new("LAB", (4, 4)), "TIFF"),
        encoded(np.zeros((16, 16, 3), np.uint8), "JPEG2000"),
        encoded(np.zeros((16, 16, 3), np.uint8), "JPEG2000", no_jp2=True),
        b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(40),
        encoded(Image.new("1", (16, 16)), "TIFF", compression="group4"),
        encoded(np.zeros((16, 16), np.uint8), "TIFF", compression="lzma"),
    ],
    ids=["eps", "pdf", "ico", "psd", "heic", "svg", "lab", "jp2", "j2k", "avif", "tiff fax", "tiff lzma"],
)
def test_formats_that_are_not_taken(data):
    assert rejection(data).error_class == "Unsupported"


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_short(name):
    """A file cut anywhere is rejected, or, where only its tail is gone, gives the very same pixels."""
    data = SAMPLES[name]
    whole = pixels(data)
    ends = {*range(1, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))}
    rejected = {}
    for end in sorted(ends):
        try:
            left = pixels(data[:end])
        except InputRejected as error:
            rejected[end] = error.error_class
        else:
            assert end > len(data) - 40
            assert np.array_equal(left, whole)
    assert all(error_class in ("Truncated", "Corrupt") or end < 12 for end, error_class in rejected.items())
    assert list(rejected.values()).count("Truncated") > len(ends) / 2


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_half_a_file_is_truncated(name):
    assert rejection(SAMPLES[name][: len(SAMPLES[name]) // 2]).error_class == "Truncated"


def test_damaged_bytes_raise_nothing_else():
    rng = random.Random(3)
    messages = []
    for data in SAMPLES.values():
        for _ in range(40):
            damaged = bytearray(data)
            for _ in range(rng.choice([1, 3, 20])):
                damaged[rng.randrange(min(len(data), rng.choice([64, len(data)])))] = rng.randrange(256)
            try:
                decode_image(bytes(damaged), LIMIT)
            except InputRejected as error:
                messages.append(error.message)
    assert len(messages) > 200
    assert all(message and " at 0x" not in message for message in messages)


def test_messages_repeat_from_run_to_run():
    data = SAMPLES["jpeg"][:200]
    assert str(rejection(data)) == str(rejection(data))
    again = pickle.loads(pickle.dumps(rejection(data)))
    assert (again.stage, again.error_class, again.message) == (
        "decode", "Truncated", rejection(data).message,
    )  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_pixel_limit(name):
    assert pixels(SAMPLES[name]).shape == (61, 83, 3)
    assert decode_image(SAMPLES[name], 61 * 83).width == 83
    error = rejection(SAMPLES[name], 61 * 83 - 1)
    assert (error.stage, error.error_class) == ("decode", "TooLarge")
    assert "5062" in error.message


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def gif_of(width: int, height: int) -> bytes:
    """A GIF that asks for its whole screen to be filled before the first frame."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + b"\x21\xf9\x04\x09\0\0\0\0\x2c"
        + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        + b"\x02\x02\x44\x01\0;"
    )


def bmp_of(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(6)
    )


@pytest.mark.parametrize(
    "data",
    [png_of(2**31 - 1, 2**31 - 1), png_of(10**9, 1), gif_of(65535, 65535), bmp_of(2**31 - 1, 2**31 - 1)],
    ids=["png", "png one row", "gif", "bmp"],
)
def test_absurd_headers_allocate_nothing(data):
    """Decoded in a process that may take 2 GiB in all, under a limit far above Pillow's own."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from maskmill.pipelines.decoding.image import decode_image\n"
        "from maskmill.pipelines.errors import InputRejected\n"
        "try: decode_image(sys.stdin.buffer.read(), 500_000_000)\n"
        "except InputRejected as error: print(error.error_class)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert done.stdout == b"TooLarge\n"


def test_pillows_own_limit_does_not_matter(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert pixels(SAMPLES["png"]).shape == (61, 83, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert rejection(SAMPLES["png"], 100).error_class == "TooLarge"
    assert Image.MAX_IMAGE_PIXELS is None


def test_several_threads_keep_their_own_limits():
    def decode():
        for _ in range(30):
            assert pixels(SAMPLES["jpeg"]).shape == (61, 83, 3)
            assert rejection(SAMPLES["jpeg"], 100).error_class == "TooLarge"
        done.append(True)

    done = []
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


# Colours


def grey(values, kind="PNG", **options):
    return pixels(encoded(np.asarray(values), kind, **options))[..., 0].tolist()


def test_plain_rgb_is_left_alone():
    decoded = decode_image(SAMPLES["png"], LIMIT)
    assert np.array_equal(decoded.pixels_HW3, smooth())
    assert decoded.pixels_HW3.dtype == np.uint8
    assert decoded.pixels_HW3.flags["C_CONTIGUOUS"]
    assert decoded.pixels_HW3.flags["WRITEABLE"]
    assert (decoded.height, decoded.width, decoded.orientation) == (61, 83, 1)
    assert decoded.sha256 == hashlib.sha256(SAMPLES["png"]).hexdigest()
    assert decoded.data == SAMPLES["png"]


def test_grey_is_repeated():
    assert pixels(encoded(np.array([[0, 7], [200, 255]], np.uint8), "PNG")).tolist() == [
        [[0] * 3, [7] * 3],
        [[200] * 3, [255] * 3],
    ]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit(kind):
    assert grey(np.array([[True, False]]), kind) == [[255, 0]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(kind):
    """256 is the least value that is 1 of 255; 65535 is white."""
    assert grey(np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16), kind) == [[0, 0, 1, 127, 255]]


def sixteen_bit_png(colour_type, values, transparent=None):
    """A row of two pixels, as a PNG that Pillow cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, colour_type, 0, 0, 0))
    if transparent:
        data += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    row = b"\0" + struct.pack(f">{len(values)}H", *values)
    return data + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour():
    data = sixteen_bit_png(2, [0xFF00, 0x01FF, 0x00FF, 0x8000, 0xFFFF, 0])
    assert pixels(data).tolist() == [[[255, 1, 0], [128, 255, 0]]]


def test_a_transparent_colour_of_16_bits_is_left_as_it_is():
    grey_png = sixteen_bit_png(0, [0x1234, 0x3456], transparent=[0x1234])
    assert pixels(grey_png).tolist() == [[[0x12] * 3, [0x34] * 3]]
    colour_png = sixteen_bit_png(2, [0x1234] * 3 + [0x3456] * 3, transparent=[0x1234] * 3)
    assert pixels(colour_png).tolist() == [[[0x12] * 3, [0x34] * 3]]  # nor is the second taken for the first


def test_integers_and_floats_of_32_bits():
    assert grey(np.array([[-5, 45, 95]], np.int32), "TIFF") == [[0, 128, 255]]  # stretched
    assert grey(np.array([[0.0, 0.5, 0.25]], np.float32), "TIFF") == [[0, 128, 64]]  # 0 to 1: times 255
    assert grey(np.array([[-1.0, 0.0, 3.0]], np.float32), "TIFF") == [[0, 64, 255]]  # stretched
    assert grey(np.array([[np.nan, np.inf, 1.0, 0.0]], np.float32), "TIFF") == [[0, 0, 255, 0]]
    assert grey(np.array([[7.0, 7.0]], np.float32), "TIFF") == [[0, 0]]  # nothing to stretch
    assert grey(np.array([[np.nan, -np.inf]], np.float32), "TIFF") == [[0, 0]]


def test_transparency_is_over_white():
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [100, 0, 255, 51]]], np.uint8)
    # 51/255 = 1/5: 100/5 + 255·4/5 = 224; 0 + 204; 51 + 204
    assert pixels(encoded(rgba, "PNG")).tolist() == [[[255] * 3, [10, 20, 30], [224, 204, 255]]]
    assert pixels(encoded(rgba[:, :2], "WEBP", lossless=True)).tolist() == [[[255] * 3, [10, 20, 30]]]
    assert pixels(encoded(rgba, "TIFF")).tolist() == [[[255] * 3, [10, 20, 30], [224, 204, 255]]]
    la = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)])
    assert pixels(encoded(la, "PNG")).tolist() == [[[204] * 3]]


def test_transparent_palette_entries_and_colours():
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, "PNG")).tolist() == [[[200, 0, 0], [0, 200, 0], [0, 0, 200]]]
    white_second = [[[200, 0, 0], [255] * 3, [0, 0, 200]]]
    assert pixels(encoded(image, "PNG", transparency=1)).tolist() == white_second
    assert pixels(encoded(image, "GIF", transparency=1)).tolist() == white_second
    half = pixels(encoded(image, "PNG", transparency=bytes([255, 0, 51])))
    assert half.tolist() == [[[200, 0, 0], [255] * 3, [204, 204, 244]]]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8))
    assert pixels(encoded(rgb, "PNG", transparency=(1, 2, 3))).tolist() == [[[255] * 3, [1, 2, 4]]]


def test_cmyk():
    """Pure cyan is red's opposite; Adobe's JPEG stores it inverted, and says so."""
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert pixels(encoded(cmyk, "TIFF"))[8, 8].tolist() == [0, 255, 255]
    jpeg = encoded(cmyk, "JPEG", quality=100)
    assert b"Adobe" in jpeg
    assert np.abs(pixels(jpeg)[8, 8].astype(int) - [0, 255, 255]).max() <= 2
    black = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", quality=100)
    assert pixels(black)[8, 8].max() <= 2


def test_cmyk_without_adobes_marker_is_taken_as_inverted_too():
    """As OpenCV takes it, which reads the file on its own."""
    marked = encoded(Image.new("CMYK", (16, 16), (255, 30, 0, 60)), "JPEG", quality=100)
    at = marked.index(b"\xff\xee")
    plain = marked[:at] + marked[at + 2 + int.from_bytes(marked[at + 2 : at + 4], "big") :]
    assert b"Adobe" not in plain
    assert np.array_equal(pixels(plain), pixels(marked))
    theirs = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(pixels(plain).astype(int) - theirs).max() <= 2


def test_colour_profiles_are_not_applied():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert np.array_equal(pixels(encoded(smooth(), "PNG", icc_profile=profile)), smooth())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(kind):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(data).tolist() == [[[255, 0, 0]] * 4] * 3


def test_several_pictures_in_one_jpeg():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert pixels(data).min() == 255


# Orientation: the stored picture is the upright one below, turned so that the tag turns it back.

UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40
STORED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],  # mirrored
    3: [[6, 5, 4], [3, 2, 1]],  # upside down
    4: [[4, 5, 6], [1, 2, 3]],  # upside down and mirrored
    5: [[1, 4], [2, 5], [3, 6]],  # row 0 is the left side, column 0 the top
    6: [[3, 6], [2, 5], [1, 4]],  # row 0 is the right side, column 0 the top: turned clockwise it is upright
    7: [[6, 3], [5, 2], [4, 1]],  # row 0 is the right side, column 0 the bottom
    8: [[4, 1], [5, 2], [6, 3]],  # row 0 is the left side, column 0 the bottom
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", STORED)
def test_orientation(tag, kind):
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.repeat(np.array(STORED[tag], np.uint8)[..., None] * 40, 3, axis=2)
    decoded = decode_image(encoded(stored, kind, exif=exif, **options), LIMIT)
    assert decoded.pixels_HW3[..., 0].tolist() == UPRIGHT.tolist()
    assert (decoded.width, decoded.height, decoded.orientation) == (3, 2, tag)
    assert decoded.pixels_HW3.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("tag", STORED)
def test_orientation_of_images_in_bands(tag, monkeypatch):
    """A JPEG of blocks, decoded in bands of five rows."""
    monkeypatch.setattr("maskmill.pipelines.decoding.image._BAND_PIXELS", 5 * 48)
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = np.kron(np.array(STORED[tag], np.uint8) * 40, np.ones((16, 16), np.uint8))
    decoded = decode_image(encoded(stored, "JPEG", exif=exif, quality=100), LIMIT)
    blocks = decoded.pixels_HW3[8::16, 8::16, 0].astype(int)
    assert np.abs(blocks - UPRIGHT).max() <= 2
    assert (decoded.width, decoded.height, decoded.orientation) == (48, 32, tag)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_orientations_that_mean_nothing_are_recorded_and_not_applied(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    decoded = decode_image(encoded(smooth(), "PNG", exif=exif), LIMIT)
    assert decoded.orientation == tag
    assert np.array_equal(decoded.pixels_HW3, smooth())


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_spoil_an_image(exif):
    decoded = decode_image(encoded(smooth(), "JPEG", exif=exif), LIMIT)
    assert (decoded.orientation, decoded.width) == (1, 83)


# Reading


def test_read_input(tmp_path):
    path = tmp_path / "ä photo.jpg"
    path.write_bytes(b"bytes")
    assert read_input(str(path)) == b"bytes"
    with pytest.raises(InputRejected, match="TooLarge"):
        read_input(str(path), max_bytes=4)


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(path, "wb") as file:  # noqa: PTH123  (bytes)
        file.write(b"bytes")
    uri = uri_of(os.fsdecode(path))
    assert uri.encode()
    assert uri.startswith("file:///")
    assert read_input(uri) == b"bytes"


def test_what_is_the_files_own_fault(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    expected = {
        "empty": "EmptyFile", "folder": "Unreadable", "pipe": "Unreadable", "loop": "Unreadable",
        "gone": "Missing", "never": "Missing",
    }  # fmt: skip
    for name, error_class in expected.items():
        with pytest.raises(InputRejected) as caught:
            read_input(str(tmp_path / f"{name}.jpg"))
        assert (caught.value.stage, caught.value.error_class) == ("read", error_class)


def test_a_folder_that_is_gone_is_not_the_files_fault(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_input(str(tmp_path / "unmounted" / "photo.jpg"))


@pytest.mark.parametrize(
    ("number", "ours"), [(errno.EACCES, True), (errno.EIO, False), (errno.ESTALE, False)]
)
def test_which_failures_of_the_disk_are_final(tmp_path, monkeypatch, number, ours):
    """Root may read everything, so that the disk's answer is put in its mouth."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"bytes")

    def fail(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(InputRejected if ours else OSError) as caught:
        read_input(str(path))
    assert not ours or caught.value.error_class == "Unreadable"

"""`open_image`: what cannot be opened first, then against Pillow and against a run."""

import numpy as np
import pytest
from PIL import Image

from maskmill import open_image
from maskmill.pipelines.errors import InputRejected, UsageError
from tests.support.image_files import smooth


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a b%20#1.png"
    Image.fromarray(smooth(20, 30)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "error_class"),
    [
        ("gone.png", None, "Missing"),
        ("empty.png", b"", "EmptyFile"),
        ("text.png", b"no image", "NotAnImage"),
        ("cut.png", "cut", "Truncated"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(image, name, content, error_class):
    path = image.with_name(name)
    if content is not None:
        path.write_bytes(image.read_bytes()[:-40] if content == "cut" else content)
    with pytest.raises(InputRejected, match=f"^{error_class} .*{name}: ") as raised:
        open_image(path)
    assert raised.value.error_class == error_class


def test_too_large_and_nowhere(image, tmp_path):
    with pytest.raises(InputRejected, match="TooLarge"):
        open_image(image, max_pixels=599)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "no folder" / "a.png")
    with pytest.raises(UsageError, match="expected a local path, or s3://"):
        open_image("ftp://host/a.png")


def test_a_path_a_text_and_a_uri_are_the_same_pixels(image, monkeypatch):
    expected = np.asarray(Image.open(image))
    uri = image.as_uri()
    assert "%2520" in uri
    monkeypatch.chdir(image.parent)
    monkeypatch.setenv("HOME", str(image.parent))
    for path in (image, str(image), uri, image.name, f"~/{image.name}"):
        found = open_image(path)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


def test_pixels_are_upright_rgb(tmp_path):
    turned = Image.fromarray(smooth(20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    turned.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").shape == (30, 20, 3)
    Image.new("L", (4, 3), 7).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").tolist() == [[[7, 7, 7]] * 4] * 3

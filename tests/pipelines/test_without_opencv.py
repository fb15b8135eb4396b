"""A bare server: the loader does not find the desktop's libraries that OpenCV's wheel wants, so cv2 fails."""

import json
import os
import subprocess
import sys
import urllib.request
from importlib import metadata

import pytest
from PIL import Image
from skimage import data

from maskmill.pipelines.corpus.reader import Corpus
from tests.support.commands import start, words

LIBRARIES = ("libGL.so.1", "libglib-2.0.so.0", "libgthread-2.0.so.0", "libxcb.so.1")
ONE_AFTER_THE_OTHER = """
import json, sys
from maskmill.pipelines.cli import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps(codes))
"""


def has_plain_opencv():
    return any(found.metadata["Name"] == "opencv-python" for found in metadata.distributions())


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not has_plain_opencv(),
    reason="hides libraries from Linux's loader, and OpenCV's headless build wants none of them",
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment in which those libraries are no libraries: the loader takes them from this folder."""
    folder = tmp_path_factory.mktemp("libraries")
    for name in LIBRARIES:
        (folder / name).touch()
    environment = {"LD_LIBRARY_PATH": str(folder)}
    failed = subprocess.run(
        [sys.executable, "-c", "import cv2"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    last_line = failed.stderr.splitlines()[-1]
    assert last_line.startswith("ImportError")
    assert any(name in last_line for name in LIBRARIES)
    return environment


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One image that the gallery shows as it is, and one that it shows smaller."""
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(data.astronaut())
    image.resize((128, 128)).save(folder / "small.png")
    image.resize((1200, 1200)).save(folder / "large.jpg")
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory, bare, pictures, tiny_settings):
    """All commands in one process there, which starts faster than ten: the folder, exit codes and stderr."""
    folder = tmp_path_factory.mktemp("bare")
    corpus, coco, sa1b = folder / "corpus", folder / "coco", folder / "sa1b"
    laid_over = ("--non-overlapping", "area")
    commands = {
        "generate": words(pictures, corpus, tiny_settings, "--workers", "0"),
        "verify": ["verify", corpus],
        "status": ["status", corpus],
        "polygons": ["export", corpus, "--format", "coco", "--polygons", *laid_over, "--out", coco],
        "sa1b": ["export", corpus, "--format", "sa1b", *laid_over, "--out", sa1b],
        "import": ["import", sa1b / "sa_000000.tar", "--out", folder / "imported"],
        "report": ["report", corpus, "--json", "--workers", "1", "--against", coco / "annotations.json"],
        "gallery": ["gallery", corpus, "--out", folder / "page.html"],
        "agreement": ["evaluate", "--data", corpus, "--against", corpus],
        "evaluate": ["evaluate", "--data", corpus],
        "bench": ["bench", "--against", "released", "--set", "generator.min_mask_region_area=100"],
        "train": ["train", "--config", "train_nano"],
        "pretrain": ["pretrain", "--config", "pretrain_nano"],
    }
    typed = [[str(word) for word in command] for command in commands.values()]
    process = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(typed)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **bare},
    )
    assert process.returncode == 0, process.stderr
    codes = json.loads(process.stdout.splitlines()[-1])
    return folder, dict(zip(commands, codes, strict=True)), process.stderr


def test_a_corpus_is_made_checked_shown_and_handed_on(done):
    folder, codes, said = done
    needing = ("evaluate", "bench", "train", "pretrain")
    assert codes == {name: 2 if name in needing else 0 for name in codes}, said
    assert all(row["annotations"] for row in Corpus(folder / "corpus"))
    assert len(Corpus(folder / "imported")) == 2
    with Image.open(folder / "page_files" / "photo-000000.jpg") as picture:
        assert picture.size == (1024, 1024)


def test_what_needs_opencv_says_in_one_line_what_to_install(done):
    lines = [line for line in done[2].splitlines() if "OpenCV" in line or "cv2" in line]
    assert len(lines) == 4
    assert any(name in lines[0] for name in LIBRARIES)
    for line in lines:
        assert line.startswith("maskmill: this needs OpenCV, which cannot be loaded here: ")
        assert "apt install libgl1 libglib2.0-0" in line
        assert "pip install --force-reinstall opencv-python-headless" in line


def test_the_page_is_served(bare, done):
    process = start(["view", str(done[0] / "corpus")], **bare)
    try:
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"maskmill gallery" in answer.read()
        with urllib.request.urlopen(f"{address}files/thumb-000000.jpg", timeout=20) as answer:
            assert answer.read(2) == b"\xff\xd8"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_rays_workers_need_none_of_it(bare, pictures, tiny_settings, tmp_path):
    process = start(words(pictures, tmp_path / "corpus", tiny_settings, "--workers", "1"), **bare)
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert Corpus(tmp_path / "corpus").complete

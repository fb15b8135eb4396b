"""`maskmill bench`: what scripts read from its last line, and what it says when it cannot time anything."""

import json
from importlib import metadata

import cv2
import numpy as np
import pytest

from maskmill.pipelines.bench.bench import parse_size
from maskmill.pipelines.cli import main

QUICK = ["--config", "nano", "--set", "generator.points_per_side=4", "--repeat", "1", "--threads", "1"]


@pytest.fixture
def photographs(tmp_path):
    """Two pictures with something in them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        picture = np.full((90, 120, 3), 40 + 60 * number, np.uint8)
        cv2.circle(picture, (40, 45), 25, (200, 90, 30), -1)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def test_the_last_line_holds_what_scripts_rely_on(photographs, capsys):
    assert main(["bench", "--images", str(photographs), "--against", "released", *QUICK]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert any("ratio" in line for line in table)
    assert {"images_per_s", "masks_per_s", "stages", "peak_rss_bytes", "speedup", "matched"} <= set(result)
    assert {"config", "versions", "hardware"} <= set(result)
    assert result["images"] == 2
    assert result["images_per_s"] == pytest.approx(2 / result["seconds"])
    assert result["masks"] == result["released_masks"] > 0
    assert result["matched"] == 1
    assert result["speedup"] == pytest.approx(result["released_seconds"] / result["generator_seconds"])
    assert {"read", "decode", "encode", "prompt", "draw", "resample", "filter", "nms", "rle", "write"} <= set(
        result["stages"]
    )
    assert (
        sum(seconds for name, seconds in result["stages"].items() if name != "wait") < 2 * result["seconds"]
    )
    assert 100e6 < result["peak_rss_bytes"] < 20e9
    assert result["hardware"]["threads"] == 1


def test_noise_shows_the_speed_of_shapes_that_have_no_weights(photographs, capsys):
    noise = ["--random-weights", "--set", "generator.stability_score_thresh=0", "--against", "released"]
    one_grid = ["--set", "generator.crop_n_layers=0"]
    assert main(["bench", "--images", str(photographs), *noise, *one_grid, *QUICK]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["drops"]["predicted_iou"] < 2 * 3 * 16, "some masks pass"
    assert result["masks"] > 0
    assert result["matched"] == 1
    assert result["config"]["random_weights"] is True


def test_photographs_are_brought_to_a_size(photographs, capsys):
    assert main(["bench", "--images", str(photographs), "--size", "64x80", *QUICK]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["config"]["size"] == [64, 80]
    assert "speedup" not in result
    assert parse_size("1500×2250") == (1500, 2250)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "1500"], "--size: expected HEIGHTxWIDTH in pixels, for example 1500x2250, got '1500'"),
        (["--size", "0x10"], "--size: expected HEIGHTxWIDTH"),
        (["--against", "sam2"], "--against: expected released, got sam2"),
        (["--images", "nowhere"], "nowhere"),
        (["--against", "released", "--set", "model.name=vit_t"], "it has no TinyViT encoder"),
        (["--against", "released", "--set", "generator.drop_small_masks=true"], "it has no drop_small_masks"),
    ],
)
def test_wrong_use_ends_with_2_and_one_line(arguments, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_an_image_that_is_refused_is_not_timed(photographs, capsys):
    (photographs / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["bench", "--images", str(photographs), *QUICK]) == 2
    assert "cannot be timed, rejected: 1.png" in capsys.readouterr().err


def test_without_the_released_package_it_says_what_to_install(capsys, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert main(["bench", "--against", "released"]) == 2
    assert (
        "pip install 'matplotlib>=3.8' 'scikit-image>=0.24' segment-anything==1.0" in capsys.readouterr().err
    )

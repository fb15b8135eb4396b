"""The GPU benchmark where there is no GPU: what it says, and the parts that need none."""

import importlib.util
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from maskmill.pipelines.config.run import load_config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_2_and_one_line():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "bench_gpu: expected a GPU, and torch finds none\n"


def test_arguments(script, capsys):
    given = script.parse(["--images", "a", "--images", "b", "--set", "model.name=vit_b"])
    assert (given.images, given.set, given.size) == (["a", "b"], ["model.name=vit_b"], "1500x2250")
    assert (given.masks, given.repeat, given.without_released) == (100, 3, False)
    with pytest.raises(SystemExit) as ended:
        script.parse(["--masks", "many"])
    assert ended.value.code == 2
    assert "--masks" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        script.parse(["--help"])
    assert ended.value.code == 0


@pytest.mark.slow
def test_thresholds_leave_about_as_many_masks_as_asked_for(script, tmp_path):
    picture = np.full((90, 120, 3), 60, np.uint8)
    cv2.circle(picture, (40, 45), 25, (200, 90, 30), -1)
    cv2.imwrite(str(tmp_path / "0.png"), picture)
    config = load_config(
        "nano", ["generator.points_per_side=6", "generator.crop_n_layers=0", "model.device=cpu"]
    )
    found = script.with_thresholds(config, [str(tmp_path)], (60, 80), 10)
    sam = script.of_noise(config, script.sample_pixels([str(tmp_path)], config, (60, 80)))
    pixels_HW3 = script.sample_pixels([str(tmp_path)], config, (60, 80))
    (result,) = script.MaskGenerator(sam, found.generator).generate_batch([pixels_HW3])
    assert 10 <= len(result.masks) <= 13
    assert 30 <= result.candidates - result.drops["predicted_iou"] <= 33


def test_the_search_finds_the_last_threshold_that_leaves_enough(script):
    assert script.greatest(lambda threshold: threshold < 0.3) == pytest.approx(0.3, abs=1e-3)
    assert script.greatest(lambda _: False) == 0


def test_results_are_named_after_the_gpu_and_the_day(script, tmp_path):
    day = datetime(2026, 3, 4, tzinfo=UTC)
    path = script.write({"images_per_s": 1.5}, tmp_path / "results", "NVIDIA H200 (141 GB)", day)
    assert path == tmp_path / "results" / "nvidia-h200-141-gb-2026-03-04.json"
    assert json.loads(path.read_text()) == {"images_per_s": 1.5}

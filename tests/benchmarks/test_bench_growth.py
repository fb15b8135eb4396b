"""Benchmarks as they are typed: what they refuse, what they write. How fast anything is, is no test."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import bench_growth, bench_overhead
from benchmarks.support import growth_plot


@pytest.mark.parametrize(
    ("benchmark", "arguments", "says"),
    [
        (bench_growth, ["--repeat", "0"], "--repeat: expected a whole number of at least 1, got '0'"),
        (bench_growth, ["--threads", "two"], "expected a whole number of at least 1, got 'two'"),
        (bench_growth, ["--image", "nowhere.jpg"], "--image: expected a photograph, got nowhere.jpg"),
        (bench_growth, ["--image", __file__], "--image: expected a photograph"),
        (bench_growth, ["--points", "8"], "--points"),
        (growth_plot, [], "required: result, picture"),
        (growth_plot, ["nowhere.json", "growth.png"], "expected the JSON that bench_growth.py wrote"),
        (growth_plot, [__file__, "growth.png"], "expected the JSON that bench_growth.py wrote"),
        (bench_overhead, ["--points", "-1"], "expected a whole number of at least 1, got '-1'"),
        (bench_overhead, ["--images", "40", "--shard-size", "16"], "--images of at least 64"),
        (bench_overhead, ["--images", "33"], "in whole shards of 8, got 33"),
        (bench_overhead, ["--image", __file__], "--image: expected a photograph"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(benchmark, arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    printed, complaint = capsys.readouterr()
    assert (ended.value.code, printed) == (2, "")
    assert says in complaint
    assert complaint.count("\n") == 1


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder it wrote to, and what it printed."""
    folder = tmp_path_factory.mktemp("growth")
    # One thread: where other programs are at work, two wait for each other.
    command = [sys.executable, bench_growth.__file__, "--quick", "--threads", "1"]
    command += ["--results", str(folder / "results"), "--plot", str(folder / "plots" / "growth.png")]
    return folder, subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_quick_measures_every_curve(quick):
    _, done = quick
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {step["curve"] for step in result["steps"]} == {"points", "pixels", "masks"}
    for step in result["steps"]:
        assert 0 < step["encoder_floor_seconds"] < step["floor_seconds"] < step["published_floor_seconds"]
        assert step["masks"] <= step["drawn_masks"] <= step["candidates"] == 3 * step["points_per_side"] ** 2
        assert step["drawn_prompts"] <= step["drawn_masks"] <= 3 * step["drawn_prompts"]
        assert step["network_seconds"] + step["pixel_seconds"] == pytest.approx(step["seconds"])
    assert result["matrix_flops_per_s"] > 0
    assert result["hardware"]["threads"] == 1
    assert {"quiet", "config", "versions"} <= set(result)


def test_thresholds_that_fall_keep_more_masks(quick):
    steps = json.loads(quick[1].stdout.splitlines()[-1])["steps"]
    kept = [step["masks"] for step in steps if step["curve"] == "masks"]
    assert kept == sorted(kept)
    assert kept[-1] == 3 * 4**2  # nothing is dropped: all candidates of 4 × 4 points


@pytest.mark.slow
def test_quick_writes_what_it_printed_and_a_picture(quick):
    folder, done = quick
    (path,) = (folder / "results").iterdir()
    assert path.name.startswith("growth-")
    assert json.loads(path.read_text()) == json.loads(done.stdout.splitlines()[-1])
    with Image.open(folder / "plots" / "growth.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_the_whole_plan_spans_what_it_should():
    steps = bench_growth.full_plan(3).steps
    points = [step.options["points_per_side"] for step in steps if step.curve == "points"]
    megapixels = [step.size[0] * step.size[1] / 1e6 for step in steps if step.curve == "pixels"]
    assert (points[0], points[-1]) == (8, 64)
    assert (round(megapixels[0], 2), round(megapixels[-1])) == (0.25, 50)
    assert megapixels == sorted(megapixels)

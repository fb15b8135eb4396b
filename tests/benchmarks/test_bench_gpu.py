"""The GPU benchmark where there is no GPU: its command line, and the whole of it on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_gpu.py"
NOT_NEEDED = ("ray", "pycocotools", "upath", "typer", "rich", "cv2", "skimage", "pytest")
WITHOUT = f"""
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_NEEDED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
"""


@pytest.fixture
def run(tmp_path):
    """Run the benchmark from a folder of its own, in an environment that lacks what it may not need."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)

    def run(*arguments):
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "OUT": str(tmp_path / "out")}
        command = [sys.executable, SCRIPT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_2_and_one_line(run):
    done = run("--released")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "bench_gpu: expected a GPU, and torch finds none; try --device cpu --small\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu' (choose from"),
        (["--what"], "unrecognized arguments: --what"),
        (["--device"], "argument --device: expected one argument"),
        (["photos/"], "unrecognized arguments: photos/"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_line(arguments, expected, capsys):
    from benchmarks import bench_gpu

    with pytest.raises(SystemExit) as ended:
        bench_gpu.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"bench_gpu: {expected}")
    assert len(said.err.splitlines()) == 1


def test_it_writes_where_it_is_told_to(monkeypatch, tmp_path):
    from benchmarks import bench_gpu

    monkeypatch.delenv("OUT", raising=False)
    assert bench_gpu.parse([]).out == SCRIPT.parent / "results"
    monkeypatch.setenv("OUT", str(tmp_path))
    assert bench_gpu.parse([]).out == tmp_path
    assert bench_gpu.parse(["--out", "here"]).out == Path("here")


@pytest.mark.slow
def test_the_whole_of_it_on_a_cpu(run, tmp_path):
    pytest.importorskip("segment_anything")
    done = run("--device", "cpu", "--small", "--released")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    (path,) = (tmp_path / "out").iterdir()
    assert json.loads(path.read_text()) == result
    assert result["failed"] == []
    assert result.keys() >= {
        "hardware",
        "versions",
        "config",
        "images_per_s",
        "masks_per_s",
        "speedup",
        "seconds",
    }
    parts = result["parts"]
    assert list(parts) == [
        "parity_fp32",
        "parity_half",
        "prepare",
        "throughput",
        "memory",
        "released",
        "stages",
        "launches_and_waits",
        "lock",
        "click",
        "attention",
    ]
    assert parts["parity_fp32"]["masks"] >= 10
    assert parts["parity_fp32"]["matched_0.99"] >= 0.99
    assert parts["parity_half"]["as_loaded"]["matched_0.95"] >= 0.9
    assert parts["throughput"]["images"] == 6
    assert parts["throughput"]["masks_an_image"] >= 5
    assert parts["throughput"]["images_per_s"] == result["images_per_s"] > 0
    assert parts["released"]["masks"] == parts["released"]["our_masks"] >= 5
    assert parts["stages"].keys() >= {"encode", "prompt", "draw", "resample", "nms", "rle"}
    assert parts["launches_and_waits"]["launches"] is parts["launches_and_waits"]["waits"] is None
    assert 0 <= parts["lock"]["share_late"] <= 1
    assert parts["memory"]["peak_rss_bytes"] > parts["memory"]["weights_bytes"] > 0
    assert parts["memory"]["peak_gpu_bytes"] is None
    assert parts["click"]["seconds"] > 0
    assert {row["backend"] for row in parts["attention"]["calls"]} != {"none"}

"""`benchmarks/bench_training.py`: what it cannot do first; then all of it, very small."""

import json

import pytest
import torch

from benchmarks import bench_training
from benchmarks.bench_training import main
from maskmill.model import MODELS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "100"], "multiple of 16"),
        (["--images", "0"], "at least 1"),
        (["--model", "vit_t"], "vit_t"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.usefixtures("_threads")
def test_it_times_both_ways_and_prints_their_ratio(monkeypatch, capsys):
    calls = {"fused": 0, "in_parts": 0}
    for name in calls:
        way = getattr(bench_training, name)

        def counted(*arguments, name=name, way=way):
            calls[name] += 1
            return way(*arguments)

        monkeypatch.setattr(bench_training, name, counted)
    main(["--size", "64", "--images", "1", "--threads", "1", "--repeat", "1"])
    steps = 2  # the first warms up
    assert calls == dict.fromkeys(calls, steps * MODELS["nano"].depth)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ratio"] == pytest.approx(result["fused"] / result["in_parts"])
    assert result["versions"]["torch"] == torch.__version__


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

"""`benchmarks/bench_training.py`: what it cannot do first; then all of it, very small."""

import json

import pytest
import torch

from benchmarks.bench_training import main


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
def test_it_prints_both_and_their_ratio(capsys):
    main(["--size", "64", "--images", "1", "--threads", "1", "--repeat", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ratio"] == pytest.approx(result["fused"] / result["in_parts"])


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

"""`benchmarks/bench_read.py`: what it cannot do first; then all of it, very small."""

import json
import sys

import pytest

from benchmarks.bench_read import RATIOS, main


@pytest.mark.parametrize("typed", [["--rows", "0"], ["--rounds", "many"], ["--colour", "red"]])
def test_wrong_use_is_one_line(typed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_read.py", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_a_small_run(monkeypatch, capsys):
    typed = ["--rows", "6", "--masks", "3", "--distinct", "4", "--shard-size", "4", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_read.py", *typed])
    main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name, other in RATIOS.items():
        rates = result["images_per_s"]
        assert result["ratio"][name] == pytest.approx(rates[name] / rates[other])
    assert result["decoded_masks_per_s"] > 0

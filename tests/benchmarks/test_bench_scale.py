"""`benchmarks/bench_scale.py`, tiny: what it times is a whole run, deaths and all. How fast is no test."""

import json
import subprocess
import sys

import pytest

from benchmarks import bench_scale
from benchmarks.support import stand_ins


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workers", "0"], "--workers: expected a whole number of at least 1, got '0'"),
        (["--seconds", "soon"], "--seconds: expected a number of seconds above 0, got 'soon'"),
        (["--seconds", "nan"], "expected a number of seconds above 0, got 'nan'"),
        (["--deaths", "1.5"], "--deaths: expected a share from 0 to 1, got '1.5'"),
        (["--crew", "slurm"], "--crew: invalid choice: 'slurm'"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_scale.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        bench_scale.main()
    printed, complaint = capsys.readouterr()
    assert (ended.value.code, printed) == (2, "")
    assert says in complaint
    assert complaint.count("\n") == 1


@pytest.mark.slow
def test_quick_commits_each_shard_once_whoever_dies(tmp_path):
    """Processes on Ray, and threads; the program itself fails where a shard is missing or there twice."""
    command = [sys.executable, bench_scale.__file__, "--quick", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [(run["crew"], run["workers"], run["deaths"]) for run in result["runs"]] == [
        ("ray", 2, 1),
        ("threads", 64, 38),
    ]
    for run in result["runs"]:
        assert run["committed"] == run["shards"] == 4 * run["workers"]
        assert run["images"] == 8 * run["shards"]
        assert run["ideal_seconds"] == 4 * 0.5 <= run["wall_seconds"]
        assert 0 < run["efficiency"] <= run["efficiency_once_ready"]
        assert 0 <= run["idle_share"] < 1
        assert run["driver_cpu_seconds"] > 0
        assert run["first_shard_seconds"] > 0
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == result


def test_a_seat_tells_idle_from_busy(monkeypatch):
    clock = iter([0.0, 2.0, 3.0, 7.0, 10.0, 15.0])
    monkeypatch.setattr(stand_ins.time, "monotonic", lambda: next(clock))
    seat = stand_ins.Seat()  # ready at 0
    assert seat.begin() == 2.0  # without work until 2
    assert seat.begin() == 0.0  # the second shard in hand, at 3
    assert seat.finish() == 5.0  # 2 to 7, with the first of them
    assert seat.finish() == 3.0  # 7 to 10
    assert seat.begin() == 5.0  # without work from 10 to 15

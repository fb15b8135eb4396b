"""How far a run is, from its files: complete, half done, running, hanging, damaged."""

import json
import os
import re
import socket
import time
from dataclasses import asdict, replace

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format.layout import CORPUS, PLAN, shard_path
from maskmill.pipelines.generation.status import status_of
from maskmill.pipelines.storage import lease
from maskmill.pipelines.workers import local_crew
from tests.support.commands import words
from tests.support.corpora import fill_shard, make_corpus, make_photos, open_corpus

# Seven images in three shards of 3, 3 and 1; one is refused, one empty.


@pytest.fixture
def half_done(tmp_path):
    """A run of which two of three shards are there, committed a minute apart; and its folder."""
    run = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    for shard in (0, 2):
        fill_shard(run, shard)
    now = time.time()
    for shard, age in ((0, 70), (2, 10)):
        os.utime(shard_path(run.out, shard), (now - age, now - age))
    return run.out


def hold(out, since, left=60.0, **changes):
    """A lease, as another machine's process would have left it."""
    holder = replace(
        lease._this_process(),
        host="gpu-7",
        machine="another",
        since=lease._moment(time.time() - since),
        expires=lease._moment(time.time() + left),
        **changes,
    )
    (out / lease.LEASE).write_text(json.dumps(asdict(holder)))


def test_a_complete_corpus(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    status = status_of(out)
    assert (status.state, status.holder) == ("complete", "")
    assert (status.shards, status.shards_planned, status.images, status.images_planned) == (3, 3, 7, 7)
    assert status.statuses == {"ok": 5, "empty": 1, "rejected": 1}
    assert status.rejects == {"NotAnImage": 1}
    assert (status.seconds_left, status.resume) == (None, None)


def test_a_run_that_was_stopped(half_done):
    status = status_of(half_done)
    assert (status.state, status.shards, status.images) == ("stopped", 2, 4)
    assert status.statuses == {"ok": 3, "empty": 0, "rejected": 1}
    assert status.rejects == {"NotAnImage": 1}
    assert status.images_per_second == pytest.approx(1 / 60)  # what came after the first shard
    assert status.seconds_left is None
    assert status.last_commit.endswith("+00:00")
    (part,) = (half_done / PLAN).iterdir()
    os.utime(part, (shard_path(half_done, 0).stat().st_mtime - 20,) * 2)
    assert status_of(half_done).images_per_second == pytest.approx(4 / 80)  # the first shard took 20 s
    assert (status.images_in_hand, status.resume) == (0, f"maskmill resume {half_done}")


def test_all_shards_of_a_corpus_that_was_not_closed(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    (out / CORPUS).unlink()
    status = status_of(out)
    assert (status.state, status.images, status.images_planned) == ("stopped", 7, 7)
    assert status.resume == f"maskmill resume {out}"


def test_a_run_that_lives(half_done):
    hold(half_done, since=100, images_in_hand=2)
    status = status_of(half_done)
    assert (status.state, status.images_in_hand, status.resume) == ("running", 2, None)
    assert "gpu-7" in status.holder
    assert status.images_per_second == pytest.approx(
        4 / 100, rel=0.05
    )  # until now: one that hangs slows down
    assert status.seconds_left == pytest.approx(3 / status.images_per_second)


def test_a_run_tells_how_many_images_of_its_shards_in_hand_are_done(
    photos, tiny_settings, tmp_path, monkeypatch
):
    seen, shard_steps, out = [], local_crew.shard_steps, tmp_path / "corpus"

    def watched(*arguments):
        steps = shard_steps(*arguments)
        while True:
            try:
                tally = next(steps)
            except StopIteration as done:
                return done.value
            yield tally
            end = time.monotonic() + 5
            while status_of(out).images_in_hand != tally.images and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(status_of(out).images_in_hand)

    monkeypatch.setattr(local_crew, "shard_steps", watched)
    monkeypatch.setattr(lease, "RENEWALS", 6000)
    assert main(words(photos / "coffee", out, tiny_settings, "--workers", "0")) == 0
    assert seen == [1, 2, 1], "of a shard of two images and one of one"
    assert status_of(out).images_in_hand == 0


def test_only_this_runs_commits_and_only_the_last_hours_count(half_done):
    os.utime(shard_path(half_done, 0), (time.time() - 9000,) * 2)
    hold(half_done, since=7200)
    assert status_of(half_done).images_per_second == pytest.approx(1 / 3600, rel=0.05)
    hold(half_done, since=5)
    status = status_of(half_done)
    assert (status.state, status.images_per_second, status.seconds_left) == ("running", None, None)


@pytest.mark.parametrize("ended", ["run out", "gone"])
def test_a_lease_that_was_left_behind_is_no_run(half_done, ended):
    if ended == "run out":
        hold(half_done, since=100, left=-1)
    else:
        hold(half_done, since=100)
        content = json.loads((half_done / lease.LEASE).read_text())
        content |= {"host": socket.gethostname(), "machine": lease._machine(), "pid": 2**22 + 1}
        (half_done / lease.LEASE).write_text(json.dumps(content))
    assert status_of(half_done).state == "stopped"


def test_before_the_first_commit(tmp_path):
    run = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    status = status_of(run.out)
    assert (status.state, status.shards, status.images, status.images_planned) == ("stopped", 0, 0, 7)
    assert (status.last_commit, status.images_per_second) == (None, None)


def test_the_command_prints_a_table_or_one_line_of_json(half_done, capsys):
    assert main(["status", str(half_done)]) == 0
    assert capsys.readouterr().out.endswith(f"\ngo on with: maskmill resume {half_done}\n")
    hold(half_done, since=100, images_in_hand=2)
    assert main(["status", str(half_done)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"images in shards in hand +│ 2 ", table)
    for expected in (
        "running on gpu-7",
        "2 of 3 (66.7%)",
        "4 of 7 (57.1%)",
        "rejected: NotAnImage",
        "time left",
    ):
        assert expected in table
    assert "maskmill resume" not in table
    assert main(["status", str(half_done), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == status_of(half_done).as_json().keys()
    assert (found["state"], found["images"], found["rejects"]) == ("running", 4, {"NotAnImage": 1})


@pytest.mark.parametrize("damage", ["nothing", "no corpus", "no plan", "shard", "totals"])
def test_what_cannot_be_told_is_an_error(tmp_path, damage, capsys):
    out = tmp_path / "corpus"
    if damage not in ("nothing", "no corpus"):
        make_corpus(make_photos(tmp_path / "photos"), out)
    if damage == "no corpus":
        out.mkdir()
    elif damage == "no plan":
        for part in (out / PLAN).iterdir():
            part.unlink()
    elif damage == "shard":
        (out / CORPUS).unlink()
        shard_path(out, 1).write_bytes(b"PAR1 and no more")
    elif damage == "totals":
        (out / CORPUS).write_text('{"totals": {"ok": 1}}')
    with pytest.raises(CorpusError):
        status_of(out)
    assert main(["status", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

"""The life of a corpus being made: what is left behind however it ends, first of all when it ends early."""

import os
import signal

import pyarrow as pa
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import CorpusError, IncompleteRun
from maskmill.pipelines.format.layout import CORPUS
from maskmill.pipelines.storage.lease import LEASE, held
from maskmill.pipelines.writing import close
from maskmill.pipelines.writing.go_on import GoOn
from maskmill.pipelines.writing.open import open_run
from maskmill.pipelines.writing.session import Session
from tests.support.commands import start, wait_for_a_shard
from tests.support.corpora import make_record
from tests.support.releases import release

LEFT = ".maskmill-shard-000001.parquet-0f.tmp"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "corpus"


def test_a_session_that_ends_before_it_is_opened_leaves_nothing_behind(out):
    go_on = GoOn(["generate"])
    with Session(out, go_on, print) as session:
        session.look()
    assert go_on.has_shards is False
    assert not out.exists()


def test_a_folder_of_something_else_is_left_as_it_is(out):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(CorpusError, match="neither empty nor a corpus"), Session(out, GoOn(), print) as one:
        one.look()
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_corpus_that_another_run_is_at_is_not_swept(out):
    with held(out, print):
        (out / LEFT).write_bytes(b"half")
        with pytest.raises(IncompleteRun, match="at work on it"), Session(out, GoOn(), print) as session:
            session.open(pytest.fail)
    assert (out / LEFT).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_however_it_ends_the_lease_is_released_and_temporary_files_are_swept_away(out, error):
    def begin():
        assert (out / LEASE).exists(), "the lease comes first"
        (out / LEFT).write_bytes(b"half")
        raise error

    with pytest.raises(error), Session(out, GoOn(), print) as session:
        session.open(begin)
    assert list(out.iterdir()) == []


def test_once_the_lease_is_lost_nothing_is_swept_and_nothing_finished(out, monkeypatch):
    """What is there then is the other run's."""
    keys = [f"{number}.png" for number in range(3)]
    inputs = pa.table({"key": keys, "uri": [f"/{key}" for key in keys]})
    finished = []
    monkeypatch.setattr(close, "finish_corpus", lambda *_: finished.append(1))

    def finish():
        with Session(out, GoOn(), print) as session:
            run = session.open(lambda: open_run(out, inputs, make_record(), 2))
            assert session.left(run) == [0, 1]
            session._lease._lost_to = "another one"
            (out / LEFT).write_bytes(b"half")
            session.finish(run)

    with pytest.raises(IncompleteRun, match="another run has taken over, this one ends: another one"):
        finish()
    assert finished == []
    assert (out / LEFT).exists()


@pytest.mark.slow
def test_an_import_that_is_interrupted_sweeps_and_says_how_to_go_on(tmp_path, out):
    folder = release(tmp_path / "sa", range(640))
    words = ["import", str(folder), "--out", str(out)]
    process = start(words)
    wait_for_a_shard(process, out, 2)  # it has heard of the first by then
    (out / "shards" / LEFT).write_bytes(b"half")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith(f"; committed shards stay, go on with: maskmill import {folder} --out {out}\n")
    assert not [name for _, _, names in os.walk(out) for name in names if name in (LEFT, LEASE, CORPUS)]
    assert main(words) == 0

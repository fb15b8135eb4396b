"""Refused images run again: nothing to do first, then the rows that are left, then kills and late workers."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.format import manifest
from maskmill.pipelines.format.layout import SHARDS, shard_path
from maskmill.pipelines.format.plan import read_plan
from maskmill.pipelines.format.records import ShardTask
from maskmill.pipelines.generation import generate
from maskmill.pipelines.storage import atomic, retries
from maskmill.pipelines.workers import shard as worker
from maskmill.pipelines.workers.shard import run_shard
from maskmill.pipelines.workers.tasks import Job
from maskmill.pipelines.writing import rejects
from maskmill.pipelines.writing.rejects import shard_sha256


def run(collection, out, settings, *more):
    """Three images a shard, their bytes kept."""
    typed = ["generate", str(collection), "--out", str(out), "--workers", "0", *more]
    for setting in [*settings, "shard_size=3", "embed_images=true"]:
        typed += ["--set", setting]
    return main(typed)


@pytest.fixture(scope="module")
def made(photos, tiny_settings, tmp_path_factory):
    """Photographs with three that are none, and their corpus: shards (ok, NotAnImage, ok) and (two, ok)."""
    folder = tmp_path_factory.mktemp("refused")
    collection = folder / "photos"
    collection.mkdir()
    for name, source in (("a", "coffee/0"), ("c", "rocket/0"), ("f", "chelsea/0")):
        shutil.copy(photos / f"{source}.png", collection / f"{name}.png")
    (collection / "b.png").write_text("not an image")
    (collection / "d.png").touch()
    (collection / "e.png").write_text("not an image either")
    assert run(collection, folder / "corpus", tiny_settings) == 0
    return folder


@pytest.fixture
def mended(made, photos, tmp_path):
    """The same corpus, after `b.png` became a photograph."""
    before = made / "photos" / "b.png"
    text = before.read_text()
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    shutil.copy(photos / "astronaut/0.png", before)
    yield tmp_path / "corpus"
    before.write_text(text)


def state_of(out):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.*")}


def classes(out):
    rows = [row for shard in (0, 1) for row in pq.read_table(shard_path(out, shard)).to_pylist()]
    return [row["error"] and row["error"]["class"] for row in rows]


def test_a_class_that_no_row_has_is_one_line_and_touches_nothing(made, tiny_settings, capsys):
    before = state_of(made / "corpus")
    assert run(made / "photos", made / "corpus", tiny_settings, "--retry-rejects", "Truncatd") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(
        "no image is rejected as Truncatd; the classes there are: EmptyFile (1), NotAnImage (2)"
    )
    assert state_of(made / "corpus") == before


def test_it_does_not_go_with_overwrite(made, tiny_settings, capsys):
    more = ("--retry-rejects", "NotAnImage", "--overwrite")
    assert run(made / "photos", made / "corpus", tiny_settings, *more) == 2
    assert "expected --overwrite or --retry-rejects, not both" in capsys.readouterr().err


def test_the_class_alone_is_run_again_and_every_other_row_is_copied(mended, made, tiny_settings, tmp_path):
    before = [pq.read_table(shard_path(mended, shard)) for shard in (0, 1)]
    assert run(made / "photos", mended, tiny_settings, "--retry-rejects", "NotAnImage") == 0
    assert classes(mended) == [None, None, None, "EmptyFile", "NotAnImage", None]
    after = [pq.read_table(shard_path(mended, shard)) for shard in (0, 1)]
    for rows in ([0, 2],):
        assert after[0].take(rows).equals(before[0].take(rows))
    assert after[1].equals(before[1])
    assert main(["verify", str(mended)]) == 0
    fresh = tmp_path / "fresh"
    assert run(made / "photos", fresh, tiny_settings) == 0
    for shard in (0, 1):
        assert pq.read_table(shard_path(fresh, shard)).equals(after[shard])
    corpus_json = (mended / "corpus.json").read_text()
    assert '"NotAnImage": 1' in corpus_json


def test_classes_may_be_several(mended, made, tiny_settings):
    shard = shard_path(mended, 1).read_bytes()
    more = ("--retry-rejects", "EmptyFile", "--retry-rejects", "NotAnImage")
    assert run(made / "photos", mended, tiny_settings, *more) == 0
    assert classes(mended) == [None, None, None, "EmptyFile", "NotAnImage", None]
    assert shard_path(mended, 1).read_bytes() != shard, "its footer has the time of both"
    assert main(["verify", str(mended)]) == 0


@pytest.mark.parametrize("killed", ["before the first shard", "between two shards", "before corpus.json"])
@pytest.mark.parametrize("again", [(), ("--retry-rejects", "NotAnImage")])
def test_killed_at_any_point_it_is_finished_by_the_same_command_or_without_the_option(
    mended, made, tiny_settings, monkeypatch, killed, again
):
    def die(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        if killed == "before corpus.json":
            broken.setattr(generate.close, "finish_corpus", die)
        else:
            replace_rows, calls = worker.replace_rows, []

            def replace_some(*arguments):
                calls.append(1)
                return die() if len(calls) > (killed == "between two shards") else replace_rows(*arguments)

            broken.setattr(worker, "replace_rows", replace_some)
        assert run(made / "photos", mended, tiny_settings, "--retry-rejects", "NotAnImage") == 130
    assert not (mended / "corpus.json").exists()
    assert run(made / "photos", mended, tiny_settings, *again) == 0
    done = again or killed != "before the first shard"
    assert classes(mended)[1] == (None if done else "NotAnImage")
    assert main(["verify", str(mended)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rename", [1, 2, 3, 4])  # the record of before, two shards, corpus.json
def test_kill_9_at_any_file_that_takes_anothers_place(mended, made, tiny_settings, tmp_path, rename):
    inject = Path(__file__).parents[2] / "chaos" / "inject"
    chaos = {"point": "rename", "call": rename, "mark": str(tmp_path / "killed")}
    typed = ["generate", str(made / "photos"), "--out", str(mended), "--workers", "0"]
    for setting in [*tiny_settings, "shard_size=3", "embed_images=true"]:
        typed += ["--set", setting]
    done = subprocess.run(
        [sys.executable, "-m", "maskmill", *typed, "--retry-rejects", "NotAnImage"],
        env={**os.environ, "PYTHONPATH": str(inject), "MASKMILL_CHAOS": json.dumps(chaos)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(made / "photos", mended, tiny_settings) == 0
    assert main(["verify", str(mended)]) == 0
    assert run(made / "photos", mended, tiny_settings, "--retry-rejects", "NotAnImage") == 0
    assert classes(mended) == [None, None, None, "EmptyFile", "NotAnImage", None]
    assert main(["verify", str(mended)]) == 0


def test_a_storage_that_fails_leaves_the_old_shard_whole(mended, made, tiny_settings, monkeypatch, capsys):
    before = shard_path(mended, 0).read_bytes()
    replace = atomic.replace

    def fail_in_shards(path, write, *check):
        if path.parent.name == SHARDS:
            raise OSError("the disk is full")
        replace(path, write, *check)

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    with monkeypatch.context() as broken:
        broken.setattr(atomic, "replace", fail_in_shards)
        assert run(made / "photos", mended, tiny_settings, "--retry-rejects", "NotAnImage") == 4
    assert "2 of 2 shards left undone" in capsys.readouterr().err
    assert shard_path(mended, 0).read_bytes() == before
    assert run(made / "photos", mended, tiny_settings) == 0
    assert main(["verify", str(mended)]) == 0


@pytest.mark.parametrize(("failures", "code"), [(2, 0), (99, 4)])
def test_a_shard_that_the_storage_does_not_give_is_tried_again_and_then_left_undone(
    mended, made, tiny_settings, monkeypatch, capsys, failures, code
):
    calls, read = [], pq.ParquetFile.read

    def fail(file, columns=None, **options):
        if columns is None:  # a worker's reading; the driver asks for two columns
            calls.append(1)
            if len(calls) <= failures:
                raise OSError(errno.EIO, "Input/output error")
        return read(file, columns, **options)

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    with monkeypatch.context() as broken:
        broken.setattr(pq.ParquetFile, "read", fail)
        assert run(made / "photos", mended, tiny_settings, "--retry-rejects", "NotAnImage") == code
    said = capsys.readouterr().err
    assert ("2 of 2 shards left undone" in said and "Input/output error" in said) == (code == 4)
    assert classes(mended)[1] == (None if code == 0 else "NotAnImage")


def test_rows_that_the_storage_does_not_give_while_the_refused_ones_are_looked_for_are_asked_for_again(
    mended, made, tiny_settings, monkeypatch
):
    calls, read = [], pq.ParquetFile.read

    def fail(file, columns=None, **options):
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, columns, **options)

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    assert run(made / "photos", mended, tiny_settings, "--retry-rejects", "NotAnImage") == 0
    assert classes(mended)[1] is None


class Unused:
    def generate_batch(self, _images):
        raise AssertionError("there is no photograph to ask about")


def test_a_worker_that_comes_late_leaves_a_closed_corpus_alone(made, tiny_settings):
    out = made / "corpus"
    before = state_of(out)
    images = read_plan(out).images(1)[:2]
    job = Job(out, load_config(None, tiny_settings), "f" * 64)
    replaces = shard_sha256(out, 1)
    receipt = run_shard(ShardTask(1, tuple(images), replaces=replaces), Unused(), job)
    assert not receipt.committed
    assert state_of(out) == before


def test_a_worker_that_comes_late_leaves_a_shard_alone_that_another_has_replaced(
    mended, tiny_settings, monkeypatch
):
    """The other one is faster while this one writes; the corpus is about to be closed, and is not yet."""
    manifest.reopen(mended, {1})
    images = read_plan(mended).images(1)[:2]
    job = Job(mended, load_config(None, tiny_settings), "f" * 64)
    task = ShardTask(1, tuple(images), replaces=shard_sha256(mended, 1))
    write, path = rejects.write_parquet, shard_path(mended, 1)

    def overtaken(file, *content):
        write(file, *content)
        monkeypatch.setattr(rejects, "write_parquet", write)
        assert run_shard(task, Unused(), job).committed
        replaced.append((path.read_bytes(), path.stat().st_mtime_ns))

    replaced = []
    monkeypatch.setattr(rejects, "write_parquet", overtaken)
    assert not run_shard(task, Unused(), job).committed
    assert replaced == [(path.read_bytes(), path.stat().st_mtime_ns)]
    assert not [found for found in mended.rglob("*") if atomic.is_temporary(found.name)]

"""Making files visible: what a failure leaves behind first, then races, then what is swept away."""

import os
import threading

import pytest

from maskmill.pipelines.storage import atomic


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_folder_that_is_not_there_has_nothing_to_sweep(tmp_path):
    assert atomic.sweep(tmp_path / "missing") == 0


def test_what_is_replaced_is_looked_at_when_all_is_on_the_disk(tmp_path, monkeypatch):
    """And what the look finds wrong leaves the old file, and no other."""
    done, fsync, path = [], os.fsync, tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("flushed") or fsync(descriptor))

    def check():
        done.append(path.read_bytes())
        raise LookupError("another one")

    with pytest.raises(LookupError):
        atomic.replace(path, lambda file: file.write(b"new"), check)
    assert done == ["flushed", b"old"]
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]


def test_a_writer_that_raises_leaves_nothing(tmp_path):
    def write(file):
        file.write(b"half")
        raise RuntimeError("bug")

    for make in (atomic.create, atomic.replace):
        with pytest.raises(RuntimeError, match="bug"):
            make(tmp_path / "folder" / "file", write)
    assert files(tmp_path) == []


def test_bytes_and_a_writer_of_them_make_the_same_file(tmp_path):
    for number, content in enumerate([b"new", lambda file: file.write(b"new")]):
        path = tmp_path / str(number)
        assert atomic.create(path, content) is True
        assert atomic.create(path, b"another") is False
        assert path.read_bytes() == b"new"
        atomic.replace(path, content)
        assert path.read_bytes() == b"new"
    assert files(tmp_path) == ["0", "1"]


def test_the_second_notices_even_at_the_last_moment(tmp_path):
    """The other worker's file appears while this one writes."""
    path = tmp_path / "file"
    assert atomic.create(path, lambda file: (file.write(b"second"), path.write_bytes(b"first"))) is False
    assert path.read_bytes() == b"first"
    assert files(tmp_path) == ["file"]


def test_many_workers_one_shard(tmp_path):
    barrier, won = threading.Barrier(8), []

    def commit(number):
        content = str(number).encode() * 1000
        barrier.wait()
        if atomic.create(tmp_path / "file", lambda file: file.write(content)):
            won.append(content)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "file").read_bytes() == won[0]
    assert files(tmp_path) == ["file"]


def test_sweeping_takes_only_what_is_ours(tmp_path):
    ours = ".maskmill-shard-000003.parquet-0f.tmp"
    theirs = [".maskmill-notes", "shard-000003.parquet.tmp", ".tmp", "shard-000003.parquet"]
    for name in [ours, *theirs]:
        (tmp_path / name).touch()
    assert atomic.sweep(tmp_path) == 1
    assert files(tmp_path) == sorted(theirs)


def test_a_temporary_file_that_was_swept_away_is_a_failure_not_a_commit(tmp_path):
    """As when a run is started again while a lost worker still writes."""
    with pytest.raises(FileNotFoundError):
        atomic.create(tmp_path / "file", lambda _: atomic.sweep(tmp_path))
    assert files(tmp_path) == []

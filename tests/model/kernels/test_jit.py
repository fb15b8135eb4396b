"""Compiled loops are kept on the disk where that is possible, and run where it is not."""

import logging
from pathlib import Path

import numba
import pytest

from maskmill.model.kernels import jit


def double(number):
    return 2 * number


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The files that numba keeps of `double`: its index, and the compiled code."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    jit._say_that_nothing_is_kept.cache_clear()
    assert jit.compiled(double)(2) == 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".nbc", ".nbi"]
    return files


def test_what_is_kept_is_not_compiled_again(kept, caplog):
    again = jit.compiled(double)
    assert again(3) == 6
    assert again.stats.cache_hits
    assert not caplog.records


def test_files_that_cannot_be_read_or_written_cost_a_compilation(kept, caplog):
    for path in kept:
        path.unlink()
        path.mkdir()  # the one means that works against root, too
    with caplog.at_level(logging.WARNING):
        assert jit.compiled(double)(2) == 4
        assert jit.compiled(double)(3) == 6
    assert [record.message[:36] for record in caplog.records] == ["compiled loops cannot be cached, so "]


def test_files_that_were_cut_off_cost_a_compilation(kept):
    for path in kept:
        path.write_bytes(path.read_bytes()[:5])
    assert jit.compiled(double)(2) == 4
    again = jit.compiled(double)
    assert again(2) == 4
    assert again.stats.cache_hits


def test_no_folder_for_them_costs_a_compilation(kept, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    function = eval("lambda number: 3 * number")  # of no file beside which it could be kept
    assert jit.compiled(function)(2) == 6
    assert len(caplog.records) == 1
    assert Path(tmp_path / "file").read_bytes() == b""

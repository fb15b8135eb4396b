"""Committing: what a failure leaves behind first, then races, then the file itself."""

import errno
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.errors import CorpusError, CorpusUnavailable
from maskmill.pipelines.format import parquet_files
from maskmill.pipelines.format.layout import shard_of, shard_path
from maskmill.pipelines.format.parquet_files import open_parquet, unreadable
from maskmill.pipelines.format.records import PlannedImage
from maskmill.pipelines.format.rows import row_from_result, table_from_rows
from maskmill.pipelines.format.schema import ROW_SCHEMA
from maskmill.pipelines.format.shards import commit_table, committed_shards, shard_metadata
from tests.pipelines.format.test_schema import decoded
from tests.support.corpora import draw_masks, results

METADATA = shard_metadata("d" * 64, 3, {"decode": 1.23456789, "encode": 0})


def table(count=3, data=b"bytes", embed=False, seed=0):
    rows = [
        row_from_result(
            PlannedImage(row, str(row), "/", 3, row),
            decoded(data=data),
            results(draw_masks(20, 30, seed + row, 2)),
            embed=embed,
        )
        for row in range(count)
    ]
    return table_from_rows(rows)


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_a_folder_that_is_not_there(tmp_path):
    assert committed_shards(tmp_path) == set()


def test_another_schema_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the columns of ROW_SCHEMA"):
        commit_table(tmp_path, 0, pa.table({"key": ["a"]}), METADATA)
    assert files(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_storage_that_fails_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        commit_table(tmp_path, 3, table(), METADATA)
    assert files(tmp_path) == []


def test_the_first_commit_wins(tmp_path):
    assert commit_table(tmp_path, 3, table(), METADATA) is True
    before = shard_path(tmp_path, 3).read_bytes(), shard_path(tmp_path, 3).stat().st_mtime_ns
    assert commit_table(tmp_path, 3, table(seed=9), METADATA) is False
    assert (shard_path(tmp_path, 3).read_bytes(), shard_path(tmp_path, 3).stat().st_mtime_ns) == before
    assert files(tmp_path) == ["shards/shard-000003.parquet"]
    assert committed_shards(tmp_path) == {3}


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("shard-000000.parquet", 0),
        ("shard-000042.parquet", 42),
        ("shard-1234567.parquet", 1234567),
        ("shard-0000042.parquet", None),
        ("shard-42.parquet", None),
        ("shard-000042.parquet.tmp", None),
        (".maskmill-shard-000042.parquet-1.tmp", None),
        ("shard-٠٠٠٠٤٢.parquet", None),
    ],
)
def test_names(tmp_path, name, shard):
    assert shard_of(name) == shard
    if shard is not None:
        assert shard_path(tmp_path, shard).name == name


def test_the_file(tmp_path):
    written = table()
    commit_table(tmp_path, 3, written, METADATA)
    with pq.ParquetFile(shard_path(tmp_path, 3)) as file:
        assert file.read().equals(written)
        assert file.schema_arrow.equals(ROW_SCHEMA)
        footer = file.metadata.metadata
        assert footer[b"maskmill.format_version"] == b"1"
        assert footer[b"maskmill.run_digest"] == b"d" * 64
        assert footer[b"maskmill.shard"] == b"3"
        assert json.loads(footer[b"maskmill.seconds"]) == {"decode": 1.234568, "encode": 0}
        columns = [file.metadata.row_group(0).column(index) for index in range(file.metadata.num_columns)]
        assert {column.compression for column in columns} == {"ZSTD"}
        assert all(column.has_column_index and column.has_offset_index for column in columns)
        assert all(column.is_stats_set for column in columns if column.path_in_schema.count(".") == 0)


def test_row_groups_are_capped_in_bytes(tmp_path, monkeypatch):
    """Five images of 40 kB under a cap of 100 kB: two and two and one."""
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 100_000)
    written = table(5, data=os.urandom(40_000), embed=True)
    commit_table(tmp_path, 0, written, METADATA)
    with pq.ParquetFile(shard_path(tmp_path, 0)) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        assert sum(rows) == 5
        assert max(rows) <= 2
        assert file.read().equals(written)


def test_an_image_over_the_cap_has_a_row_group_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 1000)
    commit_table(tmp_path, 0, table(3, data=bytes(5000), embed=True), METADATA)
    with pq.ParquetFile(shard_path(tmp_path, 0)) as file:
        assert file.num_row_groups == 3


@pytest.mark.parametrize(
    ("error", "unavailable"),
    [
        (OSError("Couldn't deserialize thrift"), False),  # what pyarrow says of damage: it has no number
        (pa.ArrowInvalid("no magic bytes"), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), True),
        (pa.ArrowMemoryError("malloc of size 9 failed"), True),
    ],
)
def test_damage_is_told_from_storage_and_memory_that_fail(tmp_path, error, unavailable):
    found = unreadable(tmp_path, error)
    assert isinstance(found, CorpusError)
    assert isinstance(found, CorpusUnavailable) == isinstance(found, OSError) == unavailable
    again = pickle.loads(pickle.dumps(found))
    assert (type(again), str(again)) == (type(found), str(found)), "it travels between processes"


def test_a_damaged_page_is_noticed_on_reading(tmp_path):
    commit_table(tmp_path, 0, table(), METADATA)
    path = shard_path(tmp_path, 0)
    data = bytearray(path.read_bytes())
    data[200] ^= 16
    path.write_bytes(data)
    with open_parquet(path) as file, pytest.raises(OSError, match=r"(?i)crc|corrupt"):
        file.read()
    path.write_bytes(data[:-20])
    with pytest.raises(CorpusError, match="cannot be read"):
        open_parquet(path)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("Couldn't deserialize thrift"), CorpusError),  # pyarrow, of damage
        (PermissionError("ExpiredToken"), CorpusUnavailable),  # s3fs, with no number
        (TimeoutError("timed out"), CorpusUnavailable),
        (OSError(5, "Input/output error"), CorpusUnavailable),
        (MemoryError(), CorpusUnavailable),
    ],
)
def test_a_store_that_refuses_is_told_from_damage(error, kind):
    assert type(unreadable(Path("shard"), error)) is kind

"""One shard, one Parquet file: where it lies, how it is written, which ones are there.

The file's presence is the commit; there is no other marker to fall out of step with it. Row groups are capped
in bytes, not rows, since a row is a few kilobytes of masks or, with its image embedded, tens of megabytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError, CorpusUnavailable
from ..storage import atomic
from ..storage.paths import as_os_errors, is_remote, redacted
from .schema import FORMAT_VERSION, ROW_SCHEMA

SHARDS = "shards"
ROW_GROUP_BYTES = 64 << 20
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError)
"""What reading a damaged Parquet file raises."""

_NAME = re.compile(r"shard-(\d{6,})\.parquet")


def shard_path(out: Path, shard: int) -> Path:
    """Where a shard lies in the corpus `out`."""
    return out / SHARDS / f"shard-{shard:06d}.parquet"


def shard_metadata(run_digest: str, shard: int, seconds: Mapping[str, float]) -> dict[str, str]:
    """What a shard's footer says about it, so that a shard found alone explains itself.

    `seconds` are the worker's timings, stage by stage.
    """
    return {
        "maskmill.format_version": str(FORMAT_VERSION),
        "maskmill.run_digest": run_digest,
        "maskmill.shard": str(shard),
        "maskmill.seconds": json.dumps({stage: round(value, 6) for stage, value in seconds.items()}),
    }


def commit_table(out: Path, shard: int, table: pa.Table, metadata: Mapping[str, str]) -> bool:
    """Commit a shard of the corpus `out`: whole and durable, or not at all.

    `table` has `ROW_SCHEMA`; `metadata` is `shard_metadata(...)`.
    Returns True where this call committed it, False where it was there already: the first commit wins, and
    this one leaves nothing behind. Raises OSError where the storage fails, ValueError for another schema.
    """
    if not table.schema.equals(ROW_SCHEMA):
        raise ValueError(f"expected the columns of ROW_SCHEMA, got {table.schema.names}")
    return atomic.link(shard_path(out, shard), lambda file: write_parquet(file, table, metadata))


def committed_shards(out: Path) -> set[int]:
    """The shards that are there, by one listing; none where the folder is missing."""
    folder = out / SHARDS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return {shard for name in names if (shard := shard_of(name)) is not None}


def shard_of(name: str) -> int | None:
    """The shard that a file of this name is; None where the name is no shard's."""
    match = _NAME.fullmatch(name)
    shard = int(match[1]) if match else None
    return shard if match and f"shard-{shard:06d}.parquet" == name else None


def write_parquet(
    file: BinaryIO, table: pa.Table, metadata: Mapping[str, str], group_bytes: int | None = None
) -> None:
    """Write a table as all of a corpus is written: zstd, page checksums, page index, statistics.

    Row groups have `group_bytes` at most, or `ROW_GROUP_BYTES`; or one row, where that is more.
    """
    with pq.ParquetWriter(
        file,
        table.schema,
        compression="zstd",
        use_dictionary=["status"],
        write_statistics=True,
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        for group in _row_groups(table, group_bytes or ROW_GROUP_BYTES):
            writer.write_table(group, row_group_size=max(1, group.num_rows))
        writer.add_key_value_metadata(dict(metadata))


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file of a corpus, to be read with its page checksums held; CorpusError where it cannot be."""
    with reading(path):
        source = path.open("rb") if is_remote(path) else pa.OSFile(os.fsencode(path))
        return pq.ParquetFile(source, page_checksum_verification=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what the block finds of a file of a corpus while it reads it as `unreadable` has it."""
    try:
        with as_os_errors():
            yield
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> CorpusError:
    """The error for a file of a corpus that raised `error`, one of `UNREADABLE`, while it was read.

    CorpusUnavailable where the system or the store refused, by a number or by a kind of OSError; what pyarrow
    finds wrong with a file's contents is a plain OSError without one.
    """
    message = " ".join(redacted(str(error)).split())[:300] or type(error).__name__
    message = f"{path}: cannot be read: {message}"
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        return CorpusUnavailable(message, error.errno)
    return (CorpusUnavailable if isinstance(error, MemoryError) else CorpusError)(message)


def _row_groups(table: pa.Table, limit: int) -> Iterator[pa.Table]:
    gathered: list[pa.RecordBatch] = []
    size = 0
    for piece in (piece for batch in table.to_batches() for piece in _halved(batch, limit)):
        if gathered and size + piece.nbytes > limit:
            yield pa.Table.from_batches(gathered)
            gathered, size = [], 0
        gathered.append(piece)
        size += piece.nbytes
    yield pa.Table.from_batches(gathered, schema=table.schema)


def _halved(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    if batch.num_rows <= 1 or batch.nbytes <= limit:
        yield batch
        return
    middle = batch.num_rows // 2
    yield from _halved(batch.slice(0, middle), limit)
    yield from _halved(batch.slice(middle), limit)

"""How a corpus's Parquet files are written and read: zstd, page checksums, row groups capped in bytes.

A row is a few kilobytes of masks or, with its image embedded, tens of megabytes: a cap in rows would bound
nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError, CorpusUnavailable
from ..storage.paths import is_remote
from ..storage.store_errors import as_os_errors
from ..text import redacted

ROW_GROUP_BYTES = 64 << 20
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError)
"""What reading a damaged Parquet file raises."""


def write_parquet(
    file: BinaryIO, table: pa.Table, metadata: Mapping[str, str], group_bytes: int | None = None
) -> None:
    """Write a table as every file of a corpus is written: zstd, page checksums, page index, statistics.

    A row group has at most `group_bytes`, by default `ROW_GROUP_BYTES`, unless a single row has more.
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
    """Open a corpus's Parquet file, to read it with page checksums; raises CorpusError if that fails."""
    with reading(path):
        source = path.open("rb") if is_remote(path) else pa.OSFile(os.fsencode(path))
        return pq.ParquetFile(source, page_checksum_verification=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise errors of the block, which reads a file of a corpus, as `unreadable` makes them."""
    try:
        with as_os_errors():
            yield
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> CorpusError:
    """The error for a file of a corpus that raised `error`, one of `UNREADABLE`, while it was read.

    It is CorpusUnavailable if the system or the store failed, which an error number or a subclass of OSError
    tells; pyarrow reports damaged contents as a plain OSError without a number.
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

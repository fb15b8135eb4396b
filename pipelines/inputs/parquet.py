"""The images in a column of a Parquet file, as datasets are published: bytes, or bytes and a path.

A row is named by its number. To read one, its row group's column has to be unpacked, which holds the rows
next to it too; the last few are kept, since a shard's images are neighbours.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputRejected, UsageError
from ..storage.paths import is_remote, store_of
from ..storage.store_errors import as_os_errors
from ..text import redacted

EXTENSION = ".parquet"
GROUPS_KEPT = 3
"""Row groups whose images a process holds at a time: one for each shard in its hands, and one more."""

MAX_GROUP_BYTES = 1 << 30
"""Of the images in one row group, unpacked: it is in memory as a whole."""


def read_rows(path: Path, column: str | None) -> tuple[int, str]:
    """How many rows the file has, and the name of its column of images: `column`, or the one that can be it.

    Raises UsageError where the file cannot be read, or has no such column, or several, or where a row group
    of it is over `MAX_GROUP_BYTES`.
    """
    try:
        with as_os_errors(), _opened(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(redacted(str(error)).split())[:300]
        raise UsageError(f"{path}: cannot be read as Parquet: {reason}") from None
    possible = [field.name for field in schema if _holds_images(field.type)]
    if column is not None and column not in possible:
        raise UsageError(
            f"{path}: expected a column {column!r} of bytes (input.image_column), "
            f"got {', '.join(schema.names) or 'no column'}"
        )
    found = column or ("image" if "image" in possible else possible[0] if len(possible) == 1 else None)
    if found is None:
        raise UsageError(
            f"{path}: expected one column of images, bytes or struct<bytes, path>, got "
            f"{', '.join(possible) or 'none'} out of {', '.join(schema.names)}; set input.image_column to one"
        )
    for group in range(metadata.num_row_groups):
        size = _group_bytes(metadata.row_group(group), found)
        if size > MAX_GROUP_BYTES:
            raise UsageError(
                f"{path}: row group {group} has {size} bytes of images, over the limit of {MAX_GROUP_BYTES}; "
                "write the file anew with fewer rows in a group"
            )
    return int(metadata.num_rows), found


def read_row(path: Path, row: int, column: str) -> bytes:
    """The bytes of one row.

    Raises InputRejected where it has none, or where its row group is damaged or unpacks to over
    `MAX_GROUP_BYTES`; OSError where the file cannot be read.
    """
    value = _groups.value(path, row, column)
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise InputRejected("read", "Missing", "the row has no bytes")
    return bytes(data)


class _RowGroups:
    """The images of the row groups that were read last; threads of a process share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: dict[str, Any] = {}
        self._columns: OrderedDict[tuple[str, str, int], pa.ChunkedArray | InputRejected] = OrderedDict()

    def value(self, path: Path, row: int, column: str) -> Any:
        with self._lock:
            starts = self._starts_of(path)
            if not 0 <= row < starts[-1]:
                raise OSError(f"{path}: there is no row {row} any more")
            group = int(np.searchsorted(starts, row, side="right")) - 1
            images = self._images(path, column, group)
        return images[row - int(starts[group])].as_py()

    def _starts_of(self, path: Path) -> Any:
        if str(path) not in self._starts:
            with _opened(path) as file:
                sizes = [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)]
            self._starts[str(path)] = np.cumsum([0, *sizes])
        return self._starts[str(path)]

    def _images(self, path: Path, column: str, group: int) -> pa.ChunkedArray:
        wanted = (str(path), column, group)
        if wanted not in self._columns:
            while len(self._columns) >= GROUPS_KEPT:
                self._columns.popitem(last=False)
            with _opened(path) as file:
                self._columns[wanted] = _unpacked(file, group, column)
        self._columns.move_to_end(wanted)
        images = self._columns[wanted]
        if isinstance(images, InputRejected):
            raise InputRejected(*images.args)
        return images


_groups = _RowGroups()


def _unpacked(file: pq.ParquetFile, group: int, column: str) -> pa.ChunkedArray | InputRejected:
    """The images of a row group, or what is wrong with it, for which each of its rows is then rejected."""
    if column not in file.schema_arrow.names:
        raise OSError(f"there is no column {column!r} any more")
    images: list[pa.Array] = []
    size = 0
    try:
        with as_os_errors():
            # A row at a time: a dictionary makes any number of rows out of one value.
            for batch in file.iter_batches(1, row_groups=[group], columns=[column]):
                images.append(batch[column])
                size += batch.nbytes
                if size > MAX_GROUP_BYTES:
                    return InputRejected(
                        "read", "TooLarge", f"its row group unpacks to over {MAX_GROUP_BYTES} bytes"
                    )
    except (OSError, pa.ArrowException) as error:
        if not _is_damage(error):
            raise
        return InputRejected("read", "Unreadable", f"its row group is damaged: {error}")
    if len(images) != file.metadata.row_group(group).num_rows:
        return InputRejected("read", "Unreadable", "its row group is damaged: rows are missing")
    return pa.chunked_array(images)


def _is_damage(error: Exception) -> bool:
    """Whether the bytes that were read are wrong; a disk's or store's error has a number or its own type."""
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return not isinstance(error, MemoryError)


def _group_bytes(group: pq.RowGroupMetaData, column: str) -> int:
    """How much a column of a row group is said to unpack to, without what its dictionaries repeat."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}.")
    )


def _opened(path: Path) -> pq.ParquetFile:
    if not is_remote(path):
        return pq.ParquetFile(pa.OSFile(os.fsencode(path)))
    store, name = store_of(path)
    return pq.ParquetFile(store.open(name, "rb"), pre_buffer=True)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

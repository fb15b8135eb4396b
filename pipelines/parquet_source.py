"""The photographs in a column of a Parquet file, as datasets are published: bytes, or bytes and a path.

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

from pipelines.errors import InputRejected, UsageError
from pipelines.places import as_os_errors, is_remote, redacted, store_of

EXTENSION = ".parquet"
GROUPS_KEPT = 3
"""Row groups whose images a process holds at a time: one for each shard in its hands, and one more."""


def read_rows(path: Path, column: str | None) -> tuple[int, str]:
    """How many rows the file has, and the name of its column of images: `column`, or the one that can be it.

    Raises UsageError where the file cannot be read, or has no such column, or several.
    """
    try:
        with as_os_errors(), _opened(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(redacted(str(error)).split())[:300]
        raise UsageError(f"{path}: no Parquet file that can be read: {reason}") from None
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
            f"{', '.join(possible) or 'none'} out of {', '.join(schema.names)}; name it: input.image_column"
        )
    return int(rows), found


def read_row(path: Path, row: int, column: str) -> bytes:
    """The bytes of one row. Raises InputRejected where it has none, OSError where the file cannot be read."""
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
        self._columns: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()

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
                self._columns[wanted] = file.read_row_group(group, [column])[column]
        self._columns.move_to_end(wanted)
        return self._columns[wanted]


_groups = _RowGroups()


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

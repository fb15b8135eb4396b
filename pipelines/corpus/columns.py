"""Rows as plain dicts: which columns are read for them, and what keeps one from being used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import CorpusError
from ..format.parquet_files import reading
from ..format.schema import ROW_SCHEMA, STATUSES
from .views import View

WITH_EVERY_ROW = ("image_id", "key", "status")
_NEVER_NULL = ("key", "file_name", "uri", "candidates", "drops", "annotations")


def check_status(status: str | None) -> None:
    """Raise ValueError for a status that no row has; None is any."""
    if status is not None and status not in STATUSES:
        raise ValueError(f"expected a status out of {', '.join(STATUSES)}, got {status!r}")


def parquet_columns(columns: Sequence[str] | None, view: View | None = None) -> list[str] | None:
    """The columns asked for, those of `WITH_EVERY_ROW` and what the view looks at, as paths of Parquet's.

    `annotations.area` is a field of each annotation. None is everything. Raises ValueError for a name that no
    row has.
    """
    if columns is None:
        return None
    tested = [f"annotations.{field}" for field in view.fields] if view else []
    return [_parquet_path(name) for name in dict.fromkeys([*WITH_EVERY_ROW, *columns, *tested])]


def as_dict(path: Path, batch: pa.RecordBatch, row: int, view: View | None) -> dict[str, Any]:
    """One row of a batch out of the file `path`, with the annotations that the view keeps.

    Raises CorpusError where the row is damaged.
    """
    with reading(path):
        (found,) = batch.slice(row, 1).to_pylist()
    if problem := _damage(found):
        raise CorpusError(f"{path}: damaged: {found['key']}: {problem}")
    if view is not None:
        found["annotations"] = view.annotations(found)
    return dict(found)


def _parquet_path(name: str) -> str:
    parent: pa.Schema | pa.DataType = ROW_SCHEMA
    path: list[str] = []
    for part in name.split("."):
        if isinstance(parent, pa.DataType) and pa.types.is_list(parent):
            parent, path = parent.value_type, [*path, "list", "element"]
        whole = isinstance(parent, pa.Schema)
        known = {field.name: field.type for field in (parent if whole else _fields(parent))}
        if part not in known:
            raise ValueError(f"expected one of the columns {', '.join(known) or 'above it'}, got {name!r}")
        parent, path = known[part], [*path, part]
    return ".".join(path)


def _fields(kind: pa.DataType) -> list[pa.Field]:
    return list(kind.fields) if pa.types.is_struct(kind) else []


def _damage(row: Mapping[str, Any]) -> str | None:
    """What keeps a row, or what was read of it, from being used; `verification.rows` looks closer."""
    if row["status"] not in STATUSES:
        return f"the status is {row['status']!r}"
    if missing := [name for name in _NEVER_NULL if name in row and row[name] is None]:
        return f"no {missing[0]}"
    if row["status"] == "rejected":
        error = row.get("error", {"class": "not read"})
        return None if error and None not in error.values() else "rejected without an error"
    if any(name in row and (row[name] is None or row[name] < 1) for name in ("width", "height")):
        return f"the size is {row.get('width')}×{row.get('height')}"
    return None

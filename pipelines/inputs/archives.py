"""The inputs inside tar and Parquet files: a row of the listing for each image in them.

The key is the archive's address, `#`, and the member's path or the row's number (with as many digits as the
last one has, so that rows stay in order). The uri says where the bytes are, so that nobody has to look for
the member again: `file:///data/a.tar#offset=1536&size=20480`, `s3://b/a.parquet#row=17&column=image`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..storage.paths import file_uri, path_of, scheme_of, uri_of
from ..text import counted, readable
from . import parquet, tar
from .expand import HIDDEN
from .table import INPUT_SCHEMA


def is_archive(path: str) -> bool:
    """Whether a file of this name is taken for the photographs in it."""
    return path.lower().endswith((tar.EXTENSION, parquet.EXTENSION))


def images_inside(
    archives: Sequence[str], endings: tuple[str, ...], image_column: str | None, note: Callable[[str], None]
) -> list[pa.RecordBatch]:
    """The photographs in tar files (members with one of the endings) and Parquet files (rows), in pieces of
    `INPUT_SCHEMA`; `note` gets a sentence about the headers. Raises UsageError for one that cannot be read.
    """
    archives = sorted(set(archives))
    tars = [path for path in archives if path.lower().endswith(tar.EXTENSION)]
    tables = [path for path in archives if not path.lower().endswith(tar.EXTENSION)]
    started = time.monotonic()
    indexes = tar.read_indexes([path_of(uri_of(path)) for path in tars])
    pieces = [_members(path, index.members, endings) for path, index in zip(tars, indexes, strict=True)]
    for path in tables:
        rows, column = parquet.read_rows(path_of(uri_of(path)), image_column)
        pieces.append(_rows(path, rows, column))
    if archives:
        known = sum(index.cached for index in indexes)
        passed_over = sum(index.passed_over for index in indexes)
        images = sum(piece.num_rows for piece in pieces)
        note(
            f"{counted(len(archives), 'archive')}: headers read in {time.monotonic() - started:.1f} s "
            f"({known} cached), {counted(images, 'image')}, "
            f"{counted(passed_over, 'link')} passed over"
        )
    return pieces


def _members(path: str, members: pa.Table, endings: tuple[str, ...]) -> pa.RecordBatch:
    names = members["name"].to_pylist()
    wanted = [name.lower().endswith(endings) and not HIDDEN.search(name) for name in names]
    chosen = members.filter(pa.array(wanted, pa.bool_())).combine_chunks()
    texts = {name: chosen[name].cast(pa.string()) for name in chosen.schema.names}
    uris = _joined(f"{_base(path)}#offset=", texts["offset"], "&size=", texts["size"])
    return _piece(_joined(f"{readable(path)}#", texts["name"]), uris)


def _rows(path: str, count: int, column: str) -> pa.RecordBatch:
    rows = pa.array(np.arange(count)).cast(pa.string())
    padded = pc.utf8_lpad(rows, width=len(str(max(0, count - 1))), padding="0")
    uris = _joined(f"{_base(path)}#row=", rows, f"&column={quote(column, safe='')}")
    return _piece(_joined(f"{readable(path)}#", padded), uris)


def _base(path: str) -> str:
    """The archive's address; always a URI, since a path may have a `#` of its own."""
    return uri_of(path) if scheme_of(path) else file_uri(path)


def _joined(*parts: str | pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _piece(keys: pa.Array, uris: pa.Array) -> pa.RecordBatch:
    columns = [one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one for one in (keys, uris)]
    return pa.record_batch(columns, schema=INPUT_SCHEMA)

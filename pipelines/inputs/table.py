"""The table of inputs: a key, which names an image for good, and where its bytes are; sorted, each once."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError
from ..storage.paths import scheme_of

INPUT_SCHEMA = pa.schema([("key", pa.string()), ("uri", pa.string())])
"""An input's name for good, and where its bytes are (see `paths.uri_of`)."""

PIECE_ROWS = 1 << 16
"""Rows that are worked on at a time."""


def in_order(inputs: pa.Table) -> pa.Table:
    """The inputs sorted by key, then uri; as they are where they are sorted already.

    The sorted columns are gathered in pieces, and each is let go before the next: eleven million names are a
    gigabyte or more, and no longer fit one array of Arrow's `string`.
    """
    keys = inputs["key"]
    if len(keys) < 2 or pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
        return inputs
    order = pc.sort_indices(inputs, sort_keys=[("key", "ascending"), ("uri", "ascending")])
    columns = {name: inputs[name] for name in INPUT_SCHEMA.names}
    del inputs, keys
    for name in INPUT_SCHEMA.names:
        column = columns[name]
        pieces = [
            column.take(order.slice(start, PIECE_ROWS)).combine_chunks()
            for start in range(0, len(order), PIECE_ROWS)
        ]
        columns[name] = pa.chunked_array(pieces, pa.string())
    return pa.table(columns, schema=INPUT_SCHEMA)


def without_repeats(inputs: pa.Table) -> pa.Table:
    """Sorted inputs, each once; UsageError where one key stands for two files."""
    if inputs.num_rows < 2:
        return inputs
    before, after = inputs.slice(0, inputs.num_rows - 1), inputs.slice(1)
    again = pc.equal(before["key"], after["key"])
    if not pc.any(again).as_py():
        return inputs
    clash = pc.and_(again, pc.not_equal(before["uri"], after["uri"]))
    if pc.any(clash).as_py():
        row = pc.index(clash, True).as_py()
        key, first, second = inputs["key"][row], inputs["uri"][row], inputs["uri"][row + 1]
        archive, _, member = str(first).partition("#")
        inside = scheme_of(archive) and member and str(second).startswith(f"{archive}#")
        raise UsageError(
            f"two inputs have the key {str(key)!r}: {first} and {second}; "
            + (
                "unpack the archive, which keeps the last of a name, or pack it anew"
                if inside
                else "rename one folder, or give the folder above both"
            )
        )
    return inputs.filter(pa.chunked_array([[True], *pc.invert(again).chunks]))

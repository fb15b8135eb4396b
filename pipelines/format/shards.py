"""A shard is one Parquet file: what its footer says, how it is committed, and which shards are there.

The file's presence is the commit; there is no other marker to fall out of step with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from ..storage import atomic
from .layout import SHARDS, shard_of, shard_path
from .parquet_files import write_parquet
from .schema import FORMAT_VERSION, ROW_SCHEMA


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
    Returns True if this call committed it, False if it was there already: the first commit wins, and the
    later one leaves nothing behind. Raises OSError if the storage fails, ValueError for another schema.
    """
    if not table.schema.equals(ROW_SCHEMA):
        raise ValueError(f"expected the columns of ROW_SCHEMA, got {table.schema.names}")
    return atomic.create(shard_path(out, shard), lambda file: write_parquet(file, table, metadata))


def committed_shards(out: Path) -> set[int]:
    """The shards that are committed, by one listing; none if the folder is missing."""
    folder = out / SHARDS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return {shard for name in names if (shard := shard_of(name)) is not None}

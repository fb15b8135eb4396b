"""The names of a corpus's files and folders."""

from __future__ import annotations

import re
from pathlib import Path

RUN = "run.json"
CORPUS = "corpus.json"
BEFORE = "corpus.before.json"
PLAN = "plan"
SHARDS = "shards"

PART_NAME = re.compile(r"part-(\d{6})\.parquet")
_SHARD_NAME = re.compile(r"shard-(\d{6,})\.parquet")


def part_name(part: int) -> str:
    """What `corpus.json` calls a part of the plan."""
    return f"{PLAN}/part-{part:06d}.parquet"


def part_path(out: Path, part: int) -> Path:
    """Where a part of the plan lies in the corpus `out`."""
    return out / part_name(part)


def shard_name(shard: int) -> str:
    """What `corpus.json` calls a shard."""
    return f"{SHARDS}/shard-{shard:06d}.parquet"


def shard_path(out: Path, shard: int) -> Path:
    """Where a shard lies in the corpus `out`."""
    return out / shard_name(shard)


def shard_of(name: str) -> int | None:
    """The shard that a file of this name is; None where the name is no shard's."""
    match = _SHARD_NAME.fullmatch(name)
    shard = int(match[1]) if match else None
    return shard if shard is not None and shard_name(shard) == f"{SHARDS}/{name}" else None

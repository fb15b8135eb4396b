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
    """The name of a part of the plan in `corpus.json`."""
    return f"{PLAN}/part-{part:06d}.parquet"


def part_path(out: Path, part: int) -> Path:
    """The path of a part of the plan in the corpus `out`."""
    return out / part_name(part)


def shard_name(shard: int) -> str:
    """The name of a shard in `corpus.json`."""
    return f"{SHARDS}/shard-{shard:06d}.parquet"


def shard_path(out: Path, shard: int) -> Path:
    """The path of a shard in the corpus `out`."""
    return out / shard_name(shard)


def shard_of(name: str) -> int | None:
    """The number of the shard with this file name; None if it is no shard's name."""
    match = _SHARD_NAME.fullmatch(name)
    shard = int(match[1]) if match else None
    return shard if shard is not None and shard_name(shard) == f"{SHARDS}/{name}" else None

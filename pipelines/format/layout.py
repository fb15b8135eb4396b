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


def part_path(out: Path, part: int) -> Path:
    """Where a part of the plan lies in the corpus `out`."""
    return out / PLAN / f"part-{part:06d}.parquet"


def shard_path(out: Path, shard: int) -> Path:
    """Where a shard lies in the corpus `out`."""
    return out / SHARDS / f"shard-{shard:06d}.parquet"


def shard_of(name: str) -> int | None:
    """The shard that a file of this name is; None where the name is no shard's."""
    match = _SHARD_NAME.fullmatch(name)
    shard = int(match[1]) if match else None
    return shard if match and f"shard-{shard:06d}.parquet" == name else None

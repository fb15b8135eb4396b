"""Rejected images run again: which they are, and how their rows take the place of the old ones.

The one thing that changes a shard. Each is replaced whole and in one step, all other rows copied as they are,
so that a run that is killed in between leaves old shards and new ones, all of them valid. The driver removes
`corpus.json` before the first and writes it anew after the last. A worker that was thought lost and comes
late leaves the shard alone: another one has replaced it meanwhile, and it is no longer the file, known by its
SHA-256, that the worker was given; or the corpus is closed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ..format.layout import CORPUS, shard_path
from ..format.parquet_files import open_parquet, reading, unreadable, write_parquet
from ..format.records import ShardTask
from ..format.shards import shard_metadata
from ..storage import atomic
from ..storage.json_files import fingerprint
from ..storage.store_errors import as_os_errors


def rejected_images(
    out: Path, shards: Iterable[int], classes: Collection[str]
) -> tuple[dict[int, frozenset[int]], Counter[str]]:
    """Find the ids of the images that are rejected as one of the classes, shard by shard; count all classes.

    Reads two small columns of each shard. Raises CorpusError where one cannot be read.
    """
    found: dict[int, frozenset[int]] = {}
    counts: Counter[str] = Counter()
    for shard in shards:
        path = shard_path(out, shard)
        with open_parquet(path) as file, reading(path):
            table = file.read(["image_id", "error.class"])
        errors = zip(table["image_id"].to_pylist(), table["error"].to_pylist(), strict=True)
        rejected = {image_id: error["class"] for image_id, error in errors if error}
        counts.update(rejected.values())
        if chosen := frozenset(image_id for image_id, name in rejected.items() if name in classes):
            found[shard] = chosen
    return found, counts


class _Changed(Exception):  # noqa: N818
    """The shard is not the one that was to be replaced, or the corpus is closed."""


def shard_sha256(out: Path, shard: int) -> str:
    """Return the SHA-256 of a shard, for `ShardTask.replaces`. Raises OSError where it cannot be read."""
    with as_os_errors():
        return fingerprint(shard_path(out, shard)).sha256


def replace_rows(
    out: Path, task: ShardTask, fresh: pa.Table, run_digest: str, seconds: Mapping[str, float]
) -> bool:
    """Put the rows of `fresh` in the place of those with the same `image_id` in the task's shard.

    `seconds` are added to those in its footer. Returns False, and changes nothing, where the shard is no
    longer the one that the task replaces, or the corpus is closed already: asked last, when all is written.
    Raises CorpusError where the shard is damaged, OSError where the storage fails.
    """
    path = shard_path(out, task.shard)
    with open_parquet(path) as file:
        with reading(path):
            table = file.read().replace_schema_metadata(None)
        try:
            said = json.loads(file.metadata.metadata[b"maskmill.seconds"])
            spent = Counter(said) + Counter(dict(seconds))
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from None
    merged = pa.concat_tables(_in_place(table, fresh))

    def write(file: BinaryIO) -> None:
        write_parquet(file, merged, shard_metadata(run_digest, task.shard, spent))

    def check() -> None:
        if (out / CORPUS).exists() or shard_sha256(out, task.shard) != task.replaces:
            raise _Changed

    try:
        atomic.replace(path, write, check)
    except _Changed:
        return False
    return True


def _in_place(table: pa.Table, fresh: pa.Table) -> Iterator[pa.Table]:
    """Yield the table in slices, without a copy, with each row of `fresh` in place of the row with its id."""
    places = {image_id: place for place, image_id in enumerate(fresh["image_id"].to_pylist())}
    begin = 0
    for row, image_id in enumerate(table["image_id"].to_pylist()):
        if image_id in places:
            yield table.slice(begin, row - begin)
            yield fresh.slice(places[image_id], 1)
            begin = row + 1
    yield table.slice(begin)

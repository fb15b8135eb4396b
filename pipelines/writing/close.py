"""`corpus.json`, written last: it closes a corpus with totals and the SHA-256 of every other file.

It holds no time and no place, so that closing twice gives the same bytes.
"""

from __future__ import annotations

import shlex
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...engine.records import DROP_REASONS
from ..errors import CorpusError, NothingUsable
from ..format.layout import BEFORE, CORPUS, PLAN, RUN, shard_name, shard_path
from ..format.manifest import as_entries, recorded, refuse_changed
from ..format.parquet_files import open_parquet, reading
from ..format.plan import part_names
from ..format.run_record import read_run
from ..format.schema import FORMAT_NAME, FORMAT_VERSION, STATUSES
from ..format.shards import committed_shards
from ..format.tally import Tally
from ..prefetch import in_order
from ..storage import atomic
from ..storage.json_files import as_bytes, fingerprint, sealed
from ..storage.paths import shown
from ..text import counted
from .open import sweep_corpus

FILES_AT_ONCE = 16
"""Read side by side where a corpus is closed: a store's answers take tens of milliseconds each."""


def finish_corpus(out: Path, shards: range) -> Tally:
    """Write `corpus.json` over whatever was there, once every shard of the plan is committed; returns what
    the corpus holds.

    Reads every file, several at a time. Raises CorpusError where a shard is missing, cannot be read, or is
    not what was recorded of it before (see `reopen`); no `corpus.json` is written then.
    """
    missing = sorted(set(shards) - committed_shards(out))
    if missing:
        raise CorpusError(
            f"{out}: missing {len(missing)} of {counted(len(shards), 'shard')}, the first is {missing[0]}"
        )
    sweep_corpus(out)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        total = _count(out, shards, read_run(out).digest, pool)
        totals = {**_as_json(total), "shards": len(shards)}
        names = _closed_files(out, shards)
        prints = in_order(pool, lambda name: fingerprint(out / name), names, FILES_AT_ONCE)
        files = {name: done.result() for name, done in zip(names, prints, strict=True)}
    refuse_changed(out, recorded(out), files)
    summary = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "totals": totals}
    content = sealed({**summary, "files": as_entries(files)})
    atomic.replace(out / CORPUS, as_bytes(content))
    atomic.remove(out / BEFORE)
    return total


def check_usable(out: Path, statuses: Counter[str]) -> None:
    """Raise NothingUsable where all images of a complete corpus are rejected."""
    images = statuses.total()
    if statuses["rejected"] == images:
        raise NothingUsable(
            f"{out}: the corpus is complete, and none of its {counted(images, 'image')} could be used; "
            f"{shlex.join(['maskmill', 'rejects', shown(out)])} lists why"
        )


def _closed_files(out: Path, shards: range) -> list[str]:
    return [RUN, *(f"{PLAN}/{name}" for name in part_names(out)), *map(shard_name, shards)]


def _count(out: Path, shards: range, digest: str, pool: Executor) -> Tally:
    """Count the rows, from the few columns that this needs. Raises CorpusError for a shard of another run."""
    planned = _planned_ids(out, shards)

    def read(shard: int) -> pa.Table:
        return _counted_columns(shard_path(out, shard), digest, planned[shard])

    total = Tally()
    for done in in_order(pool, read, shards, FILES_AT_ONCE):
        table = done.result()
        total.statuses.update(table["status"].to_pylist())
        total.rejects.update(error["class"] for error in table["error"].to_pylist() if error)
        total.candidates += sum(table["candidates"].to_pylist())
        total.masks += sum(map(len, table["annotations"].to_pylist()))
        for row in table["drops"].to_pylist():
            total.drops.update(row)
    total.rejects = Counter(dict(sorted(total.rejects.items())))
    return total


def _as_json(total: Tally) -> dict[str, Any]:
    return {
        "images": total.images,
        **{status: total.statuses[status] for status in STATUSES},
        "rejects": dict(total.rejects),
        "masks": total.masks,
        "candidates": total.candidates,
        "drops": {reason: total.drops[reason] for reason in DROP_REASONS},
    }


def _counted_columns(path: Path, digest: str, planned: npt.NDArray[np.int64]) -> pa.Table:
    columns = ["image_id", "status", "error.class", "candidates", "drops", "annotations.list.element.id"]
    with open_parquet(path) as file:
        with reading(path):
            table = file.read(columns)
        same = file.metadata.metadata.get(b"maskmill.run_digest") == digest.encode()
    if not (same and np.array_equal(table["image_id"].to_numpy(), planned)):
        raise CorpusError(f"{path}: made by another run; remove it, then run the same command again")
    return table


def _planned_ids(out: Path, shards: range) -> list[npt.NDArray[np.int64]]:
    """The ids of each shard's images, in plan order."""
    tables = []
    for name in part_names(out):
        path = out / PLAN / name
        with open_parquet(path) as file, reading(path):
            tables.append(file.read(["image_id", "shard"]))
    table = pa.concat_tables(tables)
    return np.split(
        table["image_id"].to_numpy(), np.searchsorted(table["shard"].to_numpy(), np.arange(1, len(shards)))
    )

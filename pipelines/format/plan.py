"""Which image goes into which shard, decided once: a pure function of the inputs and the shard size.

The inputs are sorted by key and cut into shards of N. The plan is written before any work starts and then
only grows: `--extend` appends a part with the new inputs in new shards, so that no shard is ever renumbered.
A row's place in the whole plan is its position, part after part.

Inputs are Arrow columns from the listing to the file, and hashed, gathered and written a piece at a time:
eleven million Python objects would not fit a laptop. Once planned, a `Plan` holds where its shards begin and
reads keys and uris from its files when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import CorpusError
from ..inputs.table import in_order
from ..storage import atomic
from .ids import image_ids, refuse_collisions, released_ids
from .layout import PART_NAME, PLAN, part_path
from .parquet_files import open_parquet, reading, write_parquet
from .records import PlannedImage
from .schema import FORMAT_VERSION, PLAN_SCHEMA

GROUP_BYTES = 4 << 20
"""The size of the plan's row groups: small, since the images of one shard are read from one of them."""


class Plan:
    """Every input, in order, read from the plan's files when it is asked for.

    Attributes:
        parts: the number of parts that the plan has.

    Raises CorpusError if a part is damaged, or the shards are not numbered in order.

    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.parts = len(paths)
        self._groups = [(path, group) for path in paths for group in range(_group_count(path))]
        self._first_rows = [0]
        steps = [np.zeros(0, np.int64)]
        last = -1
        for path, group in self._groups:
            shards = read_group(path, group, ("shard",))["shard"].to_numpy()
            changes = np.flatnonzero(np.diff(shards, prepend=last))
            if (np.diff(shards, prepend=last)[changes] != 1).any():
                raise CorpusError(f"{path.parent}: damaged: the shards are not numbered in order")
            steps.append(self._first_rows[-1] + changes)
            self._first_rows.append(self._first_rows[-1] + len(shards))
            last = int(shards[-1]) if len(shards) else last
        self._begins = np.append(np.concatenate(steps), self._first_rows[-1])
        self._table = lru_cache(maxsize=4)(read_group)

    def __len__(self) -> int:
        return self._first_rows[-1]

    @property
    def shards(self) -> range:
        """All shards, in order."""
        return range(len(self._begins) - 1)

    def size(self, shards: Sequence[int]) -> int:
        """The number of images that these shards have together."""
        return int(self.sizes(shards).sum())

    def sizes(self, shards: Sequence[int]) -> npt.NDArray[np.int64]:
        """The number of images in each of these shards."""
        return np.diff(self._begins)[np.asarray(shards, np.int64)]

    def place(self, row: int) -> tuple[int, int]:
        """The shard that has this row of the plan, and the row's number in the shard."""
        shard = int(np.searchsorted(self._begins, row, side="right")) - 1
        return shard, row - int(self._begins[shard])

    def images(self, shard: int) -> list[PlannedImage]:
        """The images of a shard, in plan order; none if the shard is not planned."""
        if shard not in self.shards:
            return []
        first, end = int(self._begins[shard]), int(self._begins[shard + 1])
        group = int(np.searchsorted(self._first_rows, first, side="right")) - 1
        images: list[PlannedImage] = []
        while first < end:
            offset = first - self._first_rows[group]
            table = self._table(*self._groups[group]).slice(offset, end - first)
            images += [PlannedImage(**row, row=first + at) for at, row in enumerate(table.to_pylist())]
            first += table.num_rows
            group += 1
        return images

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows, in tables of some thousand rows."""
        for path, group in self._groups:
            yield read_group(path, group, columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, whole."""
        return pa.chunked_array(
            [chunk for table in self.tables((name,)) for chunk in table[name].chunks],
            PLAN_SCHEMA.field(name).type,
        )


def make_plan(inputs: pa.Table, shard_size: int, *, first_shard: int = 0, imported: bool = False) -> pa.Table:
    """The inputs (columns `key` and `uri`), sorted by key, in shards of `shard_size`: `PLAN_SCHEMA`.

    In an `imported` corpus each key contains its image_id (`ids.released_id`). Raises UsageError if two keys
    share an image_id, ValueError for a shard size below 1.
    """
    if shard_size < 1:
        raise ValueError(f"expected a shard size of at least 1, got {shard_size}")
    inputs = in_order(inputs)
    ids = released_ids(inputs["key"]) if imported else image_ids(inputs["key"])
    refuse_collisions(ids, inputs["key"])
    shards = (first_shard + np.arange(len(ids), dtype=np.int64) // shard_size).astype(np.int32)
    columns = [pa.chunked_array([ids]), inputs["key"], inputs["uri"], pa.chunked_array([shards])]
    return pa.table(dict(zip(PLAN_SCHEMA.names, columns, strict=True)), schema=PLAN_SCHEMA)


def write_part(out: Path, table: pa.Table, part: int, first_row: int, run_digest: str) -> bool:
    """Write a part of the plan. Returns False if it is there already; that one stays."""
    metadata = {
        "maskmill.format_version": str(FORMAT_VERSION),
        "maskmill.run_digest": run_digest,
        "maskmill.part": str(part),
        "maskmill.first_row": str(first_row),
    }
    return atomic.create(part_path(out, part), lambda file: write_parquet(file, table, metadata, GROUP_BYTES))


def read_plan(out: Path) -> Plan:
    """Read the whole plan. Raises CorpusError if a part is missing or damaged, or shards are out of order."""
    parts = part_names(out)
    if not parts:
        raise CorpusError(f"{out / PLAN}: there is no plan")
    if parts != [part_path(out, part).name for part in range(len(parts))]:
        raise CorpusError(f"{out / PLAN}: a part of the plan is missing; found {', '.join(parts)}")
    plan = Plan([out / PLAN / name for name in parts])
    if not len(plan):
        raise CorpusError(f"{out / PLAN}: the plan is empty")
    return plan


def part_names(out: Path) -> list[str]:
    """The names of the plan's parts, in order, by one listing."""
    names = [path.name for path in (out / PLAN).iterdir()] if (out / PLAN).is_dir() else []
    return sorted(name for name in names if PART_NAME.fullmatch(name))


def read_part(path: Path) -> Iterator[pa.Table]:
    """Read a part of the plan, a row group at a time."""
    for group in range(_group_count(path)):
        yield read_group(path, group)


def read_group(path: Path, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a row group of a part of the plan. Raises CorpusError if it cannot be read or has nulls."""
    with open_parquet(path) as file, reading(path):
        table = file.read_row_group(group, columns and list(columns))
        table.validate(full=True)
    if any(column.null_count for column in table.columns):
        raise CorpusError(f"{path}: expected the columns {', '.join(PLAN_SCHEMA.names)}, without nulls")
    return table


def _group_count(path: Path) -> int:
    with open_parquet(path) as file:
        with reading(path):
            schema = file.schema_arrow
        if not schema.equals(PLAN_SCHEMA):
            raise CorpusError(f"{path}: expected the columns {', '.join(PLAN_SCHEMA.names)}, without nulls")
        return int(file.num_row_groups)

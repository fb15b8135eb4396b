"""Which image goes into which shard, decided once: a pure function of the inputs and the shard size.

The inputs are sorted by key and cut into shards of N. The plan is written before any work starts and then
only grows: `extend` appends a part with the new inputs in new shards, so that no shard is ever renumbered. A
row's place in the whole plan is its position, part after part.

Inputs are Arrow columns from the listing to the file, and hashed, gathered and written a piece at a time:
eleven million Python objects would not fit a laptop. Once planned, a `Plan` holds where its shards begin and
reads keys and uris from its files when they are asked for.

Opening a run is safe to be killed at any moment. `run.json` is written first, each file in one step; a folder
with `run.json` and no plan is a run that was killed there, and planning goes on. Overwriting removes
everything else first and replaces `run.json` last, so that the folder is known as a corpus all the while.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import CorpusError, CorpusUnavailable, UsageError
from ..inputs.archives import INPUT_SCHEMA
from ..inputs.listing import in_order
from ..storage import atomic
from ..storage.lease import LEASE
from ..writing.plan_diff import new_inputs
from . import manifest, run_record
from .ids import released_id
from .run_record import RunRecord
from .schema import FORMAT_VERSION, PLAN_SCHEMA
from .shards import SHARDS, committed_shards, open_parquet, reading, shard_path, write_parquet

PLAN = "plan"
GROUP_BYTES = 4 << 20
"""Of the plan's own row groups: small, since the images of one shard are read from one of them."""

_PART = re.compile(r"part-(\d{6})\.parquet")

Mode = Literal["resume", "extend", "overwrite"]


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One input in its place. `row` is its position in the whole plan, 0 first."""

    image_id: int
    key: str
    uri: str
    shard: int
    row: int


class Plan:
    """Every input, in order; read from the files of the plan as it is asked for.

    Attributes:
        parts: how many parts the plan has.

    Raises CorpusError where a part is damaged, or the shards are not numbered in order.

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
        """How many images these shards have together."""
        return int(self.sizes(shards).sum())

    def sizes(self, shards: Sequence[int]) -> npt.NDArray[np.int64]:
        """How many images each of these shards has."""
        return np.diff(self._begins)[np.asarray(shards, np.int64)]

    def place(self, row: int) -> tuple[int, int]:
        """The shard that a row of the plan is in, and which row of the shard it is."""
        shard = int(np.searchsorted(self._begins, row, side="right")) - 1
        return shard, row - int(self._begins[shard])

    def images(self, shard: int) -> list[PlannedImage]:
        """The images of a shard, in plan order; none for a shard that is not planned."""
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
        """All rows, as tables of some thousand rows."""
        for path, group in self._groups:
            yield read_group(path, group, columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, whole."""
        return pa.chunked_array(
            [chunk for table in self.tables((name,)) for chunk in table[name].chunks],
            PLAN_SCHEMA.field(name).type,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A corpus folder that is ready for its shards."""

    out: Path
    plan: Plan
    record: RunRecord

    def todo(self) -> list[int]:
        """The shards that are not committed yet, in order; one listing."""
        return sorted(set(self.plan.shards) - committed_shards(self.out))


def make_plan(inputs: pa.Table, shard_size: int, *, first_shard: int = 0, imported: bool = False) -> pa.Table:
    """The inputs (columns `key` and `uri`), sorted by key, in shards of `shard_size`: `PLAN_SCHEMA`.

    Of an `imported` corpus each key has its image_id in it (`conventions.released_id`). Raises UsageError
    where two keys share an image_id, ValueError for a shard size below 1.
    """
    if shard_size < 1:
        raise ValueError(f"expected a shard size of at least 1, got {shard_size}")
    inputs = in_order(inputs)
    ids = released_ids(inputs["key"]) if imported else image_ids(inputs["key"])
    refuse_collisions(ids, inputs["key"])
    shards = (first_shard + np.arange(len(ids), dtype=np.int64) // shard_size).astype(np.int32)
    columns = [pa.chunked_array([ids]), inputs["key"], inputs["uri"], pa.chunked_array([shards])]
    return pa.table(dict(zip(PLAN_SCHEMA.names, columns, strict=True)), schema=PLAN_SCHEMA)


def image_ids(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """`schema.image_id` of each key."""
    pieces = [np.zeros(0, np.int64)]
    for chunk in keys.chunks:
        sha256, texts = hashlib.sha256, chunk.cast(pa.binary()).to_pylist()
        digests = b"".join([sha256(text).digest()[:8] for text in texts])
        pieces.append((np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64))
    return np.concatenate(pieces)


def released_ids(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """`conventions.released_id` of each key; ValueError for one that has none."""
    pieces = [np.zeros(0, np.int64)]
    for chunk in keys.chunks:
        ids = [released_id(key) for key in chunk.to_pylist()]
        if None in ids:
            raise ValueError(f"{chunk[ids.index(None)]}: expected a name as sa_1.jpg")
        pieces.append(np.array(ids, np.int64))
    return np.concatenate(pieces)


def refuse_collisions(ids: npt.NDArray[np.int64], keys: Sequence[str] | pa.ChunkedArray) -> None:
    """Raise UsageError, naming the keys, where two images would have one id."""
    order = np.argsort(ids, kind="stable")
    (twins,) = np.nonzero(np.diff(ids[order]) == 0)
    if twins.size:
        first, second = (str(keys[int(order[twins[0] + step])]) for step in (0, 1))
        what = "twice" if first == second else f"and {second!r} have the same image_id"
        raise UsageError(f"the input {first!r} {what}; rename one of them")


def open_run(
    out: Path,
    inputs: pa.Table,
    record: RunRecord,
    shard_size: int,
    mode: Mode = "resume",
    cleared: Callable[[], None] = lambda: None,
) -> Run:
    """Make the corpus folder ready for this run: plan it, or find that it is this run's already.

    `resume` plans a new folder, or goes on with one that has the same inputs, configuration digest, model and
    weights. `extend` also appends the inputs that are new. `overwrite` removes the corpus that is there
    first, and only what belongs to it. What killed processes left is swept away; a `corpus.json` that is out
    of date goes, and what it recorded stays (`recorded.reopen`). `inputs` has the columns `key` and `uri`.
    `cleared` is called when nothing is left of a corpus that is overwritten: from then on `resume` goes on.

    Raises CorpusError, saying what differs and what to do, where the folder is not this run's; UsageError
    where keys collide.
    """
    refuse_foreign(out)
    for folder in (out, out / PLAN, out / SHARDS):
        atomic.sweep(folder)
    wanted = make_plan(inputs, shard_size, imported=record.is_imported)
    if mode == "overwrite":
        _clear_corpus(out)
        run_record.replace_run(out, record)
        cleared()
    else:
        manifest.refuse_changed_plan(out)
        if not run_record.write_run(out, record):
            _refuse_other_run(out, record)
    if not _parts(out):
        write_part(out, wanted, 0, 0, record.digest)
    plan = read_plan(out)
    new = new_inputs(out, plan, wanted, mode)
    if new.num_rows:
        manifest.reopen(out)
        plan = _append(out, plan, new, shard_size, record)
    run = Run(out, plan, run_record.read_run(out))
    if run.todo():
        manifest.reopen(out)
    return run


def write_part(out: Path, table: pa.Table, part: int, first_row: int, run_digest: str) -> bool:
    """Write a part of the plan; False where it was there already, which stays."""
    metadata = {
        "maskmill.format_version": str(FORMAT_VERSION),
        "maskmill.run_digest": run_digest,
        "maskmill.part": str(part),
        "maskmill.first_row": str(first_row),
    }
    return atomic.link(part_path(out, part), lambda file: write_parquet(file, table, metadata, GROUP_BYTES))


def part_path(out: Path, part: int) -> Path:
    """Where a part of the plan lies in the corpus `out`."""
    return out / PLAN / f"part-{part:06d}.parquet"


def read_plan(out: Path) -> Plan:
    """All parts of the plan; CorpusError where one is missing or damaged, or the shards are not in order."""
    parts = _parts(out)
    if not parts:
        raise CorpusError(f"{out / PLAN}: there is no plan")
    if parts != [part_path(out, part).name for part in range(len(parts))]:
        raise CorpusError(f"{out / PLAN}: a part of the plan is missing; found {', '.join(parts)}")
    plan = Plan([out / PLAN / name for name in parts])
    if not len(plan):
        raise CorpusError(f"{out / PLAN}: the plan is empty")
    return plan


def _parts(out: Path) -> list[str]:
    """The names of the plan's parts, in order; one listing."""
    names = [path.name for path in (out / PLAN).iterdir()] if (out / PLAN).is_dir() else []
    return sorted(name for name in names if _PART.fullmatch(name))


def read_part(path: Path) -> Iterator[pa.Table]:
    """One part of the plan, a row group at a time."""
    for group in range(_group_count(path)):
        yield read_group(path, group)


def read_group(path: Path, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """A row group of a part of the plan; CorpusError where it cannot be read or has nulls."""
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


def _append(out: Path, plan: Plan, new: pa.Table, shard_size: int, record: RunRecord) -> Plan:
    table = make_plan(
        new.select(INPUT_SCHEMA.names),
        shard_size,
        first_shard=len(plan.shards),
        imported=record.is_imported,
    )
    write_part(out, table, plan.parts, len(plan), record.digest)
    return read_plan(out)


def _refuse_other_run(out: Path, record: RunRecord) -> None:
    differences = run_record.read_run(out).differences(record)
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise CorpusError(
            f"{out}: this corpus was begun differently: {'; '.join(differences[:4])}{more}: "
            "run with what it was begun with, start anew with --overwrite, or choose another --out"
        )


def refuse_foreign(out: Path) -> bool:
    """Whether a corpus is there; CorpusError where the folder has something in it and is not one."""
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out}: expected a folder for the corpus, this is a file; choose another --out")
    if not out.exists() or _is_blank(out):
        return False
    try:
        run_record.read_run(out)
    except CorpusUnavailable:
        raise
    except CorpusError as error:
        raise CorpusError(
            f"{out}: the folder is neither empty nor a corpus of this format ({error}); "
            "choose another --out, or empty it yourself"
        ) from None
    return True


def _is_blank(out: Path) -> bool:
    """Whether nothing is there but a lease, and what a killed process may have left before its `run.json`."""
    entries = [*out.iterdir(), *(path for name in (PLAN, SHARDS) for path in out.glob(f"{name}/*"))]
    folders = (out / PLAN, out / SHARDS)
    entries = [path for path in entries if path != out / LEASE]
    return all(atomic.is_temporary(path.name) or (path in folders and path.is_dir()) for path in entries)


def _clear_corpus(out: Path) -> None:
    """Remove the corpus's own files and nothing else, but for `run.json`, which the folder is known by."""
    atomic.remove(out / run_record.CORPUS, out / manifest.BEFORE)
    atomic.remove(*(shard_path(out, shard) for shard in sorted(committed_shards(out))))
    for name in reversed(_parts(out)):
        atomic.remove(out / PLAN / name)

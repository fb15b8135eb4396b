"""Which image goes into which shard, decided once: a pure function of the inputs and the shard size.

The inputs are sorted by key and cut into shards of N. The plan is written before any work starts and then
only
grows: `extend` appends a part with the new inputs in new shards, so that no shard is ever renumbered. A row's
place in the whole plan is its position, part after part.

Opening a run is safe to be killed at any moment. `run.json` is written first, each file in one step; a folder
with `run.json` and no plan is a run that was killed there, and planning goes on. Overwriting removes
everything else first and replaces `run.json` last, so that the folder is known as a corpus all the while.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import manifest, storage
from pipelines.errors import CorpusError, UsageError
from pipelines.manifest import RunRecord
from pipelines.schema import FORMAT_VERSION, PLAN_SCHEMA, image_id
from pipelines.shards import (
    SHARDS,
    UNREADABLE,
    committed_shards,
    open_parquet,
    shard_path,
    unreadable,
    write_parquet,
)
from pipelines.sources import InputItem

PLAN = "plan"
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
    """Every input, in order. Held as Arrow columns: eleven million Python objects would not fit a laptop.

    Attributes:
        table: the columns of `PLAN_SCHEMA`, all parts.
        parts: how many parts it was read from.

    """

    def __init__(self, table: pa.Table, parts: int) -> None:
        self.table = table
        self.parts = parts
        self._shard_of_row = table["shard"].to_numpy()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def shards(self) -> range:
        """All shards, in order."""
        return range(int(self._shard_of_row[-1]) + 1 if len(self) else 0)

    def images(self, shard: int) -> list[PlannedImage]:
        """The images of a shard, in plan order."""
        first, end = np.searchsorted(self._shard_of_row, [shard, shard + 1])
        rows = self.table.slice(int(first), int(end - first)).to_pylist()
        return [PlannedImage(**row, row=int(first) + offset) for offset, row in enumerate(rows)]


@dataclass(frozen=True, slots=True)
class Run:
    """A corpus folder that is ready for its shards."""

    out: Path
    plan: Plan
    record: RunRecord

    def todo(self) -> list[int]:
        """The shards that are not committed yet, in order; one listing."""
        return sorted(set(self.plan.shards) - committed_shards(self.out))


def make_plan(items: Iterable[InputItem], shard_size: int, *, first_shard: int = 0) -> pa.Table:
    """The inputs sorted by key, in shards of `shard_size`, as a table of `PLAN_SCHEMA`.

    Raises UsageError where two keys share an image_id, ValueError for a shard size below 1.
    """
    if shard_size < 1:
        raise ValueError(f"expected a shard size of at least 1, got {shard_size}")
    ordered = sorted(items, key=lambda item: item.key)
    keys = [item.key for item in ordered]
    ids = np.fromiter((image_id(key) for key in keys), np.int64, len(keys))
    refuse_collisions(ids, keys)
    shards = first_shard + np.arange(len(keys), dtype=np.int64) // shard_size
    columns = [pa.array(ids), keys, [item.uri for item in ordered], pa.array(shards.astype(np.int32))]
    return pa.table(dict(zip(PLAN_SCHEMA.names, columns, strict=True)), schema=PLAN_SCHEMA)


def refuse_collisions(ids: npt.NDArray[np.int64], keys: Sequence[str]) -> None:
    """Raise UsageError, naming the keys, where two images would have one id."""
    order = np.argsort(ids, kind="stable")
    (twins,) = np.nonzero(np.diff(ids[order]) == 0)
    if twins.size:
        first, second = (keys[order[twins[0] + step]] for step in (0, 1))
        what = "twice" if first == second else f"and {second!r} have the same image_id"
        raise UsageError(f"the input {first!r} {what}; rename one of them")


def open_run(
    out: Path, items: Sequence[InputItem], record: RunRecord, shard_size: int, mode: Mode = "resume"
) -> Run:
    """Make the corpus folder ready for this run: plan it, or find that it is this run's already.

    `resume` plans a new folder, or goes on with one that has the same inputs, configuration digest, model and
    weights. `extend` also appends the inputs that are new. `overwrite` removes the corpus that is there
    first, and only what belongs to it. What killed processes left is swept away; a `corpus.json` that is out
    of date is removed.

    Raises CorpusError, saying what differs and what to do, where the folder is not this run's; UsageError
    where keys collide.
    """
    _refuse_foreign(out)
    for folder in (out, out / PLAN, out / SHARDS):
        storage.sweep(folder)
    wanted = make_plan(items, shard_size)
    if mode == "overwrite":
        _clear_corpus(out)
        manifest.replace_run(out, record)
    elif not manifest.write_run(out, record):
        _refuse_other_run(out, record)
    if not _parts(out):
        write_part(out, wanted, 0, 0, record.digest)
    plan = read_plan(out)
    new = _new_inputs(out, plan, wanted, mode)
    if new.num_rows:
        storage.remove(out / manifest.CORPUS)
        plan = _append(out, plan, new, shard_size, record)
    run = Run(out, plan, manifest.read_run(out))
    if run.todo():
        storage.remove(out / manifest.CORPUS)
    return run


def write_part(out: Path, table: pa.Table, part: int, first_row: int, run_digest: str) -> bool:
    """Write a part of the plan; False where it was there already, which stays."""
    metadata = {
        "maskmill.format_version": str(FORMAT_VERSION),
        "maskmill.run_digest": run_digest,
        "maskmill.part": str(part),
        "maskmill.first_row": str(first_row),
    }
    return storage.link(part_path(out, part), lambda file: write_parquet(file, table, metadata))


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
    tables = [read_part(out / PLAN / name) for name in parts]
    plan = Plan(pa.concat_tables(tables), len(parts))
    if not len(plan):
        raise CorpusError(f"{out / PLAN}: the plan is empty")
    steps = np.diff(plan.table["shard"].to_numpy(), prepend=-1)
    if steps[0] != 1 or steps.min() < 0 or steps.max() > 1:
        raise CorpusError(f"{out / PLAN}: damaged: the shards are not numbered in order")
    return plan


def _parts(out: Path) -> list[str]:
    """The names of the plan's parts, in order; one listing."""
    names = [path.name for path in (out / PLAN).iterdir()] if (out / PLAN).is_dir() else []
    return sorted(name for name in names if _PART.fullmatch(name))


def read_part(path: Path) -> pa.Table:
    """One part of the plan; CorpusError where it cannot be read or has other columns."""
    with open_parquet(path) as file:
        try:
            table = file.read()
            table.validate(full=True)
        except UNREADABLE as error:
            raise unreadable(path, error) from None
    if not table.schema.equals(PLAN_SCHEMA) or any(column.null_count for column in table.columns):
        raise CorpusError(f"{path}: expected the columns {', '.join(PLAN_SCHEMA.names)}, without nulls")
    return table


def _append(out: Path, plan: Plan, new: pa.Table, shard_size: int, record: RunRecord) -> Plan:
    items = [InputItem(row["key"], row["uri"]) for row in new.select(["key", "uri"]).to_pylist()]
    table = make_plan(items, shard_size, first_shard=len(plan.shards))
    write_part(out, table, plan.parts, len(plan), record.digest)
    return read_plan(out)


def _new_inputs(out: Path, plan: Plan, wanted: pa.Table, mode: Mode) -> pa.Table:
    """The wanted inputs that are not planned; CorpusError where they differ as the mode does not allow."""
    planned_ids, wanted_ids = plan.table["image_id"].to_numpy(), wanted["image_id"].to_numpy()
    is_new = ~np.isin(wanted_ids, planned_ids, assume_unique=True)
    is_gone = ~np.isin(planned_ids, wanted_ids, assume_unique=True)
    order = np.argsort(planned_ids)
    places = order[np.searchsorted(planned_ids[order], wanted_ids[~is_new])]
    was, now = plan.table.take(pa.array(places)), wanted.filter(pa.array(~is_new))
    if pc.any(pc.not_equal(was["key"], now["key"])).as_py():
        raise UsageError(f"{out}: a new input has the image_id of a planned one; rename it")
    moved = now.filter(pc.not_equal(was["uri"], now["uri"]))
    new, gone = wanted.filter(pa.array(is_new)), plan.table.filter(pa.array(is_gone))
    strict = mode != "extend"
    if not strict and (again := new.filter(pc.is_in(new["uri"], value_set=plan.table["uri"]))).num_rows:
        key, uri = again["key"][0].as_py(), again["uri"][0].as_py()
        raise CorpusError(
            f"{out}: {uri} is planned under another key than {key!r}; give the new inputs alone"
        )
    found = [
        *_examples("now lies elsewhere", moved),
        *(_examples("is new", new) if strict else []),
        *(_examples("is no longer there", gone) if strict else []),
    ]
    if found:
        cure = "add the new inputs with --extend, " if strict and new.num_rows and not moved.num_rows else ""
        raise CorpusError(
            f"{out}: the inputs are not those of the plan: {'; '.join(found)}: {cure}"
            "start anew with --overwrite, or choose another --out"
        )
    return new


def _examples(what: str, rows: pa.Table) -> list[str]:
    if not rows.num_rows:
        return []
    more = f" (and {rows.num_rows - 1} more)" if rows.num_rows > 1 else ""
    return [f"{rows['key'][0].as_py()}{more} {what}"]


def _refuse_other_run(out: Path, record: RunRecord) -> None:
    differences = manifest.read_run(out).differences(record)
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise CorpusError(
            f"{out}: this corpus was begun differently: {'; '.join(differences[:4])}{more}: "
            "run with what it was begun with, start anew with --overwrite, or choose another --out"
        )


def _refuse_foreign(out: Path) -> None:
    """Raise CorpusError where the folder has something in it and is not a corpus."""
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out}: expected a folder for the corpus, this is a file; choose another --out")
    if not out.exists() or _is_blank(out):
        return
    try:
        manifest.read_run(out)
    except CorpusError as error:
        raise CorpusError(
            f"{out}: the folder is neither empty nor a corpus of this format ({error}); "
            "choose another --out, or empty it yourself"
        ) from None


def _is_blank(out: Path) -> bool:
    """Whether nothing is there but what a killed process may have left before its `run.json`."""
    entries = [*out.iterdir(), *(path for name in (PLAN, SHARDS) for path in out.glob(f"{name}/*"))]
    folders = (out / PLAN, out / SHARDS)
    return all(storage.is_temporary(path.name) or (path in folders and path.is_dir()) for path in entries)


def _clear_corpus(out: Path) -> None:
    """Remove the corpus's own files and nothing else, but for `run.json`, which the folder is known by."""
    storage.remove(out / manifest.CORPUS)
    storage.remove(*(shard_path(out, shard) for shard in sorted(committed_shards(out))))
    for name in reversed(_parts(out)):
        storage.remove(out / PLAN / name)

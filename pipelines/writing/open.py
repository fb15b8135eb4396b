"""A corpus's folder made ready for a run: planned, found to be this run's already, grown or cleared.

Opening a run is safe to be killed at any moment. `run.json` is written first, each file in one step; a folder
with `run.json` and no plan is a run that was killed there, and planning goes on. Overwriting removes
everything else first and replaces `run.json` last, so that the folder is known as a corpus all the while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ..errors import CorpusError, CorpusUnavailable
from ..format import manifest, run_record
from ..format.layout import BEFORE, CORPUS, PLAN, SHARDS, shard_path
from ..format.plan import Plan, make_plan, part_names, read_plan, write_part
from ..format.run_record import RunRecord
from ..format.shards import committed_shards
from ..inputs.moved import Moved
from ..inputs.table import INPUT_SCHEMA
from ..storage import atomic
from ..storage.lease import LEASE
from .moves import check_planned, check_same_images
from .plan_diff import new_inputs

Mode = Literal["resume", "extend", "overwrite"]


@dataclass(frozen=True, slots=True)
class Run:
    """A corpus folder that is ready for its shards; `moved` leads from the plan's uris to where to read."""

    out: Path
    plan: Plan
    record: RunRecord
    moved: Moved = field(default_factory=Moved)

    def todo(self) -> list[int]:
        """The shards that are not committed yet, in order; one listing."""
        return sorted(set(self.plan.shards) - committed_shards(self.out))


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
    weights; the inputs may lie elsewhere now (`moves`). `extend` also appends the inputs that are new.
    `overwrite` removes the corpus that is there first, and only what belongs to it. What killed processes
    left is swept away; a `corpus.json` that is out of date goes, and what it recorded stays
    (`manifest.reopen`). `inputs` has the columns `key` and `uri`.
    `cleared` is called when nothing is left of a corpus that is overwritten: from then on `resume` goes on.

    Raises CorpusError, saying what differs and what to do, where the folder is not this run's; UsageError
    where keys collide.
    """
    refuse_foreign(out)
    sweep_corpus(out)
    wanted = make_plan(inputs, shard_size, imported=record.is_imported)
    if mode == "overwrite":
        _clear_corpus(out)
        run_record.replace_run(out, record)
        cleared()
    else:
        manifest.refuse_changed_plan(out)
        if not run_record.write_run(out, record):
            _refuse_other_run(out, record)
    if not part_names(out):
        write_part(out, wanted, 0, 0, record.digest)
    plan = read_plan(out)
    new, moved = new_inputs(out, plan, wanted, extend=mode == "extend", may_move=not record.is_imported)
    if moved.pairs:
        check_same_images(out, sorted(committed_shards(out)), moved)
    if new.num_rows:
        manifest.reopen(out)
        plan = _append(out, plan, new, shard_size, record)
    return _ready(Run(out, plan, run_record.read_run(out), moved))


def open_planned(out: Path, moved: Moved) -> Run:
    """Make the folder of a corpus ready to go on as its own `run.json` and plan say, whatever its inputs;
    `moved` says where they lie that were moved.

    Raises CorpusError where it is none, or has no plan yet, or was imported.
    """
    record = run_record.read_run(out)
    if record.is_imported:
        raise CorpusError(
            f"{out}: this corpus was imported; to go on, type its maskmill import command again"
        )
    if not part_names(out):
        raise CorpusError(f"{out}: there is no plan yet; to go on, type its maskmill generate command again")
    sweep_corpus(out)
    manifest.refuse_changed_plan(out)
    plan = read_plan(out)
    if moved.pairs:
        check_planned(plan, moved)
        check_same_images(out, sorted(committed_shards(out)), moved, is_said=True)
    return _ready(Run(out, plan, record, moved))


def sweep_corpus(out: Path) -> None:
    """Remove the temporary files that killed processes left in the corpus's folders."""
    for folder in (out, out / PLAN, out / SHARDS):
        atomic.sweep(folder)


def _ready(run: Run) -> Run:
    """Return the run, after removing a `corpus.json` that is out of date, since shards are missing."""
    if run.todo():
        manifest.reopen(run.out)
    return run


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
    """Tell whether a corpus is there. Raises CorpusError where the folder holds something else."""
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
    """Tell whether the folder holds at most a lease, and what a killed process left before its `run.json`."""
    entries = [*out.iterdir(), *(path for name in (PLAN, SHARDS) for path in out.glob(f"{name}/*"))]
    folders = (out / PLAN, out / SHARDS)
    entries = [path for path in entries if path != out / LEASE]
    return all(atomic.is_temporary(path.name) or (path in folders and path.is_dir()) for path in entries)


def _clear_corpus(out: Path) -> None:
    """Remove the corpus's own files and nothing else, but for `run.json`, which the folder is known by."""
    atomic.remove(out / CORPUS, out / BEFORE)
    atomic.remove(*(shard_path(out, shard) for shard in sorted(committed_shards(out))))
    for name in reversed(part_names(out)):
        atomic.remove(out / PLAN / name)

"""How far a run is, told from its output alone: at any time, from anywhere, whether or not it lives.

A shard's presence is its commit, so one listing says what is there, and when each shard came. What was
rejected is read from two small columns of each shard, or, once the corpus is closed, from its totals.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import CorpusError
from ..format import run_record
from ..format.layout import CORPUS, PLAN, SHARDS, shard_of, shard_path
from ..format.parquet_files import open_parquet, reading
from ..format.plan import read_plan
from ..format.schema import STATUSES
from ..storage.json_files import read_json
from ..storage.lease import Holder, read_lease
from ..storage.store_errors import as_os_errors
from ..text import clock, visible

RATE_SECONDS = 3600.0
"""The rate is that of the last hour, or of the run where it is younger."""
SHARDS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Status:
    """What a corpus's files say of its run.

    Attributes:
        state: `complete`, `running` (its lease is being renewed), or `stopped`.
        holder: who is at work on it; empty unless it is running.
        shards, shards_planned: how many are there, and how many will be.
        images, images_planned: the images of those shards.
        images_in_hand: images that the run has done of shards that were not there yet, by its last renewal of
            the lease; 0 unless it is running.
        statuses: images by status.
        rejects: rejected images by class.
        last_commit: when the newest shard was committed, UTC, ISO 8601, by the storage's clock.
        images_per_second: committed images over the last hour of the run; None where too few shards tell.
        seconds_left: at that rate; None unless it is running.
        resume: what to type to go on; None where it is running, complete or imported.

    """

    state: str
    holder: str
    shards: int
    shards_planned: int
    images: int
    images_planned: int
    images_in_hand: int
    statuses: dict[str, int]
    rejects: dict[str, int]
    last_commit: str | None
    images_per_second: float | None
    seconds_left: float | None
    resume: str | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def status_of(out: Path) -> Status:
    """Read how far the run of the corpus `out` is. Raises CorpusError where it is no corpus, or damaged."""
    record = run_record.read_run(out)
    holder = _at_work(out)
    plan, commits = read_plan(out), _commits(out)
    there = [shard for shard in plan.shards if shard in commits]
    images, planned = plan.size(there), len(plan)
    closed = (out / CORPUS).exists()
    statuses, rejects = recorded_counts(out / CORPUS) if closed else _counted(out, there)
    rate = _rate([(commits[shard], plan.size([shard])) for shard in there], _planned_at(out), holder)
    resume = shlex.join(["maskmill", "resume", str(out)])
    last = max((commits[shard] for shard in there), default=None)
    return Status(
        state="running" if holder else "complete" if closed else "stopped",
        holder=visible(str(holder or "")),
        shards=len(there),
        shards_planned=len(plan.shards),
        images=images,
        images_planned=planned,
        images_in_hand=holder.images_in_hand if holder else 0,
        statuses={name: statuses[name] for name in STATUSES},
        rejects={visible(name): count for name, count in rejects.most_common()},
        last_commit=None if last is None else datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"),
        images_per_second=rate,
        seconds_left=(planned - images) / rate if holder and rate else None,
        resume=None if holder or closed or record.is_imported else resume,
    )


def _at_work(out: Path) -> Holder | None:
    """The holder of a lease that has not run out, unless it is known to be gone."""
    with as_os_errors():
        holder = read_lease(out)
    return holder if holder and holder.left > 0 and not holder.is_gone else None


def _commits(out: Path) -> dict[int, float]:
    """Shard → when it was committed, in seconds since 1970."""
    folder, commits = out / SHARDS, {}
    with reading(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            if (shard := shard_of(path.name)) is not None:
                commits[shard] = path.stat().st_mtime
    return commits


def _planned_at(out: Path) -> float:
    """When the newest part of the plan was written, in seconds since 1970."""
    with reading(out / PLAN):
        return max(path.stat().st_mtime for path in (out / PLAN).iterdir())


def recorded_counts(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Images by status, and rejects by class, as a closed corpus records them."""
    try:
        totals = read_json(path)["totals"]
        return Counter({name: int(totals[name]) for name in STATUSES}), Counter(dict(totals["rejects"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{path}: damaged: its totals: {type(error).__name__}: {error}") from None


def _counted(out: Path, shards: Sequence[int]) -> tuple[Counter[str], Counter[str]]:
    """Images by status, and rejects by class, from the rows."""
    statuses: Counter[str] = Counter()
    rejects: Counter[str] = Counter()

    def read(shard: int) -> tuple[list[str], list[dict[str, str] | None]]:
        path = shard_path(out, shard)
        with open_parquet(path) as file, reading(path):
            table = file.read(["status", "error.class"])
        return table["status"].to_pylist(), table["error"].to_pylist()

    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        for status, errors in pool.map(read, shards):
            statuses.update(status)
            rejects.update(error["class"] for error in errors if error)
    return statuses, rejects


def _rate(commits: Sequence[tuple[float, int]], planned_at: float, holder: Holder | None) -> float | None:
    """Images a second, from when each shard came and how many images it has.

    A run that lives is timed until now, so that one that hangs slows down; one that has ended from its plan,
    or from its first commit of the last hour where the plan is older or was copied later, to its last.
    """
    if not commits:
        return None
    if holder:
        end = time.time()
        begin = max(datetime.fromisoformat(holder.since).timestamp(), end - RATE_SECONDS)
    else:
        end = max(when for when, _ in commits)
        begin = min(when for when, _ in commits if when >= end - RATE_SECONDS)
        if end - RATE_SECONDS <= planned_at < begin:
            begin = planned_at
    images = sum(count for when, count in commits if begin < when <= end)
    return images / (end - begin) if images and end > begin else None


def status_table(status: Status) -> Table:
    """How far a run is."""
    title = f"running on {status.holder}" if status.holder else status.state
    table = Table("", "", title=title, title_justify="left", show_header=False)
    table.add_row("shards", _of(status.shards, status.shards_planned))
    table.add_row("images", _of(status.images, status.images_planned))
    if status.holder:
        table.add_row("images in shards in hand", str(status.images_in_hand))
    for name, count in status.statuses.items():
        table.add_row(f"images {name}", str(count))
    for name, count in status.rejects.items():
        table.add_row(f"rejected: {name}", str(count))
    table.add_row("last commit", status.last_commit or "none yet")
    rate, left = status.images_per_second, status.seconds_left
    table.add_row("images/s", "-" if rate is None else f"{rate:.2f}")
    if left is not None:
        table.add_row("time left", clock(left))
    return table


def _of(done: int, planned: int) -> str:
    return f"{done} of {planned} ({done / planned:.1%})"

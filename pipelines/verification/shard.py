"""Whether a shard agrees with the plan: its footer, its columns, its rows and their order, its masks.

Row groups are read one at a time. A group's masks are checked all at once (`masks`), and only those of rows
in doubt become Python objects (`rows`). Nothing is shared, so that shards are checked side by side in
threads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...engine.records import DROP_REASONS
from ..errors import CorpusError
from ..format.parquet_files import UNREADABLE, open_parquet
from ..format.records import PlannedImage
from ..format.run_record import RunRecord
from ..format.schema import FORMAT_VERSION, ROW_SCHEMA, STATUSES
from ..text import visible
from .masks import doubtful_rows
from .rows import head_problems, mask_problems

PER_FILE = 20
"""The most problems that are listed for a file; more are counted."""

SLICE_ROWS = 1024
"""How many rows are Python objects at a time, without their masks and images."""


@dataclass(slots=True)
class Findings:
    """Problems by file, and what was counted on the way; its size is bounded, however much is wrong."""

    told: dict[str, list[str]] = field(default_factory=dict)
    more: Counter[str] = field(default_factory=Counter)
    tally: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DROP_REASONS, 0)))
    rejects: Counter[str] = field(default_factory=Counter)

    def say(self, where: str, what: str) -> None:
        """Note a problem of the file `where`."""
        told = self.told.setdefault(where, [])
        if len(told) < PER_FILE:
            told.append(what)
        else:
            self.more[where] += 1

    def add(self, other: Findings) -> None:
        """Add another's problems and counts."""
        for where, problems in other.told.items():
            for problem in problems:
                self.say(where, problem)
        self.more.update(other.more)
        self.tally.update(other.tally)
        self.drops.update(other.drops)
        self.rejects.update(other.rejects)

    def lines(self) -> Iterator[str]:
        """The problems, a line each, file first."""
        for where, problems in self.told.items():
            yield from (visible(f"{where}: {problem}") for problem in problems)
            if self.more[where]:
                yield visible(f"{where}: and {self.more[where]} more problems")

    def totals(self) -> dict[str, Any]:
        """What the rows add up to, as `corpus.json` has it."""
        return {
            **{name: self.tally[name] for name in ("images", *STATUSES)},
            "rejects": dict(sorted(self.rejects.items())),
            **{name: self.tally[name] for name in ("masks", "candidates")},
            "drops": dict(self.drops),
            "shards": self.tally["shards"],
        }


def check_footer(
    name: str, file: pq.ParquetFile, record: RunRecord | None, own: Mapping[str, str], findings: Findings
) -> None:
    """Check what every Parquet file of a corpus says in its footer, and `own`, which only this one says."""
    footer = file.metadata.metadata or {}
    expected = {"format_version": str(FORMAT_VERSION), **own}
    if record:
        expected["run_digest"] = record.digest
    for key, value in expected.items():
        said = footer.get(f"maskmill.{key}".encode())
        if said != value.encode():
            findings.say(name, f"the footer's {key} is {said!r}, expected {value!r}")


def check_shard(
    path: Path, name: str, shard: int, planned: Sequence[PlannedImage], record: RunRecord | None
) -> Findings:
    """Find everything that is wrong with the shard at `path`, which is called `name` in the corpus."""
    embedded = bool(record and record.config.get("embed_images"))
    check = _ShardCheck(name, planned, embedded, bool(record and record.is_imported))
    try:
        with open_parquet(path) as file:
            check_footer(name, file, record, {"shard": str(shard)}, check.findings)
            check.contents(file)
    except CorpusError as error:
        check.findings.say(name, without_path(path, error))
    check.findings.tally["shards"] += 1
    return check.findings


def without_path(path: Path, error: Exception) -> str:
    """The error's message, without the file that the report names already."""
    return str(error).removeprefix(f"{path}").lstrip(":/ ")


class _ShardCheck:
    """A shard while it is read: what was found so far, and the ids of the rows so far."""

    def __init__(self, name: str, planned: Sequence[PlannedImage], embedded: bool, imported: bool) -> None:
        self.name = name
        self.planned = {image.image_id: image for image in planned}
        self.embedded = embedded
        self.imported = imported
        self.findings = Findings()
        self.order: list[int | None] = []

    def say(self, what: str) -> None:
        self.findings.say(self.name, what)

    def contents(self, file: pq.ParquetFile) -> None:
        self._seconds((file.metadata.metadata or {}).get(b"maskmill.seconds"))
        try:
            schema = file.schema_arrow
        except UNREADABLE as error:
            self.say(f"the schema cannot be read: {error}")
            return
        if not schema.equals(ROW_SCHEMA):
            self.say("the columns are not those of the format")
            return
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if table := self._row_group(file, group, f"rows {first} to {first + rows - 1}"):
                for start in range(0, table.num_rows, SLICE_ROWS):
                    self._rows(table.slice(start, SLICE_ROWS))
            first += rows
        self._accounting()

    def _row_group(self, file: pq.ParquetFile, group: int, where: str) -> pa.Table | None:
        try:
            table = file.read_row_group(group, use_threads=False)
            table.validate(full=True)
        except UNREADABLE as error:
            columns = ", ".join(_unreadable_columns(file, group)) or "all together"
            self.say(f"{where}: cannot be read (columns: {columns}): {error}")
            return None
        return table

    def _rows(self, table: pa.Table) -> None:
        """Check the next rows of a group."""
        annotations, images = table["annotations"].combine_chunks(), table["image"]
        masks = pc.list_value_length(annotations).to_pylist()
        heads = table.drop_columns(["annotations", "image"]).to_pylist()
        planned = [self.planned.get(head["image_id"]) for head in heads]
        doubtful_R = doubtful_rows(
            annotations,
            np.array([image.row if image else -1 for image in planned], np.int64),
            np.array([head["height"] or 0 for head in heads], np.int64),
            np.array([head["width"] or 0 for head in heads], np.int64),
            self.imported,
        )
        for row, (head, image) in enumerate(zip(heads, planned, strict=True)):
            where = f"row {len(self.order)} ({head['key']})"
            self.order.append(head["image_id"])
            if image is None:
                self.say(f"{where}: not planned for this shard")
                continue
            head["image"] = images[row].as_py()
            for problem in head_problems(head, masks[row], image, self.embedded):
                self.say(f"{where}: {problem}")
            if doubtful_R[row]:
                doubted = annotations[row].as_py() or ()
                size = head["height"], head["width"]
                for problem in mask_problems(doubted, image.row, *size, self.imported):
                    self.say(f"{where}: {problem}")
            self._count(head, masks[row] or 0)

    def _count(self, head: Mapping[str, Any], masks: int) -> None:
        found = self.findings
        found.tally.update(images=1, masks=masks, candidates=head["candidates"] or 0)
        found.tally[str(head["status"])] += 1
        found.drops.update({reason: count or 0 for reason, count in (head["drops"] or {}).items()})
        if head["error"]:
            found.rejects[str(head["error"]["class"])] += 1

    def _accounting(self) -> None:
        """Check that there is exactly one row for each planned image, in plan order."""
        times = Counter(self.order)
        for identity, image in self.planned.items():
            if times[identity] != 1:
                self.say(f"{times[identity]} rows for {image.key}, expected 1")
        wanted = [identity for identity in self.planned if times[identity]]
        for row, (there, due) in enumerate(zip(self.order, wanted, strict=False)):
            if there != due:
                self.say(f"row {row}: out of order, expected {self.planned[due].key}")
                break

    def _seconds(self, said: bytes | None) -> None:
        try:
            seconds = json.loads(said or b"")
        except (ValueError, RecursionError):
            seconds = None
        if not isinstance(seconds, dict) or not all(isinstance(s, int | float) for s in seconds.values()):
            self.say(f"the footer's seconds are {said!r}")


def _unreadable_columns(file: pq.ParquetFile, group: int) -> Iterator[str]:
    for name in ROW_SCHEMA.names:
        try:
            file.read_row_group(group, [name]).validate(full=True)
        except UNREADABLE:
            yield name

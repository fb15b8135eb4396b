"""Whether a corpus is what it says: every checksum, every row, every mask computed anew.

Nothing that is read is believed. A file that cannot be read, a value that is null where none may be, a
run-length code that would lead a C library out of its memory: each is a line in the report, with file and
row, and the rest is still checked. What cannot be found twice over is found by its checksum in `corpus.json`;
what was damaged before the corpus was closed, by what the rows must agree with.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from engine.records import DROP_REASONS
from pipelines import manifest, storage
from pipelines.errors import CorpusError
from pipelines.manifest import CORPUS, RUN, RunRecord
from pipelines.plan import PLAN, Plan, part_path, read_part, read_plan
from pipelines.schema import FORMAT_NAME, FORMAT_VERSION, ROW_SCHEMA, STATUSES, image_id
from pipelines.shards import SHARDS, UNREADABLE, open_parquet, shard_path
from pipelines.verify_rows import row_problems

PER_FILE = 20
"""Problems told of one file; the rest of them are counted."""


@dataclass(slots=True)
class VerifyReport:
    """What was found.

    Attributes:
        problems: one line each, file and row first; none where the corpus is sound.
        counts: what was read: images, by status, masks, shards, files.

    """

    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is off."""
        return not self.problems


def verify(path: str | Path) -> VerifyReport:
    """Check a whole corpus. Raises CorpusError where the folder holds no corpus at all."""
    out = Path(path)
    if not any((out / name).exists() for name in (RUN, CORPUS, PLAN, SHARDS)):
        raise CorpusError(f"{path}: expected a corpus; the folder is missing or has none in it")
    return _Check(out).run()


class _Check:
    """One verification: what it has found so far, and what the files say together."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.found: dict[str, list[str]] = {}
        self.tally: Counter[str] = Counter()
        self.drops: Counter[str] = Counter(dict.fromkeys(DROP_REASONS, 0))
        self.rejects: Counter[str] = Counter()

    def run(self) -> VerifyReport:
        record = self._run_record()
        plan = self._plan(record)
        if plan is not None:
            for shard in plan.shards:
                self._shard(shard, plan, record)
        self._files(plan)
        self._closing(plan)
        counts = {name: self.tally[name] for name in ("images", *STATUSES, "masks", "shards", "files")}
        return VerifyReport(list(self._problems()), counts)

    def say(self, where: str, what: str) -> None:
        self.found.setdefault(where, []).append(what)

    def _problems(self) -> Iterator[str]:
        for where, problems in self.found.items():
            yield from (f"{where}: {problem}" for problem in problems[:PER_FILE])
            if len(problems) > PER_FILE:
                yield f"{where}: and {len(problems) - PER_FILE} more problems"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.out).as_posix()

    def _run_record(self) -> RunRecord | None:
        path = self.out / RUN
        try:
            record = manifest.read_run(self.out)
            as_written = manifest.as_bytes(manifest.read_json(path))
        except (CorpusError, ValueError) as error:
            self.say(RUN, _without(path, error))
            return None
        if path.read_bytes() != as_written:
            self.say(RUN, "not as it was written")
        return record

    def _plan(self, record: RunRecord | None) -> Plan | None:
        try:
            plan = read_plan(self.out)
        except CorpusError as error:
            self.say(PLAN, f"{_without(self.out / PLAN, error)}; no row can be accounted for")
            return None
        ids = plan.table["image_id"].to_numpy()
        if len(np.unique(ids)) != len(ids):
            self.say(PLAN, "two images have one image_id")
        first_row = 0
        for part in range(plan.parts):
            path = part_path(self.out, part)
            with open_parquet(path) as file:
                self._footer(path, file, record, {"part": str(part), "first_row": str(first_row)})
            first_row += self._part(path)
        return plan

    def _part(self, path: Path) -> int:
        table = read_part(path)
        keys, ids = table["key"].to_pylist(), table["image_id"].to_pylist()
        if keys != sorted(keys):
            self.say(self._name(path), "the keys are not in order")
        for row, (key, identity) in enumerate(zip(keys, ids, strict=True)):
            if identity != image_id(key):
                self.say(self._name(path), f"row {row} ({key}): image_id is {identity}, not its key's")
        return len(keys)

    def _footer(
        self, path: Path, file: pq.ParquetFile, record: RunRecord | None, own: Mapping[str, str]
    ) -> None:
        """What every Parquet file of a corpus says of itself in its footer."""
        footer = file.metadata.metadata or {}
        expected = {"format_version": str(FORMAT_VERSION), **own}
        if record:
            expected["run_digest"] = record.digest
        for name, value in expected.items():
            said = footer.get(f"maskmill.{name}".encode())
            if said != value.encode():
                self.say(self._name(path), f"the footer's {name} is {said!r}, expected {value!r}")

    def _shard(self, shard: int, plan: Plan, record: RunRecord | None) -> None:
        path = shard_path(self.out, shard)
        if not path.is_file():
            self.say(self._name(path), "missing")
            return
        try:
            with open_parquet(path) as file:
                self._open_shard(path, file, shard, plan, record)
        except CorpusError as error:
            self.say(self._name(path), _without(path, error))
        self.tally["shards"] += 1

    def _open_shard(
        self, path: Path, file: pq.ParquetFile, shard: int, plan: Plan, record: RunRecord | None
    ) -> None:
        self._footer(path, file, record, {"shard": str(shard)})
        self._seconds(path, (file.metadata.metadata or {}).get(b"maskmill.seconds"))
        try:
            schema = file.schema_arrow
        except UNREADABLE as error:
            self.say(self._name(path), f"the schema cannot be read: {error}")
            return
        if not schema.equals(ROW_SCHEMA):
            self.say(self._name(path), "the columns are not those of the format")
            return
        planned = {image.image_id: image for image in plan.images(shard)}
        embedded = bool(record and record.config.get("embed_images"))
        order: list[int | None] = []
        for group in range(file.num_row_groups):
            for row in self._row_group(path, file, group):
                where = f"row {len(order)} ({row['key']})"
                order.append(row["image_id"])
                image = planned.get(row["image_id"])
                if image is None:
                    self.say(self._name(path), f"{where}: not planned for this shard")
                    continue
                for problem in row_problems(row, image, embedded):
                    self.say(self._name(path), f"{where}: {problem}")
                self._count(row)
        self._accounting(path, order, {identity: image.key for identity, image in planned.items()})

    def _row_group(self, path: Path, file: pq.ParquetFile, group: int) -> list[dict[str, Any]]:
        sizes = [file.metadata.row_group(one).num_rows for one in range(group + 1)]
        try:
            table = file.read_row_group(group)
            table.validate(full=True)
            rows: list[dict[str, Any]] = table.to_pylist()
        except UNREADABLE as error:
            columns = ", ".join(_unreadable_columns(file, group)) or "all together"
            where = f"rows {sum(sizes[:-1])} to {sum(sizes) - 1}"
            self.say(self._name(path), f"{where}: cannot be read (columns: {columns}): {error}")
            return []
        return rows

    def _seconds(self, path: Path, said: bytes | None) -> None:
        try:
            seconds = json.loads(said or b"")
        except (ValueError, RecursionError):
            seconds = None
        if not isinstance(seconds, dict) or not all(isinstance(s, int | float) for s in seconds.values()):
            self.say(self._name(path), f"the footer's seconds are {said!r}")

    def _accounting(self, path: Path, order: list[int | None], planned: Mapping[int, str]) -> None:
        """Exactly one row for each planned image, in plan order."""
        times = Counter(order)
        for identity, key in planned.items():
            if times[identity] != 1:
                self.say(self._name(path), f"{times[identity]} rows for {key}, expected 1")
        wanted = [identity for identity in planned if times[identity]]
        for row, (there, due) in enumerate(zip(order, wanted, strict=False)):
            if there != due:
                self.say(self._name(path), f"row {row}: out of order, expected {planned[due]}")
                break

    def _count(self, row: Mapping[str, Any]) -> None:
        self.tally.update(images=1, masks=len(row["annotations"] or ()), candidates=row["candidates"] or 0)
        self.tally[str(row["status"])] += 1
        self.drops.update({reason: count or 0 for reason, count in (row["drops"] or {}).items()})
        if row["error"]:
            self.rejects[str(row["error"]["class"])] += 1

    def _files(self, plan: Plan | None) -> None:
        """Every file that is there must have a reason."""
        known = set(_closed_names(plan)) | {CORPUS}
        for folder, folders, names in os.walk(self.out):
            for name in sorted(names):
                path = Path(folder, name)
                if storage.is_temporary(name):
                    self.say(self._name(path), "left behind by a process that was killed; a rerun removes it")
                elif plan is not None and self._name(path) not in known:
                    self.say(self._name(path), "not part of the corpus")
                self.tally["files"] += 1
            for name in sorted(folders):
                path = Path(folder, name)
                if self._name(path) not in (PLAN, SHARDS):
                    self.say(self._name(path), "this folder is not part of the corpus")

    def _closing(self, plan: Plan | None) -> None:
        """`corpus.json`: itself, the checksums it holds, its totals."""
        path = self.out / CORPUS
        if not path.is_file():
            self.say(CORPUS, "missing: the run has not finished")
            return
        try:
            content = manifest.read_json(path)
            if path.read_bytes() != manifest.as_bytes(manifest.sealed(content)):
                self.say(CORPUS, "damaged: its sha256 is not its own, or it is not as it was written")
        except (CorpusError, ValueError, RecursionError) as error:
            self.say(CORPUS, _without(path, error))
            return
        if content.get("format") != FORMAT_NAME or content.get("format_version") != FORMAT_VERSION:
            self.say(CORPUS, f"format {content.get('format')!r}, version {content.get('format_version')!r}")
        listed = _listed(content)
        for name, said in listed.items():
            self._checksum(name, said)
        for name in sorted(set(_closed_names(plan)) - set(listed)):
            self.say(CORPUS, f"does not list {name}")
        if plan is not None and content.get("totals") != self._totals():
            self.say(CORPUS, f"the totals are {content.get('totals')}, the rows give {self._totals()}")

    def _checksum(self, name: str, said: Mapping[str, Any]) -> None:
        path = self.out / name
        if ".." in Path(name).parts or not path.is_file():
            self.say(name, f"{CORPUS} lists it, but it is missing")
        elif manifest.fingerprint(path) != said:
            self.say(name, f"its bytes or its sha256 are not those in {CORPUS}")

    def _totals(self) -> dict[str, Any]:
        return {
            **{name: self.tally[name] for name in ("images", *STATUSES)},
            "rejects": dict(sorted(self.rejects.items())),
            **{name: self.tally[name] for name in ("masks", "candidates")},
            "drops": dict(self.drops),
            "shards": self.tally["shards"],
        }


def _without(path: Path, error: Exception) -> str:
    """The error's message, without the file that the report names already."""
    return str(error).removeprefix(f"{path}").lstrip(":/ ")


def _closed_names(plan: Plan | None) -> list[str]:
    """The files that `corpus.json` must list."""
    if plan is None:
        return [RUN]
    parts = [f"{PLAN}/{part_path(Path(), part).name}" for part in range(plan.parts)]
    return [RUN, *parts, *(f"{SHARDS}/{shard_path(Path(), shard).name}" for shard in plan.shards)]


def _listed(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name → size and checksum, of the entries that are well formed; the seal tells of the others."""
    files = content.get("files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    return {
        entry["path"]: {"bytes": entry.get("bytes"), "sha256": entry.get("sha256")}
        for entry in entries
        if isinstance(entry.get("path"), str)
    }


def _unreadable_columns(file: pq.ParquetFile, group: int) -> Iterator[str]:
    for name in ROW_SCHEMA.names:
        try:
            file.read_row_group(group, [name]).validate(full=True)
        except UNREADABLE:
            yield name

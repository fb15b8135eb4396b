"""Whether a corpus is what it says: every checksum, every row, every mask computed anew.

Nothing that is read is believed. A file that cannot be read, a value that may not be null, a run-length code
that would lead a C library out of its memory: each is a line in the report, with file and row, and the rest
is still checked. Values that stand in one place only are checked by their file's checksum in `corpus.json`;
damage from before the corpus was closed is found where values contradict each other.

Shards are checked side by side in threads, a row group of each in memory. Threads and not processes: nearly
all of the time passes in hashing, decompression and numpy, which let go of the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config.run import digest_of
from ..errors import CorpusError
from ..format import run_record
from ..format.ids import identify
from ..format.layout import BEFORE, CORPUS, PLAN, RUN, SHARDS, part_name, part_path, shard_name
from ..format.manifest import listed
from ..format.parquet_files import open_parquet
from ..format.plan import Plan, read_part, read_plan
from ..format.run_record import RunRecord
from ..format.schema import FORMAT_NAME, FORMAT_VERSION, STATUSES
from ..machine import usable_cpus
from ..storage import atomic
from ..storage.json_files import Fingerprint, as_bytes, fingerprint, read_json, sealed
from ..storage.lease import LEASE
from ..storage.paths import place
from .shard import Findings, check_footer, check_shard, without_path

UNFINISHED = (
    "missing: the run has not finished; a file without a recorded checksum is checked by its page "
    "checksums and by recomputing it, which misses a value that agrees with all others"
)


@dataclass(slots=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        problems: the problems, a line each, file and row first; empty if the corpus is sound.
        counts: how many images (in all and by status), masks, shards and files were read.

    """

    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(
    path: str | Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> VerifyReport:
    """Check a whole corpus, `workers` shards at a time, by default as many as there are cores.

    `progress` is called with the number of shards that are done, and of all.

    Raises CorpusError if the folder holds no corpus at all.
    """
    out = place(path)
    if not any((out / name).exists() for name in (RUN, CORPUS, PLAN, SHARDS)):
        raise CorpusError(f"{path}: expected a corpus; the folder is missing or has none in it")
    return _Check(out, workers or usable_cpus(), progress).run()


class _Check:
    """One verification: what it has found so far, and what the files say together."""

    def __init__(self, out: Path, workers: int, progress: Callable[[int, int], None]) -> None:
        self.out = out
        self.workers = workers
        self.progress = progress
        self.found = Findings()
        self.recorded: dict[str, Fingerprint] = {}

    def run(self) -> VerifyReport:
        record = self._run_record()
        plan = self._plan(record)
        closing = Findings()  # told last
        content = self._summary(closing)
        self._shards(plan, record)
        self._files(plan)
        for name in self.recorded:
            if not name.startswith(f"{SHARDS}/"):
                self._checksum(name, self.found)
        self._totals(plan, content, closing)
        self.found.add(closing)
        counts = {name: self.found.tally[name] for name in ("images", *STATUSES, "masks", "shards", "files")}
        return VerifyReport(list(self.found.lines()), counts)

    def say(self, where: str, what: str) -> None:
        self.found.say(where, what)

    def _run_record(self) -> RunRecord | None:
        path = self.out / RUN
        try:
            record = run_record.read_run(self.out)
            if path.read_bytes() != as_bytes(read_json(path)):
                self.say(RUN, "not as it was written")
            if digest_of(record.config) != record.config_digest:
                self.say(RUN, "its config_digest is not that of its config")
        except (CorpusError, OSError, ValueError, RecursionError) as error:
            self.say(RUN, without_path(path, error))
            return None
        return record

    def _plan(self, record: RunRecord | None) -> Plan | None:
        try:
            plan = read_plan(self.out)
            ids = plan.column("image_id").to_numpy()
            if len(np.unique(ids)) != len(ids):
                self.say(PLAN, "two images have one image_id")
            first_row = 0
            for part in range(plan.parts):
                path, own = part_path(self.out, part), {"part": str(part), "first_row": str(first_row)}
                with open_parquet(path) as file:
                    check_footer(part_name(part), file, record, own, self.found)
                first_row += self._part(path, part_name(part), bool(record and record.is_imported))
        except (CorpusError, OSError) as error:
            self.say(PLAN, f"{without_path(self.out / PLAN, error)}; no row can be accounted for")
            return None
        return plan

    def _part(self, path: Path, name: str, imported: bool) -> int:
        row, before = 0, ""
        for table in read_part(path):
            for key, identity in zip(*(table[name].to_pylist() for name in ("key", "image_id")), strict=True):
                if key < before:
                    self.say(name, f"the keys are not in order: {before} stands before {key}")
                if identity != identify(key, imported):
                    self.say(name, f"row {row} ({key}): image_id is {identity}, not its key's")
                row, before = row + 1, key
        return row

    def _summary(self, closing: Findings) -> dict[str, Any] | None:
        """Read `corpus.json`, or in an open corpus the checksums that are kept of it."""
        names = [name for name in (CORPUS, BEFORE) if (self.out / name).is_file()]
        if CORPUS not in names:
            closing.say(CORPUS, UNFINISHED)
        elif BEFORE in names:
            closing.say(BEFORE, "left behind by a process that was killed; a rerun removes it")
        if not names:
            return None
        path = self.out / names[0]
        try:
            content = read_json(path)
            if path.read_bytes() != as_bytes(sealed(content)):
                closing.say(
                    path.name,
                    "damaged: its sha256 is not that of its contents, or it is not as it was written",
                )
        except (CorpusError, OSError, ValueError, RecursionError) as error:
            closing.say(path.name, without_path(path, error))
            return None
        said = content.get("format"), content.get("format_version")
        if said != (FORMAT_NAME, FORMAT_VERSION):
            closing.say(path.name, f"format {said[0]!r}, version {said[1]!r}")
        self.recorded = listed(content)
        files = content.get("files")
        for entry in files if isinstance(files, list) else []:
            if not isinstance(entry, dict) or str(entry.get("path")) not in self.recorded:
                closing.say(path.name, f"lists something that is not a file of a corpus: {entry!r:.200}")
        return content if path.name == CORPUS else None

    def _shards(self, plan: Plan | None, record: RunRecord | None) -> None:
        """Check every shard that is planned or recorded, in threads; the findings come in order."""
        planned = {shard_name(shard): shard for shard in plan.shards} if plan else {}
        recorded = {name for name in self.recorded if name.startswith(f"{SHARDS}/")}
        names = [*planned, *sorted(recorded - set(planned))]

        def check(name: str) -> Findings:
            found = Findings()
            if name not in planned or plan is None:
                self._checksum(name, found)
            elif not (self.out / name).is_file():
                found.say(name, "missing")
            else:
                shard = planned[name]
                found = check_shard(self.out / name, name, shard, plan.images(shard), record)
                self._checksum(name, found)
            return found

        with ThreadPoolExecutor(self.workers, thread_name_prefix="verify") as pool:
            try:
                for done, found in enumerate(pool.map(check, names), start=1):
                    self.found.add(found)
                    self.progress(done, len(names))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _checksum(self, name: str, found: Findings) -> None:
        expected, path = self.recorded.get(name), self.out / name
        if expected is None:
            return
        summary = CORPUS if (self.out / CORPUS).is_file() else BEFORE
        try:
            if not path.is_file():
                found.say(name, f"{summary} lists it, but it is missing")
            elif fingerprint(path) != expected:
                found.say(name, f"its bytes or its sha256 are not those in {summary}")
        except OSError as error:
            found.say(name, f"cannot be read: {error.strerror or error}")

    def _files(self, plan: Plan | None) -> None:
        """Report every file that does not belong to the corpus."""
        known = {*_closed_names(plan), CORPUS, BEFORE, LEASE}
        for name, is_folder in _tree(self.out, known, self.say):
            if is_folder:
                if name not in (PLAN, SHARDS):
                    self.say(name, "this folder is not part of the corpus")
                continue
            if atomic.is_temporary(name.rpartition("/")[2]):
                self.say(name, "left behind by a process that was killed; a rerun removes it")
            elif plan is not None and name not in known:
                self.say(name, "not part of the corpus")
            self.found.tally["files"] += 1

    def _totals(self, plan: Plan | None, content: dict[str, Any] | None, closing: Findings) -> None:
        """Check that `corpus.json` lists all files, and that its totals are those of the rows."""
        if content is None:
            return
        for name in sorted(set(_closed_names(plan)) - set(self.recorded)):
            closing.say(CORPUS, f"does not list {name}")
        totals = self.found.totals()
        if plan is not None and content.get("totals") != totals:
            closing.say(CORPUS, f"the totals are {content.get('totals')}, the rows give {totals}")


def _closed_names(plan: Plan | None) -> list[str]:
    """The files that `corpus.json` must list."""
    if plan is None:
        return [RUN]
    return [RUN, *map(part_name, range(plan.parts)), *map(shard_name, plan.shards)]


def _tree(
    folder: Path, known: Collection[str], say: Callable[[str, str], None], prefix: str = ""
) -> Iterator[tuple[str, bool]]:
    """Names of everything below the folder, and whether each is a folder; links are not followed.

    `say` is called with the name of a folder that cannot be listed, and the reason. Names known to be files
    are not looked at, since a store would be asked once for each.
    """
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        say(prefix or f"{folder}", f"cannot be listed: {error.strerror or error}")
        return
    for path in paths:
        name = prefix + path.name
        is_folder = name not in known and path.is_dir()
        yield name, is_folder
        if is_folder and not path.is_symlink():
            yield from _tree(path, known, say, f"{name}/")

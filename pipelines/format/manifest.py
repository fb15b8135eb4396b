"""What a closed corpus has recorded of its files stays recorded: no rerun gives damage a new checksum.

A closed corpus that is opened again, to grow or to make a lost shard anew, is not complete, and `corpus.json`
goes. The checksums that it held stay, as `corpus.before.json`, until the corpus is closed again; and it is
not closed while one of those files differs from them. Reading every file before it is opened again would tell
earlier, and cost as much as closing it, which reads every file anyway.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import CorpusError
from ..storage import atomic
from ..storage.json_files import Fingerprint, as_bytes, fingerprint, read_json, sealed
from .layout import BEFORE, CORPUS, SHARDS, shard_of
from .schema import FORMAT_NAME, FORMAT_VERSION
from .shards import committed_shards

_LISTED = re.compile(r"run\.json|plan/part-[0-9]{6}\.parquet|shards/shard-[0-9]{6,}\.parquet")


def recorded(out: Path) -> dict[str, Fingerprint]:
    """The fingerprint of each file in `corpus.json`, or in what is kept of it while the corpus is open.

    Keys are paths in the corpus; empty if there is neither. Raises CorpusError if the record is damaged.
    """
    path = next((out / name for name in (CORPUS, BEFORE) if (out / name).exists()), None)
    if path is None:
        return {}
    problem, content = None, read_json(path)
    files, said = listed(content), content.get("files", [])
    try:
        if path.read_bytes() != as_bytes(sealed(content)):
            problem = "its sha256 is not its own, or it is not as it was written"
        elif not isinstance(said, list) or len(files) != len(said):
            problem = "its list of files"
    except (ValueError, RecursionError) as error:  # a number that JSON reads as infinite
        problem = str(error)
    if problem:
        raise CorpusError(
            f"{path}: damaged: {problem}: restore it from a copy, or start anew with --overwrite"
        )
    return files


def listed(content: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """The fingerprint of each file that a `corpus.json` lists; names that no corpus has are left out."""
    files = content.get("files")
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    return {
        entry["path"]: _fingerprint_in(entry)
        for entry in entries
        if isinstance(entry.get("path"), str) and _LISTED.fullmatch(entry["path"])
    }


def as_entries(files: Mapping[str, Fingerprint]) -> list[dict[str, Any]]:
    """The files as `corpus.json` lists them, the reverse of `listed`."""
    return [{"path": name, **asdict(found)} for name, found in files.items()]


def reopen(out: Path, changing: Collection[int] = ()) -> None:
    """Take `corpus.json` away, if it is there, and keep what it recorded in `corpus.before.json`.

    Shards that are missing are struck from the record, since they are made anew. So are those that are
    `changing`, after they are compared with the record: some of their rows will be copied. Raises CorpusError
    if one of them differs, or if the record is damaged.
    """
    files, there = recorded(out), committed_shards(out)
    shards = {name: shard for name in files if (shard := _shard_of(name)) is not None}
    read = [name for name, shard in shards.items() if shard in there and shard in changing]
    refuse_changed(out, {name: files[name] for name in read}, _fingerprints(out, read))
    stay = {None, *there.difference(changing)}
    kept = {name: found for name, found in files.items() if shards.get(name) in stay}
    if kept and (len(kept) < len(files) or (out / CORPUS).exists()):
        record = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "files": as_entries(kept)}
        atomic.replace(out / BEFORE, as_bytes(sealed(record)))
    atomic.remove(out / CORPUS)


def refuse_changed_plan(out: Path) -> None:
    """Raise CorpusError if `run.json` or a part of the plan differs from its record.

    Shards are compared with their record when the corpus is closed, since every byte is read then anyway.
    """
    if (out / CORPUS).exists():
        atomic.remove(out / BEFORE)  # a process was killed between the two
    files = {name: found for name, found in recorded(out).items() if _shard_of(name) is None}
    refuse_changed(out, files, _fingerprints(out, files))


def refuse_changed(out: Path, before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> None:
    """Raise CorpusError, which says what to do, if a recorded file is missing now, or differs."""
    changed = [name for name, found in before.items() if found != now.get(name)]
    if not changed:
        return
    what = "damaged" if changed[0] in now else "missing"
    more = f" (and {len(changed) - 1} more files)" if len(changed) > 1 else ""
    cure = "restore it from a copy" if _shard_of(changed[0]) is None else "remove it and run this again"
    raise CorpusError(
        f"{out}: {changed[0]} is {what}{more}: it is not what was recorded when the corpus was closed: "
        f"{cure}, or start anew with --overwrite; maskmill verify lists all that is off"
    )


def _fingerprints(out: Path, names: Iterable[str]) -> dict[str, Fingerprint]:
    """The fingerprints, as they are now, of those files that are there."""
    return {name: fingerprint(out / name) for name in names if (out / name).exists()}


def _fingerprint_in(entry: Mapping[str, Any]) -> Fingerprint:
    """An entry's fingerprint; for an entry with other fields than ours one that no file can have."""
    if entry.keys() != {"path", "bytes", "sha256"}:
        return Fingerprint(-1, "")
    return Fingerprint(entry["bytes"], entry["sha256"])


def _shard_of(name: str) -> int | None:
    return shard_of(name.removeprefix(f"{SHARDS}/"))

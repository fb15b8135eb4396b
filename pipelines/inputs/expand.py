"""From one INPUT to the paths that it means: a folder walked, a glob matched, a file list read.

Here or in a store. Links are followed, but never back into their own ancestors; hidden files are passed over.
"""

# ruff: noqa: PTH120  (paths are strings here: eleven million Path objects take minutes)

from __future__ import annotations

import fnmatch
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..storage.paths import check_address, is_remote, place, scheme_of, store_of
from ..storage.store_errors import as_os_errors
from ..text import redacted

HIDDEN = re.compile(r"(?:^|/)\.(?!\.?(?:/|$))")
"""A name with a part that begins with a dot, other than `.` and `..`."""

_WILDCARD = re.compile(r"[*?[]")
_LIST_EXTENSION = ".txt"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def expand(text: str, endings: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """The root that keys are relative to, and the paths; all absolute, links as the user wrote them."""
    path = place(text)
    if is_remote(path):
        return _expand_remote(text, path, endings)
    absolute = os.path.abspath(path)  # noqa: PTH100  (not resolved: a link is the name the user chose)
    try:
        if path.is_dir():
            return absolute, _walk(absolute, endings)
        if path.is_file() and path.suffix.lower() == _LIST_EXTENSION:
            return os.path.dirname(absolute), _unpacked(_read_list(path, os.path.dirname(absolute)))
        if path.exists():
            return os.path.dirname(absolute), _unpacked([absolute])
    except OSError as error:
        raise UsageError(f"{text}: cannot be read: {error.strerror}") from None
    if _WILDCARD.search(text):
        root, paths = _glob(os.fspath(path), endings)
        return root, _unpacked(paths)
    raise UsageError(f"{text}: there is no such file or folder")


def _expand_remote(text: str, path: Path, endings: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """The same of a store, where a folder is what several names begin with."""
    store, name = store_of(path)
    name, scheme = name.rstrip("/"), scheme_of(text)
    address, above = f"{scheme}://{name}", f"{scheme}://{os.path.dirname(name)}"
    try:
        with as_os_errors():
            if store.isfile(name):
                is_list = name.lower().endswith(_LIST_EXTENSION)
                return above, _unpacked(_read_list(path, above) if is_list else [address])
            found = _matching(store, name, endings) if _WILDCARD.search(name) else None
            if found is None:
                found = name, [one for one in store.find(name) if one.lower().endswith(endings)]
            root, names = found
            if not names and not store.exists(root):
                raise UsageError(f"{text}: there is no such file or folder")
    except OSError as error:
        reason = redacted(error.strerror or str(error) or type(error).__name__)
        raise UsageError(f"{redacted(text)}: cannot be listed: {reason}") from None
    shown = (one for one in names if not HIDDEN.search(one[len(root) :]))
    return f"{scheme}://{root}", _unpacked(f"{scheme}://{one}" for one in shown)


def _unpacked(paths: Iterable[str]) -> Iterator[str]:
    """The paths, as they come; UsageError at a tar file that is compressed, which would be no photograph."""
    for path in paths:
        if path.lower().endswith(_COMPRESSED):
            raise UsageError(f"{path}: a compressed tar file has to be unpacked first")
        yield path


def _matching(store: Any, pattern: str, endings: tuple[str, ...]) -> tuple[str, list[str]]:
    """The folder before the first wildcard, and the names below it that match."""
    parts = pattern.split("/")
    fixed = next(place for place, part in enumerate(parts) if _WILDCARD.search(part))
    root, wanted = "/".join(parts[:fixed]), parts[fixed:]
    endings = _endings_of(wanted[-1], endings)
    names = store.find(root, maxdepth=None if "**" in wanted else len(wanted))
    return root, [
        one
        for one in names
        if one.lower().endswith(endings) and _matches(one[len(root) :].lstrip("/").split("/"), wanted)
    ]


def _endings_of(last: str, endings: tuple[str, ...]) -> tuple[str, ...]:
    """Any ending, where a pattern says itself what it wants, as `*.jfif` does."""
    return ("",) if "." in last and not _WILDCARD.search(last.rpartition(".")[2]) else endings


def _walk(folder: str, endings: tuple[str, ...], depth: float = math.inf) -> Iterator[str]:
    """Files below the folder, `depth` levels of them. Links may lead back up: none is followed round."""
    stack: list[tuple[str, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while stack:
        here, way = stack.pop()
        try:
            entries = list(os.scandir(here))
        except OSError as error:
            raise UsageError(f"{here}: cannot be listed: {error.strerror}") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                real = os.path.realpath(entry.path)
                if real not in way and len(way) < depth:
                    stack.append((entry.path, (*way, real)))
            elif entry.name.lower().endswith(endings) and _is_file(entry):
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _glob(pattern: str, endings: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """As a shell with `**` has it, by walking and matching: the library's glob runs around in loops."""
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if _WILDCARD.search(part))
    root = os.path.abspath(Path(*parts[:fixed]))  # noqa: PTH100
    if not Path(root).is_dir():
        raise UsageError(f"{pattern}: there is no folder {root}")
    wanted = parts[fixed:]
    endings = _endings_of(wanted[-1], endings)
    depth = math.inf if "**" in wanted else len(wanted)
    paths = _walk(root, endings, depth)
    return root, (path for path in paths if _matches(_below(path, root).split("/"), wanted))


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not names
    if wanted[0] == "**":
        return _matches(names, wanted[1:]) or (bool(names) and _matches(names[1:], wanted))
    return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and _matches(names[1:], wanted[1:])


def _read_list(path: Path, folder: str) -> Iterator[str]:
    """Paths in a file list: one a line, relative to the list's folder; blank lines and # comments aside."""
    try:
        # Universal newlines; bytes that are not UTF-8 come through as file names have them.
        with as_os_errors(), io.TextIOWrapper(path.open("rb"), "utf-8-sig", "surrogateescape") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.strip()
                if line and not line.startswith("#"):
                    yield _listed(line, folder, f"{path}, line {number}")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {redacted(error.strerror or str(error))}") from None


def _listed(line: str, folder: str, where: str) -> str:
    if "\0" in line:
        raise UsageError(f"{where}: expected a path in each line; is this a text file?")
    if "://" in line and (scheme := scheme_of(line)):
        if scheme == "file":
            return os.fspath(place(line))
        try:
            check_address(line)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        return line
    if line.startswith("~"):
        line = os.path.expanduser(line)  # noqa: PTH111  (pathlib raises for an unknown user)
    path_text = line if line.startswith("/") else f"{folder}/{line}"
    if scheme_of(folder) and not line.startswith("/"):
        return path_text
    odd = "//" in path_text or "/." in path_text or path_text.endswith("/")
    return os.path.normpath(path_text) if odd else path_text


def _below(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/")

"""From what the user typed to a sorted list of inputs, each with the key that is its name for good.

An INPUT is a folder, a glob, a file list (`.txt`) or one image file. A key says which image a row is about,
wherever the collection lies, so it is the path below the input's root, with `/` between the parts: for a
folder the folder, for a glob its part before the first wildcard, for a file list the list's own folder. With
several inputs each key starts with its root's name. The extension stays in the key: `a.jpg` and `a.png` are
two images.

Nothing is opened here but file lists: whether a file is a photograph is for `decode` to say, image by image.
"""

# ruff: noqa: PTH118, PTH119, PTH120  (paths are strings here: eleven million Path objects take minutes)

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, unquote

from pipelines.errors import UsageError

_WILDCARD = re.compile(r"[*?[]")
_ABSOLUTE_URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_FILE_URI = "file://"
_LIST_EXTENSION = ".txt"


@dataclass(frozen=True, slots=True)
class InputItem:
    """One input: its name for good, and where its bytes are (an absolute path, or see `uri_of`)."""

    key: str
    uri: str


def list_inputs(inputs: Sequence[str | Path], extensions: Sequence[str]) -> list[InputItem]:
    """Every image of the inputs, sorted by key (by code points).

    `extensions` (".jpg", …; in any case) choose the files of folders, and of globs that name no extension of
    their own; hidden files and folders are passed over, links are followed, but not back into their own
    ancestors. A file that was named outright, or in a file list, is taken whatever it is called. The same
    file reached twice under one key counts once.

    Raises UsageError where an input is missing or unreadable, where two different files have one key, and
    where nothing is found.
    """
    if not inputs:
        raise UsageError("no input: expected a folder, a glob, a file list (.txt) or an image file")
    endings = tuple(extension.lower() for extension in extensions)
    several = len(inputs) > 1
    items: list[InputItem] = []
    for given in inputs:
        text = os.fspath(given)
        root, paths = _expand(text, endings)
        prefix = f"{_readable(os.path.basename(root))}/" if several else ""
        before = len(items)
        items.extend(InputItem(prefix + _key(path, root), uri_of(path)) for path in paths)
        if len(items) == before:
            raise UsageError(f"{text}: no image found; looked for files ending in {', '.join(endings)}")
    items.sort(key=lambda item: (item.key, item.uri))
    return _without_repeats(items)


def uri_of(path: str) -> str:
    """An absolute path; a percent-encoded `file://` URI where its bytes are not UTF-8, as Parquet wants."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _FILE_URI + quote(os.fsencode(path))
    return path


def path_of(uri: str) -> Path:
    """The local path that `uri_of` wrote down."""
    if uri.startswith(_FILE_URI):
        return Path(os.fsdecode(unquote(uri.removeprefix(_FILE_URI), errors="surrogateescape")))
    return Path(uri)


def _expand(text: str, endings: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """The root that keys are relative to, and the paths; all absolute, links as the user wrote them."""
    if _ABSOLUTE_URI.match(text):
        raise UsageError(f"{text}: expected a local path; copy or mount the collection first")
    path = Path(text)
    absolute = os.path.abspath(text)  # noqa: PTH100  (not resolved: a link is the name the user chose)
    try:
        if path.is_dir():
            return absolute, _walk(absolute, endings)
        if path.is_file() and path.suffix.lower() == _LIST_EXTENSION:
            return os.path.dirname(absolute), _read_list(absolute)
        if path.exists():
            return os.path.dirname(absolute), iter([absolute])
    except OSError as error:
        raise UsageError(f"{text}: cannot be read: {error.strerror}") from None
    if _WILDCARD.search(text):
        return _glob(text, endings)
    raise UsageError(f"{text}: there is no such file or folder")


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
            elif entry.name.lower().endswith(endings) and Path(entry.path).is_file():
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _glob(pattern: str, endings: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """As a shell with `**` has it, by walking and matching: the library's glob runs around in loops."""
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if _WILDCARD.search(part))
    root = os.path.abspath(Path(*parts[:fixed]))  # noqa: PTH100
    if not Path(root).is_dir():
        raise UsageError(f"{pattern}: there is no folder {root}")
    wanted = parts[fixed:]
    if "." in wanted[-1] and not _WILDCARD.search(wanted[-1].rpartition(".")[2]):
        endings = ("",)  # `*.jfif` says itself what it wants
    depth = math.inf if "**" in wanted else len(wanted)
    paths = _walk(root, endings, depth)
    return root, (path for path in paths if _matches(_below(path, root).split("/"), wanted))


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not names
    if wanted[0] == "**":
        return _matches(names, wanted[1:]) or (bool(names) and _matches(names[1:], wanted))
    return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and _matches(names[1:], wanted[1:])


def _read_list(path: str) -> Iterator[str]:
    """Paths in a file list: one a line, relative to the list's folder; blank lines and # comments aside."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    folder = os.path.dirname(path)
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        line = os.fsdecode(raw).strip()
        if not line or line.startswith("#"):
            continue
        if "\0" in line:
            raise UsageError(f"{path}, line {number}: expected a path in each line; is this a text file?")
        if _ABSOLUTE_URI.match(line):
            raise UsageError(f"{path}, line {number}: expected a local path, got {line}")
        yield os.path.normpath(os.path.join(folder, line))


def _key(path: str, root: str) -> str:
    """The path below the root; a listed file that lies elsewhere keeps its absolute path."""
    return _readable(_below(path, root))


def _below(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/")


def _readable(name: str) -> str:
    r"""The name as valid Unicode: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _without_repeats(items: list[InputItem]) -> list[InputItem]:
    kept = items[:1]
    for before, item in pairwise(items):
        if item.key != before.key:
            kept.append(item)
        elif item.uri != before.uri:
            raise UsageError(
                f"two inputs have the key {item.key!r}: {before.uri} and {item.uri}; "
                "rename one folder, or give the folder above both"
            )
    return kept

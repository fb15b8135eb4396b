"""From what the user typed to a sorted list of inputs, each with the key that is its name for good.

An INPUT is a folder, a glob, a file list (`.txt`) or one image file. A key says which image a row is about,
wherever the collection lies, so it is the path below the input's root, with `/` between the parts: for a
folder the folder, for a glob its part before the first wildcard, for a file list the list's own folder. With
several inputs each key starts with its root's name. The extension stays in the key: `a.jpg` and `a.png` are
two images.

Nothing is opened here but file lists: whether a file is a photograph is for `decode` to say, image by image.
"""

# ruff: noqa: PTH119, PTH120  (paths are strings here: eleven million Path objects take minutes)

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError

INPUT_SCHEMA = pa.schema([("key", pa.string()), ("uri", pa.string())])
"""An input's name for good, and where its bytes are (see `uri_of`)."""

_WILDCARD = re.compile(r"[*?[]")
_ABSOLUTE_URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_FILE_URI = "file://"
_LIST_EXTENSION = ".txt"


_PIECE_ROWS = 1 << 16


def list_inputs(inputs: Sequence[str | Path], extensions: Sequence[str]) -> pa.Table:
    """Every image of the inputs, a table of `INPUT_SCHEMA` sorted by key (by code points).

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
    pieces: list[pa.RecordBatch] = []
    for given in inputs:
        text = os.fspath(given)
        root, paths = _expand(text, endings)
        prefix = f"{_readable(os.path.basename(root))}/" if len(inputs) > 1 else ""
        before = len(pieces)
        pieces.extend(_columns(paths, root, prefix))
        if len(pieces) == before:
            raise UsageError(f"{text}: no image found; looked for files ending in {', '.join(endings)}")
    return _without_repeats(in_order(pa.Table.from_batches(pieces, INPUT_SCHEMA)))


def in_order(inputs: pa.Table) -> pa.Table:
    """The inputs sorted by key, then uri; as they are where they are sorted already.

    The sorted columns are gathered in pieces, one column after the other: a whole column of eleven million
    names is more than Arrow's `string` can hold in one.
    """
    keys = inputs["key"]
    if len(keys) < 2 or pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
        return inputs
    order = pc.sort_indices(inputs, sort_keys=[("key", "ascending"), ("uri", "ascending")])
    columns = []
    for name in INPUT_SCHEMA.names:
        whole = inputs[name].cast(pa.large_string()).combine_chunks()
        pieces = [
            whole.take(order.slice(start, _PIECE_ROWS)).cast(pa.string())
            for start in range(0, len(order), _PIECE_ROWS)
        ]
        columns.append(pa.chunked_array(pieces, pa.string()))
    return pa.table(columns, schema=INPUT_SCHEMA)


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
    folder = os.path.dirname(path)
    try:
        # Universal newlines; bytes that are not UTF-8 come through as file names have them.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:  # noqa: PTH123
            for number, raw in enumerate(file, start=1):
                line = raw.strip()
                if line and not line.startswith("#"):
                    yield _listed(line, folder, f"{path}, line {number}")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _listed(line: str, folder: str, where: str) -> str:
    if "\0" in line:
        raise UsageError(f"{where}: expected a path in each line; is this a text file?")
    if _ABSOLUTE_URI.match(line):
        raise UsageError(f"{where}: expected a local path, got {line}")
    path = line if line.startswith("/") else f"{folder}/{line}"
    return os.path.normpath(path) if "//" in path or "/." in path or path.endswith("/") else path


def _columns(paths: Iterator[str], root: str, prefix: str) -> Iterator[pa.RecordBatch]:
    """Keys and uris of local files, in pieces of `INPUT_SCHEMA`."""
    below = root.rstrip("/") + "/"
    while piece := list(islice(paths, _PIECE_ROWS)):
        keys = [prefix + path.removeprefix(below) for path in piece]
        try:
            columns = [pa.array(keys, pa.string()), pa.array(piece, pa.string())]
        except UnicodeEncodeError:
            columns = [pa.array(map(_readable, keys), pa.string()), pa.array(map(uri_of, piece), pa.string())]
        yield pa.record_batch(columns, schema=INPUT_SCHEMA)


def _below(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/")


def _readable(name: str) -> str:
    r"""The name as valid Unicode: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _without_repeats(inputs: pa.Table) -> pa.Table:
    """Sorted inputs, each once; UsageError where one key stands for two files."""
    if inputs.num_rows < 2:
        return inputs
    before, after = inputs.slice(0, inputs.num_rows - 1), inputs.slice(1)
    again = pc.equal(before["key"], after["key"])
    if not pc.any(again).as_py():
        return inputs
    clash = pc.and_(again, pc.not_equal(before["uri"], after["uri"]))
    if pc.any(clash).as_py():
        row = pc.index(clash, True).as_py()
        key, first, second = inputs["key"][row], inputs["uri"][row], inputs["uri"][row + 1]
        raise UsageError(
            f"two inputs have the key {str(key)!r}: {first} and {second}; "
            "rename one folder, or give the folder above both"
        )
    return inputs.filter(pa.chunked_array([[True], *pc.invert(again).chunks]))

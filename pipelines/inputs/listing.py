"""From what the user typed to a sorted table of inputs, each with the key that is its name for good.

An INPUT is a folder, a glob, a file list (`.txt`), an image file, a tar file or a Parquet file, here or in a
store. A key says which image a row is about, wherever the collection lies, so it is the path below the
input's root, with `/` between the parts: for a folder the folder, for a glob its part before the first
wildcard, for a file list the list's own folder. With several inputs each key starts with its root's name. The
extension stays in the key: `a.jpg` and `a.png` are two images. What lies in an archive has the archive's own
address in its key (`archives`).

No photograph is opened here, only file lists and the headers of archives: whether a file is a photograph is
for `decode` to say, image by image.
"""

# ruff: noqa: PTH119, PTH120  (paths are strings here: eleven million Path objects take minutes)

from __future__ import annotations

import fnmatch
import io
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError
from ..storage.paths import (
    as_os_errors,
    check_address,
    is_remote,
    place,
    redacted,
    scheme_of,
    store_of,
    uri_of,
)
from .archives import HIDDEN, INPUT_SCHEMA, images_inside, is_archive, readable

log = logging.getLogger(__name__)

EXPECTED = "a folder, a glob, a file list (.txt), an image, tar or Parquet file"

_WILDCARD = re.compile(r"[*?[]")
_LIST_EXTENSION = ".txt"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

_PIECE_ROWS = 1 << 16


def list_inputs(
    inputs: Sequence[str | Path],
    extensions: Sequence[str],
    image_column: str | None = None,
    note: Callable[[str], None] = log.info,
) -> pa.Table:
    """Every image of the inputs, a table of `INPUT_SCHEMA` sorted by key (by code points).

    `extensions` (".jpg", …; in any case) choose the files of folders, the members of tar files, and the files
    of globs that name no extension of their own; hidden files and folders are passed over, links are
    followed, but not back into their own ancestors. A file that was named outright, or in a file list, is
    taken whatever it is called; a tar or Parquet file is taken for what is in it. The same file reached twice
    under one key counts once. `image_column` is that of Parquet files; None finds it. `note` is told, in a
    sentence, what reading the archives' headers took.

    Raises UsageError where an input is missing or unreadable, where two different files have one key, and
    where nothing is found.
    """
    if not inputs:
        raise UsageError(f"no input: expected {EXPECTED}")
    endings = tuple(extension.lower() for extension in extensions)
    pieces: list[pa.RecordBatch] = []
    archives: list[str] = []
    for given in inputs:
        text = os.fspath(given)
        root, paths = _expand(text, endings)
        prefix = f"{readable(os.path.basename(root))}/" if len(inputs) > 1 else ""
        before = len(pieces) + len(archives)
        while paths_here := list(islice(paths, _PIECE_ROWS)):
            inside = [path for path in paths_here if is_archive(path)]
            archives += inside
            files = [path for path in paths_here if not is_archive(path)] if inside else paths_here
            pieces += [_columns(files, root, prefix)] if files else []
        if len(pieces) + len(archives) == before:
            raise UsageError(
                f"{redacted(text)}: no image found; looked for files ending in {', '.join(endings)}; "
                "tar and Parquet files are named, as folder/*.tar"
            )
    pieces += images_inside(archives, endings, image_column, note)
    if not any(piece.num_rows for piece in pieces):
        raise UsageError(f"no image found in {archives[0]}; looked for {', '.join(endings)}")
    return _without_repeats(in_order(_table(pieces)))


def in_order(inputs: pa.Table) -> pa.Table:
    """The inputs sorted by key, then uri; as they are where they are sorted already.

    The sorted columns are gathered in pieces, and each is let go before the next: eleven million names are a
    gigabyte or more, and no longer fit one array of Arrow's `string`.
    """
    keys = inputs["key"]
    if len(keys) < 2 or pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
        return inputs
    order = pc.sort_indices(inputs, sort_keys=[("key", "ascending"), ("uri", "ascending")])
    columns = {name: inputs[name] for name in INPUT_SCHEMA.names}
    del inputs, keys
    for name in INPUT_SCHEMA.names:
        column = columns[name]
        pieces = [
            column.take(order.slice(start, _PIECE_ROWS)).combine_chunks()
            for start in range(0, len(order), _PIECE_ROWS)
        ]
        columns[name] = pa.chunked_array(pieces, pa.string())
    return pa.table(columns, schema=INPUT_SCHEMA)


def _table(pieces: list[pa.RecordBatch]) -> pa.Table:
    """The pieces as one table, which then alone holds them."""
    table = pa.Table.from_batches(pieces, INPUT_SCHEMA)
    pieces.clear()
    return table


def _expand(text: str, endings: tuple[str, ...]) -> tuple[str, Iterator[str]]:
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
    path_text = line if line.startswith("/") else f"{folder}/{line}"
    if scheme_of(folder) and not line.startswith("/"):
        return path_text
    odd = "//" in path_text or "/." in path_text or path_text.endswith("/")
    return os.path.normpath(path_text) if odd else path_text


def _columns(paths: list[str], root: str, prefix: str) -> pa.RecordBatch:
    """Keys and uris of files and objects, a piece of `INPUT_SCHEMA`."""
    below = root.rstrip("/") + "/"
    keys = [prefix + path.removeprefix(below) for path in paths]
    try:
        uris = [uri_of(path) for path in paths] if any("://" in path for path in paths) else paths
        columns = [pa.array(keys, pa.string()), pa.array(uris, pa.string())]
    except UnicodeEncodeError:
        columns = [pa.array(map(readable, keys), pa.string()), pa.array(map(uri_of, paths), pa.string())]
    return pa.record_batch(columns, schema=INPUT_SCHEMA)


def _below(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/")


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
        archive, _, member = str(first).partition("#")
        inside = scheme_of(archive) and member and str(second).startswith(f"{archive}#")
        raise UsageError(
            f"two inputs have the key {str(key)!r}: {first} and {second}; "
            + (
                "unpack the archive, which keeps the last of a name, or pack it anew"
                if inside
                else "rename one folder, or give the folder above both"
            )
        )
    return inputs.filter(pa.chunked_array([[True], *pc.invert(again).chunks]))

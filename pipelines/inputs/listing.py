"""From what the user typed to a sorted table of inputs, each with the key that is its name for good.

An INPUT is a folder, a glob, a file list (`.txt`), an image file, a tar file or a Parquet file, here or in a
store. A key says which image a row is about, wherever the collection lies, so it is the path below the
input's root, with `/` between the parts: for a folder the folder, for a glob its part before the first
wildcard, for a file list the list's own folder. With several inputs each key starts with its root's name. The
extension stays in the key: `a.jpg` and `a.png` are two images. What lies in an archive has the archive's own
address in its key (`archives`).

No image is opened here, only file lists and the headers of archives: whether a file is an image is
for `decoding` to say, image by image.
"""

# ruff: noqa: PTH119  (paths are strings here: eleven million Path objects take minutes)

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from ..errors import UsageError
from ..storage.paths import uri_of
from ..text import readable, redacted
from .archives import images_inside, is_archive
from .expand import expand
from .table import INPUT_SCHEMA, PIECE_ROWS, in_order, without_repeats

log = logging.getLogger(__name__)

EXPECTED = "a folder, a glob, a file list (.txt), an image, tar or Parquet file"


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
        root, paths = expand(text, endings)
        prefix = f"{readable(os.path.basename(root))}/" if len(inputs) > 1 else ""
        before = len(pieces) + len(archives)
        while paths_here := list(islice(paths, PIECE_ROWS)):
            inside = [path for path in paths_here if is_archive(path)]
            archives += inside
            files = [path for path in paths_here if not is_archive(path)] if inside else paths_here
            pieces += [_columns(files, root, prefix)] if files else []
        if len(pieces) + len(archives) == before:
            raise UsageError(
                f"{redacted(text)}: no image found; looked for files ending in {', '.join(endings)}; "
                "name tar and Parquet files outright, as in folder/*.tar"
            )
    pieces += images_inside(archives, endings, image_column, note)
    if not any(piece.num_rows for piece in pieces):
        raise UsageError(f"no image found in {archives[0]}; looked for {', '.join(endings)}")
    return without_repeats(in_order(_table(pieces)))


def _table(pieces: list[pa.RecordBatch]) -> pa.Table:
    """The pieces as one table, which then alone holds them."""
    table = pa.Table.from_batches(pieces, INPUT_SCHEMA)
    pieces.clear()
    return table


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

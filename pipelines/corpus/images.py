"""The image behind a row: its file's own bytes, and no others.

They come from the row itself where the run embedded them, else from where the run read them, or where the
images were moved since (`pipelines.inputs.moved`). What is read is held against the row's `image_sha256`:
masks belong to the pixels that they were made from, and a file that was edited since would carry them wrongly
without anyone noticing.

A corpus and its images often lie in one folder that is moved, or mounted elsewhere, as a whole. A row's uri
is absolute, and nothing records where the corpus lay when it was made: a recorded place would make the bytes
of a corpus depend on its folder, and would be missing in every corpus that is there already. So where the
recorded place does not have the image, its last parts (`x.jpg`, `photos/x.jpg`, …) are looked for in the
corpus's folder and the few above it. A guess does no harm: only bytes with the row's SHA-256 are ever taken,
and those are the image, wherever they lie. What fitted one row is tried first for the next.
"""

# ruff: noqa: PTH100, PTH113  (uris are strings; a link is the name that the user chose)

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CorpusError, CorpusUnavailable, InputRejected
from ..inputs.moved import Moved, is_within, plain, uri_at, vanished
from ..inputs.reader import read_input
from ..storage.paths import is_remote, scheme_of
from ..text import redacted

FOLDERS_ABOVE = 4
"""How far above the corpus an image is looked for that moved with it."""


class Originals:
    """The image files of a corpus's rows; may be asked from several threads."""

    def __init__(self, corpus: Path, moved: Moved) -> None:
        self._moved = moved
        self._folders: list[str] = []
        if not is_remote(corpus):
            here = Path(os.path.abspath(corpus))
            self._folders = [str(folder).rstrip("/") for folder in (here, *here.parents[:FOLDERS_ABOVE])]
        self._found: list[tuple[str, str]] = []  # pairs as `Moved` has them, by what fitted

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of a row's image file, orientation tag and all.

        `row` has the columns `key`, `uri` and `image_sha256`; `image` where images may be embedded. Raises
        CorpusError where the file is missing, cannot be read, or is not the one that the row was made from,
        and for a row whose file never could be read; CorpusUnavailable where its storage fails, or its whole
        folder, archive or bucket is gone.
        """
        key, sha256, image = row["key"], row["image_sha256"], row.get("image")
        if sha256 is None:
            raise CorpusError(f"{key}: its file could not be read when the corpus was made")
        if image is not None and image["bytes"] is not None:
            return _checked(key, bytes(image["bytes"]), sha256, "the embedded image")
        uri = self._moved.apply(row["uri"])
        was_moved = uri != row["uri"]
        where = redacted(f"{uri} (moved from {row['uri']})" if was_moved else uri)
        try:
            return _checked(key, _read(key, uri, where, may_have_moved=not was_moved), sha256, where)
        except CorpusError:
            found = None if was_moved else self._moved_along(uri, sha256)
            if found is None:
                raise
        return found

    def _moved_along(self, uri: str, sha256: str) -> bytes | None:
        """The image from where it lies if it moved together with the corpus; None where it does not."""
        was, part = plain(uri)
        if scheme_of(was):
            return None
        for old, new in self._places(was):
            try:
                data = read_input(uri_at(new + was[len(old) :], part))
            except (InputRejected, OSError):
                continue
            if hashlib.sha256(data).hexdigest() == sha256:
                if (old, new) not in self._found:
                    self._found.append((old, new))
                return data
        return None

    def _places(self, was: str) -> Iterator[tuple[str, str]]:
        """Pairs of what may have moved where, such that a file is there: those that fitted before, then all,
        folders near the corpus and long ends of the path first.
        """
        for old, new in tuple(self._found):
            if is_within(was, old):
                yield old, new
        for new in self._folders:
            for at, letter in enumerate(was):
                if letter == "/" and was[:at] != new and os.path.isfile(new + was[at:]):
                    yield was[:at], new


def _checked(key: str, data: bytes, sha256: str, where: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorpusError(f"{key}: {where} has changed: it is not the image that the masks were made from")
    return data


def _read(key: str, uri: str, where: str, *, may_have_moved: bool) -> bytes:
    try:
        return read_input(uri)
    except InputRejected as error:
        is_gone = error.error_class == "Missing" and not plain(uri)[1]
        hint = _hint(uri) if is_gone and may_have_moved else ""
        raise CorpusError(f"{key}: {where}: {error.message}{hint}") from None
    except OSError as error:
        hint = _hint(uri) if isinstance(error, FileNotFoundError) and may_have_moved else ""
        reason = redacted(error.strerror or str(error) or type(error).__name__)
        raise CorpusUnavailable(f"{key}: {where}: cannot be read: {reason}{hint}", error.errno) from None


def _hint(uri: str) -> str:
    pair = shlex.quote(f"{redacted(vanished(uri))}=NEW")
    return f"; if it was moved, say where it is now with --moved {pair} (in Python and YAML: moved)"

"""Where images lie now that were moved since a corpus recorded their uris.

A uri stays in the plan and in the rows for good; who moves the images says so in pairs, OLD and NEW. Each is
a local folder, a store's address, or a single file or archive, and the two need not be of the same kind. OLD
holds for what lies in it, part by part: `/data/photos` is no beginning of `/data/photos2/a.jpg`. Of several
that hold, the longest counts. A part of an archive is read through its archive's place.
"""

# ruff: noqa: PTH100, PTH110, PTH111, PTH120  (uris are strings; a link is the name that the user chose)

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

from ..errors import UsageError
from ..storage.paths import check_address, file_uri, place, scheme_of, uri_of
from ..text import readable


@dataclass(frozen=True, slots=True)
class Moved:
    """Pairs of (OLD, NEW) as `plain` has places, without a `/` at their end, the longest OLD first."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, places: Mapping[str, str]) -> Self:
        """The pairs as a user gives them, local paths taken against the current folder.

        Raises UsageError where a NEW is no place: a local path with nothing there, or an address that no
        image can be read from.
        """
        pairs = tuple((_typed(str(old)), _typed(str(new))) for old, new in places.items())
        for _, new in pairs:
            if scheme_of(new):
                check_address(new)
            elif not os.path.exists(new or "/"):
                raise UsageError(f"moved: {new}: there is no such file or folder; expected OLD=NEW")
        return cls(pairs)

    def __post_init__(self) -> None:
        longest_first = sorted(self.pairs, key=lambda pair: (-len(pair[0]), pair))
        object.__setattr__(self, "pairs", tuple(longest_first))

    def apply(self, uri: str) -> str:
        """Where the bytes of a recorded uri are now: another uri, or the same where no OLD holds."""
        if not self.pairs:
            return uri
        was, part = plain(uri)
        for old, new in self.pairs:
            if is_within(was, old):
                return uri_at(new + was[len(old) :], part)
        return uri


def is_within(where: str, folder: str) -> bool:
    """Whether a place is this one, or lies in it."""
    return where.startswith(folder) and where[len(folder) :][:1] in ("", "/")


def plain(uri: str) -> tuple[str, str]:
    """The place that a uri names, nothing in it encoded, and the part of an archive, empty for a file."""
    scheme = scheme_of(uri)
    if scheme is None:
        return uri, ""
    where, _, part = uri.partition("#")
    return (os.fspath(place(where)) if scheme == "file" else unquote(where)), part


def uri_at(where: str, part: str) -> str:
    """The uri of a place, or of a part of the archive that lies there; what `plain` takes apart."""
    if scheme_of(where):
        where = readable(where)  # names in a store are Unicode
    if not part:
        return uri_of(where)
    return f"{uri_of(where) if scheme_of(where) else file_uri(where)}#{part}"


def vanished(uri: str) -> str:
    """The OLD to name for an image that is not there any more: the topmost folder of its path that is gone,
    or, where none is or nobody can tell, the folder that it lay in.
    """
    where, _ = plain(uri)
    old = folder = os.path.dirname(where)
    while not scheme_of(where) and not os.path.exists(folder):
        old, folder = folder, os.path.dirname(folder)
    return old


def _typed(text: str) -> str:
    if scheme_of(text) not in (None, "file"):
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(place(text))).rstrip("/")

"""Reads the first directory of a TIFF file; an EXIF block is such a file in itself.

Pillow and libtiff trust much of it: older Pillows let a thousand tags each take the whole file for their
value. So where the values lie, and how long they are together, is checked against the file here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputRejected
from .rejections import truncated

ORIENTATION = 274

_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of a value, by its type
_LETTERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # those that sizes and offsets come in


class Damaged(Exception):  # noqa: N818
    """The directory makes no sense."""


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """The tags of a directory, and the byte order that their values are in: `<` or `>`."""

    order: str
    entries: dict[int, _Entry]

    def __contains__(self, tag: int) -> bool:
        """Say whether the tag is there."""
        return tag in self.entries

    def content(self, tag: int) -> bytes:
        """Return the tag's bytes as they are; none where it is missing."""
        return self.entries[tag].value if tag in self.entries else b""

    def number(self, tag: int, default: int | None = None) -> int:
        """Return the tag's one value, or the default where the tag is missing; else raises Damaged."""
        if tag not in self.entries and default is not None:
            return default
        return int(self.numbers(tag, 1)[0])

    def numbers(self, tag: int, at_most: int) -> npt.NDArray[np.int64]:
        """Return the tag's values; raises Damaged where they are none, too many, or no integers."""
        if tag not in self.entries:
            raise Damaged(f"tag {tag} is missing")
        entry = self.entries[tag]
        if entry.kind not in _LETTERS or not 0 < entry.count <= at_most:
            raise Damaged(f"tag {tag} has {entry.count} values of type {entry.kind}")
        values = np.frombuffer(entry.value, self.order + _LETTERS[entry.kind])
        if (values > 2**40).any():
            raise Damaged(f"tag {tag} has a value past 2⁴⁰")
        return values.astype(np.int64)


def orientation(exif: bytes) -> int:
    """Return the orientation that EXIF says; 1 where it says none. Damaged EXIF does not spoil an image."""
    try:
        value = read_directory(exif, wanted={ORIENTATION}).number(ORIENTATION, 1)
        return value if value <= 0xFFFF else 1
    except (Damaged, InputRejected, struct.error):
        return 1


def read_directory(data: bytes, wanted: set[int] | None = None) -> Directory:
    """Read the first directory, or those of its tags that are wanted.

    Raises Damaged or struct.error where it makes no sense, among others where a tag stands there twice or
    values overlap; and InputRejected where it points behind the file's end.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise Damaged("no byte order")
    version = struct.unpack_from(order + "H", data, 2)[0]
    if version not in (42, 43):
        raise Damaged(f"version {version}")
    big = version == 43
    head, entry, offset, slot = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    at = struct.unpack_from(order + offset, data, 8 if big else 4)[0]
    step = struct.calcsize(order + entry) + slot
    if at + struct.calcsize(head) > len(data):
        raise past_the_end()
    count = struct.unpack_from(order + head, data, at)[0]
    at += struct.calcsize(order + head)
    if at + count * step > len(data):
        raise past_the_end()
    entries: dict[int, _Entry] = {}
    total = 0
    for place in range(at, at + count * step, step):
        tag, kind, number = struct.unpack_from(order + entry, data, place)
        if wanted is not None and tag not in wanted:
            continue
        size = (_SIZES[kind] if kind < len(_SIZES) else 0) * number
        start = place + step - slot
        if size > slot:
            start = struct.unpack_from(order + offset, data, start)[0]
            total += size
        if tag in entries:
            raise Damaged(f"tag {tag} twice")
        if start + size > len(data):
            raise past_the_end()
        if total > len(data):
            raise Damaged("its values together are longer than the file")
        entries[tag] = _Entry(kind, number, data[start : start + size])
    return Directory(order, entries)


def past_the_end() -> InputRejected:
    """The file is cut short: its directory points to bytes that are not there."""
    return truncated("the TIFF directory points behind the file's end")

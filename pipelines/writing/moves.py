"""A rerun whose inputs lie elsewhere than when they were planned: where, and that they are the same images.

A key names an image for good, a uri only says where it was. So a rerun that is given the planned keys in
another folder goes on: the plan and the rows keep their uris, and what is left is read from where the inputs
are now. But another collection may have the same keys, `0001.jpg` and so on, and must neither get into this
corpus nor be taken for done. So images of rows that are there are held against their SHA-256 first, and a
corpus that has no such row is not gone on with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import CorpusError, InputRejected, UsageError
from ..format.layout import shard_path
from ..format.parquet_files import open_parquet, reading
from ..format.plan import Plan
from ..inputs.moved import Moved, is_within, plain
from ..inputs.reader import read_input
from ..text import redacted

MOST_PLACES = 16
"""Places that a collection may have moved to; each costs a walk through the plan."""

HELD_IMAGES = 16
"""Images that are held against their rows, one a shard."""


def moves(uris: Callable[[], Iterable[tuple[str, str]]]) -> Moved | None:
    """What leads from the planned uri of each input to the one that it has now; None where no few pairs do.

    `uris` walks through all inputs, those that did not move included: what holds for a folder must not lead
    away from a part of it that stayed.
    """
    moved = Moved()
    for _ in range(MOST_PLACES):
        odd = next(((was, now) for was, now in uris() if moved.apply(was) != now), None)
        if odd is None:
            return moved
        moved = Moved((*moved.pairs, _pair(moved, *odd)))
    return None


def check_planned(plan: Plan, moved: Moved) -> None:
    """Raise UsageError where no input of the plan lay at a place that is said to have moved."""
    left = {old for old, _ in moved.pairs}
    for table in plan.tables(("uri",)):
        for uri in table["uri"].to_pylist():
            left -= {old for old in left if is_within(plain(uri)[0], old)}
        if not left:
            return
    raise UsageError(f"moved: no input of the plan lay at {redacted(min(left) or '/')}")


def check_same_images(out: Path, shards: Iterable[int], moved: Moved, *, is_said: bool = False) -> None:
    """Hold images that moved against the rows of the shards, which are committed.

    Raises CorpusError where one is another image, and, unless the user said where they moved (`is_said`),
    where no row could tell; OSError where storage fails.
    """
    held = 0
    for shard in shards:
        path = shard_path(out, shard)
        with open_parquet(path) as file, reading(path):
            rows = file.read(["key", "uri", "image_sha256", "status"]).to_pylist()
        for row in rows:
            uri = moved.apply(row["uri"])
            if uri == row["uri"] or row["status"] == "rejected":  # whose file may have been mended since
                continue
            try:
                data = read_input(uri)
            except InputRejected:  # the next one may tell
                continue
            if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
                raise CorpusError(
                    f"{out}: the inputs are not those of the plan: {row['key']} lies at {redacted(uri)} now, "
                    "and is not the image that its row was made from: make a separate corpus of these inputs"
                )
            held += 1
            break
        if held == HELD_IMAGES:
            return
    if not (held or is_said):
        old, new = (redacted(place or "/") for place in moved.pairs[0])
        raise CorpusError(
            f"{out}: the inputs lay at {old} and lie at {new} now, and there is no row yet to tell whether "
            "they are the same images: start anew with --overwrite, choose another --out, or go on with "
            f"maskmill resume --moved {old}={new}"
        )


def _pair(moved: Moved, was_uri: str, now_uri: str) -> tuple[str, str]:
    """The widest pair that leads from one uri to the other, and holds for less than those there are."""
    (was, _), (now, _) = plain(was_uri), plain(now_uri)
    longest = max((len(old) for old, _ in moved.pairs if is_within(was, old)), default=-1)
    for at, letter in enumerate(was):
        if letter == "/" and at > longest and now.endswith(was[at:]):
            return was[:at], now.removesuffix(was[at:])
    return was, now

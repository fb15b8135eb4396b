"""The ids of images and masks, in a corpus of ours and in one that was imported from SA-1B.

A corpus of ours derives an image's id from its key, and an annotation's from its place in the plan. An import
keeps the ids that its source has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import UsageError

MASK_BITS = 20
MAX_MASKS = (1 << MASK_BITS) - 1
"""The most masks an image can have: an annotation's id has `MASK_BITS` bits for them."""

_NAME = re.compile(r"sa_(0|[1-9][0-9]{0,18})\.(?:jpg|json)")
_LARGEST_ID = 2**63 - 1


def image_id(key: str) -> int:
    """The first 63 bits of the SHA-256 of the key's UTF-8: a key has the same id in every corpus."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def annotation_id(row: int, mask: int) -> int:
    """An annotation's id, unique in the corpus: (row in the plan << 20) + mask index + 1."""
    if not 0 <= mask < MAX_MASKS:
        raise ValueError(f"expected a mask index from 0 to {MAX_MASKS - 1}, got {mask}")
    return (row << MASK_BITS) + mask + 1


def file_name(key: str) -> str:
    """The key's last component: the file's own name."""
    return key.rsplit("/", 1)[-1]


def released_id(key: str) -> int | None:
    """NUMBER of a key whose last part is `sa_NUMBER.jpg` or `.json`, as SA-1B names files; else None."""
    found = _NAME.fullmatch(re.split("[/#]", key)[-1])
    number = int(found[1]) if found else -1
    return number if 0 <= number <= _LARGEST_ID else None


def identify(key: str, imported: bool) -> int | None:
    """The image_id of a key; None if an imported corpus cannot have such a key."""
    return released_id(key) if imported else image_id(key)


def image_ids(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The `image_id` of each key."""
    pieces = [np.zeros(0, np.int64)]
    for chunk in keys.chunks:
        sha256, texts = hashlib.sha256, chunk.cast(pa.binary()).to_pylist()
        digests = b"".join([sha256(text).digest()[:8] for text in texts])
        pieces.append((np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64))
    return np.concatenate(pieces)


def released_ids(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The `released_id` of each key. Raises ValueError for a key that has none."""
    pieces = [np.zeros(0, np.int64)]
    for chunk in keys.chunks:
        ids = [released_id(key) for key in chunk.to_pylist()]
        if None in ids:
            raise ValueError(f"{chunk[ids.index(None)]}: expected a name as sa_1.jpg")
        pieces.append(np.array(ids, np.int64))
    return np.concatenate(pieces)


def refuse_collisions(ids: npt.NDArray[np.int64], keys: Sequence[str] | pa.ChunkedArray) -> None:
    """Raise UsageError, which names the keys, if two images would share an id."""
    order = np.argsort(ids, kind="stable")
    (twins,) = np.nonzero(np.diff(ids[order]) == 0)
    if twins.size:
        first, second = (str(keys[int(order[twins[0] + step])]) for step in (0, 1))
        what = "twice" if first == second else f"and {second!r} have the same image_id"
        raise UsageError(f"the input {first!r} {what}; rename one of them")

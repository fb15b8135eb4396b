"""Run-length codes of masks, as COCO writes them: runs down the columns, the first run is background.

A mask is encoded from its box alone: the boundaries of the runs inside the box, moved to their places in the
whole image. That costs the object's area, where encoding the image-sized mask costs the image's. Reading goes
through `run_lengths`, which checks what it reads: a corrupt string is an error here and not a crash in C.

Needs numpy and pycocotools only: readers of a corpus use this module without loading torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from engine.records import Rle

BLOCK_PIXELS = 1 << 22
"""Boundaries are looked for in blocks of columns of about this many pixels, to bound the scratch memory."""


def encode(mask_HW: npt.NDArray[np.bool_]) -> Rle:
    """Encode a mask of the whole image; raises ValueError unless it is a non-empty 2-D bool array."""
    if mask_HW.ndim != 2 or mask_HW.size == 0:
        raise ValueError(f"expected a non-empty mask of shape H×W, got shape {mask_HW.shape}")
    return encode_box(mask_HW, 0, 0, (mask_HW.shape[0], mask_HW.shape[1]))


def encode_box(mask_hw: npt.NDArray[np.bool_], x0: int, y0: int, size: tuple[int, int]) -> Rle:
    """Encode a mask of which only the box with its top left corner at pixel (x0, y0) is given.

    `size` is (height, width) of the whole image; outside the box there is background. Fastest where `mask_hw`
    is column-major in memory. Raises ValueError for another dtype and for a box that leaves the image.
    """
    height, width = size
    if mask_hw.dtype != np.bool_:
        raise ValueError(f"expected a bool mask, got {mask_hw.dtype}")
    box_height, box_width = mask_hw.shape
    if x0 < 0 or y0 < 0 or x0 + box_width > width or y0 + box_height > height:
        raise ValueError(
            f"box of {box_height}×{box_width} at x={x0}, y={y0} leaves the image of {height}×{width}"
        )
    return encode_ends(_boundaries(mask_hw.T, x0, y0, height), size)


def encode_ends(ends: npt.NDArray[np.int64], size: tuple[int, int]) -> Rle:
    """Encode a mask given where its runs start and end, in turn: rising column-major positions in the image.

    Runs may stop at a column's end, and the next one go on from there: `size` is (height, width).
    """
    height, width = size
    # A run that reaches the image's bottom goes on at the top of the next column.
    joins = np.flatnonzero(ends[1:-1:2] == ends[2::2])
    ends = np.delete(ends, np.concatenate([2 * joins + 1, 2 * joins + 2]))
    counts = np.diff(ends, prepend=0, append=height * width)
    if counts[-1] == 0:  # the mask ends with the image; only the first run may be empty
        counts = counts[:-1]
    return from_run_lengths(counts, size)


def from_run_lengths(counts: npt.NDArray[np.int64], size: tuple[int, int]) -> Rle:
    """Compress run lengths, background first, that add up to height × width."""
    height, width = size
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return Rle((height, width), packed["counts"].decode("ascii"))


def run_lengths(rle: Rle) -> npt.NDArray[np.int64]:
    """Lengths of the runs, background first.

    The string holds numbers in groups of five bits, a group to a character: low group first, bit 5 says that
    more follow, the last group's bit 4 is the sign. From the fourth number on each is the difference from the
    number two before. Raises ValueError where the string is malformed or the runs do not fill the image.
    """
    height, width = rle.size
    if height <= 0 or width <= 0:
        raise ValueError(f"an image has at least one pixel, got size {rle.size}")
    if not rle.counts.isascii():
        raise ValueError("not a compressed run-length string: it has characters outside ASCII")
    groups = np.frombuffer(rle.counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if len(groups) == 0 or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError(
            "not a compressed run-length string: a character is out of range or the end is missing"
        )
    last = np.flatnonzero(groups & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    if place.max() > 10:
        raise ValueError("not a compressed run-length string: a number has more than 11 groups")
    counts = np.add.reduceat((groups & 31) << (5 * place), first)
    counts -= (groups[last] & 16) << (5 * place[last] + 1)  # the sign
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    pixels = height * width
    if counts.min() < 0 or counts.max() > pixels or counts.sum() != pixels:  # a sum alone may wrap round
        raise ValueError(
            f"runs must be ≥ 0 and add up to {height}×{width} = {pixels}, "
            f"got a minimum of {counts.min()}, a maximum of {counts.max()} and a sum of {counts.sum()}"
        )
    return counts


def decode(rle: Rle) -> npt.NDArray[np.bool_]:
    """The mask as an H×W bool array (column-major in memory). Raises ValueError for a malformed code."""
    counts = run_lengths(rle)
    height, width = rle.size
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def area(rle: Rle) -> int:
    """Pixels of the mask."""
    return int(run_lengths(rle)[1::2].sum())


def bbox(rle: Rle) -> tuple[float, float, float, float]:
    """The box around the mask, XYWH with width = x_max − x_min + 1; all zeros for an empty mask."""
    counts = run_lengths(rle)
    ends = np.cumsum(counts)[1::2]
    starts = ends - counts[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        return (0.0, 0.0, 0.0, 0.0)
    height = rle.size[0]
    first_column, last_column = starts // height, (ends - 1) // height
    one_column = first_column == last_column  # a run that passes a column's end has been at bottom and top
    top = int(np.where(one_column, starts % height, 0).min())
    bottom = int(np.where(one_column, (ends - 1) % height, height - 1).max())
    left, right = int(first_column.min()), int(last_column.max())
    return (float(left), float(top), float(right - left + 1), float(bottom - top + 1))


def _boundaries(mask_wh: npt.NDArray[np.bool_], x0: int, y0: int, height: int) -> npt.NDArray[np.int64]:
    """Where runs start and end, in turn, as column-major positions in an image of that height."""
    box_width, box_height = mask_wh.shape
    found = [np.empty(0, np.int64)]
    step = max(1, BLOCK_PIXELS // max(1, box_height))
    for left in range(0, box_width, step):
        block = mask_wh[left : left + step]
        changes = np.empty((len(block), box_height + 1), np.bool_)  # a background row before and after
        changes[:, 0], changes[:, -1] = block[:, 0], block[:, -1]
        np.not_equal(block[:, 1:], block[:, :-1], out=changes[:, 1:-1])
        column, row = np.divmod(np.flatnonzero(changes), box_height + 1)
        found.append((column + x0 + left) * height + row + y0)
    return np.concatenate(found)

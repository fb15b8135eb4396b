"""Run-length codes of masks, as COCO writes them: runs down the columns, the first run is background.

A mask that comes as runs (`engine.codes.runs`) is encoded at the cost of its outline. Reading goes through
`run_lengths`, which checks what it reads: a corrupt string is an error here and not a crash in C.

Reading needs numpy only: readers of a corpus use this module without loading torch or Numba.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..records import Rle
from .runs import Runs


def encode(mask_HW: npt.NDArray[np.bool_]) -> Rle:
    """Encode a mask of the whole image; raises ValueError unless it is a non-empty 2-D bool array."""
    return encode_runs(Runs.of(mask_HW))


def encode_runs(mask: Runs) -> Rle:
    """Encode a mask of which the runs are known already."""
    from .loops import text_of_runs  # loads Numba

    height, width = mask.size
    text_B = text_of_runs(mask.start_R, mask.stop_R, height * width)
    return Rle((height, width), text_B.tobytes().decode("ascii"))


def from_run_lengths(counts: npt.NDArray[np.int64], size: tuple[int, int]) -> Rle:
    """Compress run lengths, background first, that add up to height × width."""
    from .loops import text_of_lengths  # loads Numba

    return Rle(size, text_of_lengths(counts.astype(np.int64, copy=False)).tobytes().decode("ascii"))


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


def decode_runs(rle: Rle) -> Runs:
    """The mask as runs that end with their columns: `encode_runs` the other way round.

    Costs what the mask's outline costs, not its image. Raises ValueError for a malformed code.
    """
    height, width = rle.size
    ends = np.cumsum(run_lengths(rle))
    start_R, stop_R = ends[: len(ends) // 2 * 2].reshape(-1, 2).T
    some = start_R < stop_R
    start_R, stop_R = start_R[some], stop_R[some]
    first_R, last_R = start_R // height, (stop_R - 1) // height
    columns_R = last_R - first_R + 1
    before_P = np.repeat(np.cumsum(columns_R) - columns_R, columns_R)
    column_P = np.repeat(first_R, columns_R) + np.arange(columns_R.sum()) - before_P
    start_P = np.maximum(np.repeat(start_R, columns_R), column_P * height)
    stop_P = np.minimum(np.repeat(stop_R, columns_R), (column_P + 1) * height)
    return Runs(start_P, stop_P, (height, width))


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

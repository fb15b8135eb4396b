"""Run-length codes of many masks, decoded together and without bitmaps: `single` for arrays of codes.

Decoding masks one by one costs some Python calls each. Here the strings of many masks become one array of
numbers, laid out in pairs (a run of background, a run of foreground), so that the differences that COCO
writes are undone by one cumulative sum for each kind of run. Areas are sums of runs; a box needs the first
and the last run, and the image row that each run starts in. The scratch memory is tens of times that of the
strings, so callers that have many decode them in pieces.

`decode` refuses the strings that `single.run_lengths` refuses, and needs numpy only, as that does: whoever
verifies a corpus loads no Numba. Compiled loops over many codes (`hull`) have `loops.lengths_of_text`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Text = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RunPairs:
    """M codes as P pairs of runs; a mask's pairs stand together.

    `first_M` and `last_M` are the places of its pairs. Where it ends with background, `is_padded_M`, the last
    pair's foreground is 0.
    """

    background_P: Ints
    foreground_P: Ints
    first_M: Ints
    last_M: Ints
    is_padded_M: Bools

    def each(self, values_M: Ints) -> Ints:
        """A mask's value for each of its pairs."""
        return np.repeat(values_M, self.last_M - self.first_M + 1)

    def are_proper(self) -> bool:
        """Whether each mask has a pixel, and no run is empty but the first: so encoders write them."""
        background_P, foreground_P = self.background_P == 0, self.foreground_P == 0
        background_P[self.first_M] = False
        foreground_P[self.last_M[self.is_padded_M]] = False
        if background_P.any() or foreground_P.any():
            return False
        return not (self.is_padded_M & (self.first_M == self.last_M)).any()


def decode(text_B: Text, offset_M1: Ints, pixels_M: Ints) -> RunPairs:
    """The runs of one mask or more, of images of so many pixels; mask m's string is at offset_M1[m : m + 2].

    Raises ValueError where `single.run_lengths` does for one of them, and where sums could be inexact: where
    the most pixels of an image times the number of pairs reaches 2⁵².
    """
    value_N, begin_M = _numbers(text_B, offset_M1)
    runs = _pairs(value_N, begin_M)
    if not _fill(runs, pixels_M):
        raise ValueError("runs must be ≥ 0 and add up to the pixels of their images")
    return runs


def areas(runs: RunPairs) -> Ints:
    """Pixels of each mask."""
    return np.add.reduceat(runs.foreground_P, runs.first_M)


def boxes(runs: RunPairs, height_M: Ints, pixels_M: Ints) -> Ints:
    """The box around each mask, XYWH with width = x_max − x_min + 1. The runs must be proper."""
    both_P = runs.background_P + runs.foreground_P
    both_P[runs.first_M[1:]] -= pixels_M[:-1]  # each mask starts at 0 again
    end_P = np.cumsum(both_P)
    start_P = end_P - runs.foreground_P
    padding = runs.last_M[runs.is_padded_M]  # the run before takes its place
    start_P[padding], end_P[padding] = start_P[padding - 1], end_P[padding - 1]
    height_P = runs.each(height_M)
    top_P = start_P - (start_P / height_P).astype(np.int64) * height_P  # far faster than a remainder
    bottom_P = top_P + (end_P - start_P)
    top_M = np.minimum.reduceat(top_P, runs.first_M)
    bottom_M = np.maximum.reduceat(bottom_P, runs.first_M)
    passes_M = bottom_M > height_M  # a run that passes a column's end has been at bottom and top
    top_M, bottom_M = np.where(passes_M, 0, top_M), np.where(passes_M, height_M, bottom_M)
    left_M, right_M = start_P[runs.first_M] // height_M, (end_P[runs.last_M] - 1) // height_M
    return np.stack([left_M, top_M, right_M - left_M + 1, bottom_M - top_M], axis=1)


def _numbers(text_B: Text, offset_M1: Ints) -> tuple[Ints, Ints]:
    """The numbers of all strings, and the place of each string's first number.

    `single.run_lengths` describes the strings. Raises ValueError where one is malformed.
    """
    groups = text_B - np.uint8(48)  # below 48 it wraps round, to above 63
    more = (groups & 32).astype(np.bool_)
    if (np.diff(offset_M1) == 0).any() or groups.max() > 63 or more[offset_M1[1:] - 1].any():
        raise ValueError(
            "not compressed run-length strings: a character is out of range or an end is missing"
        )
    last_N = np.flatnonzero(~more)
    width_N = np.diff(last_N, prepend=-1)
    longest = int(width_N.max())
    if longest > 11:
        raise ValueError("not compressed run-length strings: a number has more than 11 groups")
    value_N = ((groups[last_N] & 31) ^ 16).astype(np.int64) - 16  # the last group carries the sign
    for place in range(1, longest):
        (longer,) = np.nonzero(width_N > place)
        value_N[longer] = (value_N[longer] << 5) | (groups[last_N[longer] - place] & 31)
    return value_N, np.searchsorted(last_N, offset_M1[:-1])


def _pairs(value_N: Ints, begin_M: Ints) -> RunPairs:
    """The numbers in pairs, each mask's padded to whole ones, with their differences undone."""
    numbers_M = np.diff(begin_M, append=len(value_N))
    is_padded_M = numbers_M % 2 == 1
    runs_P2 = np.insert(value_N, (begin_M + numbers_M)[is_padded_M], 0).reshape(-1, 2)
    last_M = np.cumsum((numbers_M + 1) // 2) - 1
    first_M = np.concatenate([[0], last_M[:-1] + 1])
    background_P, foreground_P = runs_P2[:, 0].copy(), runs_P2[:, 1].copy()
    first_run_M = background_P[first_M]
    background_P[first_M] = 0  # what follows is not counted from it
    for runs_P in (background_P, foreground_P):
        sum_M = np.add.reduceat(runs_P, first_M)
        runs_P[first_M[1:]] -= sum_M[:-1]  # each mask starts at 0 again
        np.cumsum(runs_P, out=runs_P)
    background_P[first_M] = first_run_M
    foreground_P[last_M[is_padded_M]] = 0
    return RunPairs(background_P, foreground_P, first_M, last_M, is_padded_M)


def _fill(runs: RunPairs, pixels_M: Ints) -> bool:
    """Whether all runs are ≥ 0 and each mask's add up to exactly its image's pixels."""
    if int(pixels_M.max()) * len(runs.background_P) >= 1 << 52:
        return False  # sums might wrap round, and floats be too coarse
    most_P = runs.each(pixels_M)
    for runs_P in (runs.background_P, runs.foreground_P):
        if (runs_P < 0).any() or (runs_P > most_P).any():
            return False
    return bool((np.add.reduceat(runs.background_P + runs.foreground_P, runs.first_M) == pixels_M).all())

"""The convex hulls of masks, from their run-length codes.

The hull is that of the mask's pixels as squares, corners included. Of a column only its topmost and its
lowest corners can be on the hull, so that pixels are never drawn. A compiled loop over the codes of many
masks, since OpenCV's hull, called mask by mask from numpy, took ten times as long.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...model.kernels.jit import compiled

Ints = npt.NDArray[np.int64]
_FAR = 1 << 62


@compiled
def measure_hulls(
    text_B: npt.NDArray[np.uint8],
    offset_M: Ints,
    height_M: Ints,
    width_M: Ints,
    hull_M: npt.NDArray[np.float64],
    area_M: Ints,
) -> None:
    """Hull area, −1 for a malformed code, and area of each mask."""
    side = max(width_M.max(), 0) + 1 if len(width_M) else 1
    top_X, bottom_X, chain_X = np.empty(side, np.int64), np.empty(side, np.int64), np.empty(side, np.int64)
    for m in range(len(height_M)):
        top_X[: width_M[m] + 1], bottom_X[: width_M[m] + 1] = _FAR, -_FAR
        code_B = text_B[offset_M[m] : offset_M[m + 1]]
        area_M[m] = _outline(code_B, height_M[m], width_M[m], top_X, bottom_X)
        if area_M[m] <= 0:
            hull_M[m] = area_M[m]
            continue
        hull_M[m] = _under(bottom_X, width_M[m], -1, chain_X) - _under(top_X, width_M[m], 1, chain_X)


@compiled
def _outline(code_B: npt.NDArray[np.uint8], height: int, width: int, top_X: Ints, bottom_X: Ints) -> int:
    """Where the mask's highest and lowest corners are at each of the lines between columns; its area or −1.

    The code is as `engine.codes.single.run_lengths` describes it.
    """
    position, area, runs, before, last = 0, 0, 0, 0, 0
    at = 0
    while at < len(code_B):
        length, shift, more = 0, 0, True
        while more:
            if at == len(code_B) or not 48 <= code_B[at] <= 111 or shift > 50:
                return -1
            bits = int(code_B[at]) - 48
            length |= (bits & 31) << shift
            shift += 5
            more = (bits & 32) != 0
            at += 1
            if not more and bits & 16:
                length |= -1 << shift
        if runs > 2:
            length += before
        if length < 0 or length > height * width - position:
            return -1
        before, last = last, length
        if runs % 2:
            area += length
            for x in range(position // height, (position + length - 1) // height + 1 if length else 0):
                top = max(position - x * height, 0)
                bottom = min(position + length - x * height, height)
                for line in (x, x + 1):
                    top_X[line] = min(top_X[line], top)
                    bottom_X[line] = max(bottom_X[line], bottom)
        position += length
        runs += 1
    return area if position == height * width else -1


@compiled
def _under(y_X: Ints, width: int, sign: int, chain_X: Ints) -> float:
    """Area between the x axis and a side of the hull of all (x, y_X[x]): the top for 1, the bottom for −1."""
    size = 0
    for x in range(width + 1):
        if abs(y_X[x]) == _FAR:
            continue
        while size > 1:
            a, b = chain_X[size - 2], chain_X[size - 1]
            if sign * ((b - a) * (y_X[x] - y_X[a]) - (y_X[b] - y_X[a]) * (x - a)) > 0:
                break
            size -= 1
        chain_X[size] = x
        size += 1
    total = 0.0
    for place in range(1, size):
        a, b = chain_X[place - 1], chain_X[place]
        total += (b - a) * (y_X[a] + y_X[b]) / 2
    return total

"""The convex hulls of masks, from their run-length codes.

The hull is that of the mask's pixels as squares, corners included. Of a column only its topmost and its
lowest corners can be on the hull, so that pixels are never drawn. A compiled loop over the codes of many
masks, since OpenCV's hull, called mask by mask from numpy, took ten times as long.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...model.kernels.jit import compiled
from .loops import lengths_of_text

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
    count_C = np.empty(np.diff(offset_M).max() if len(width_M) else 0, np.int64)
    for m in range(len(height_M)):
        code_B = text_B[offset_M[m] : offset_M[m + 1]]
        count = lengths_of_text(code_B, height_M[m] * width_M[m], count_C)
        if count < 0:
            hull_M[m] = area_M[m] = -1
            continue
        top_X[: width_M[m] + 1], bottom_X[: width_M[m] + 1] = _FAR, -_FAR
        area_M[m] = _mark_corners(count_C[:count], height_M[m], top_X, bottom_X)
        hull_M[m] = 0
        if area_M[m]:
            hull_M[m] = _under(bottom_X, width_M[m], -1, chain_X) - _under(top_X, width_M[m], 1, chain_X)


@compiled
def _mark_corners(count_C: Ints, height: int, top_X: Ints, bottom_X: Ints) -> int:
    """Where the mask's highest and lowest corners are at each of the lines between columns; its area."""
    position, area = 0, 0
    for c in range(len(count_C)):
        length = count_C[c]
        if c % 2 and length:
            area += length
            for x in range(position // height, (position + length - 1) // height + 1):
                top = max(position - x * height, 0)
                bottom = min(position + length - x * height, height)
                for line in (x, x + 1):
                    top_X[line] = min(top_X[line], top)
                    bottom_X[line] = max(bottom_X[line], bottom)
        position += length
    return area


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

"""The concavity of masks, from their run-length codes: 1 − area over the area of the convex hull.

The hull is that of the mask's pixels as squares, corners included: it contains the mask, a rectangle's
concavity is 0 exactly, and a mask of a single pixel has one too. The other convention, the hull of the
pixels' centres, is smaller by about half the hull's perimeter, and gives small masks a concavity below 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...engine.codes import single
from ...engine.codes.hull import Ints, measure_hulls
from ...engine.records import Rle


def concavities(counts: pa.StringArray, height_M: Ints, width_M: Ints) -> npt.NDArray[np.float64]:
    """The concavities of M masks, given their codes and their images' sizes; 0 for an empty mask.

    Raises ValueError for a malformed code.
    """
    counts = counts.cast(pa.large_string())
    _, offsets, text = counts.buffers()
    offset_M = np.frombuffer(offsets, np.int64)[counts.offset : counts.offset + len(counts) + 1]
    text_B = np.frombuffer(text or b"", np.uint8)
    hull_M, area_M = np.zeros(len(counts)), np.zeros(len(counts), np.int64)
    measure_hulls(text_B, offset_M, height_M, width_M, hull_M, area_M)
    for wrong in np.flatnonzero(hull_M < 0):
        size = int(height_M[wrong]), int(width_M[wrong])
        single.run_lengths(Rle(size, counts[int(wrong)].as_py()))  # which says what is wrong
        raise ValueError("not a compressed run-length string")
    return np.where(area_M > 0, 1 - area_M / np.maximum(hull_M, 1), 0.0)

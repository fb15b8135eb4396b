"""How concave a mask is, from its runs: 1 − area over the area of its convex hull.

The hull is that of the mask's pixels as squares, corners included: it contains the mask, a rectangle's
concavity is 0 exactly, and a mask of a single pixel has one too. The other convention, the hull of the
pixels' centres, is smaller by about half the hull's perimeter, and gives small masks a concavity below 0. Of
a column only its topmost and its lowest corners can be on the hull, so that pixels are never drawn.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.runs import Runs


def hull_area(mask: Runs) -> float:
    """Area of the convex hull of a mask's pixel squares, in pixels; the mask must not be empty."""
    column_R, top_R = np.divmod(mask.start_R, mask.size[0])
    bottom_R = top_R + mask.stop_R - mask.start_R
    first_C = np.flatnonzero(np.diff(column_R, prepend=-1))
    last_C = np.append(first_C[1:], len(column_R)) - 1
    x_C, top_C, bottom_C = column_R[first_C], top_R[first_C], bottom_R[last_C]
    xs = np.concatenate([x_C, x_C + 1, x_C, x_C + 1])
    ys = np.concatenate([top_C, top_C, bottom_C, bottom_C])
    corners_P2 = np.stack([xs, ys], axis=1).astype(np.int32)
    return float(cv2.contourArea(cv2.convexHull(corners_P2)))


def concavity(mask: Runs) -> float:
    """1 − area over hull area: 0 for what is convex, below 1; 0 for an empty mask."""
    return 1 - mask.area / hull_area(mask) if len(mask.start_R) else 0.0

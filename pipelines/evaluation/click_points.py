"""Where a person would click: in the middle of what is meant, then where the answer is most wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..opencv import cv2


def correction(drawn_HW: NDArray[np.bool_], true_HW: NDArray[np.uint8]) -> tuple[NDArray[np.float64], int]:
    """The next click, (x, y), and its label: 1 where something is missing, 0 where there is too much.

    Where nothing is wrong, the middle of the mask once more.
    """
    missing = (true_HW.astype(bool) & ~drawn_HW).astype(np.uint8)
    surplus = (drawn_HW & ~true_HW.astype(bool)).astype(np.uint8)
    depth = [_squared_depth(part).max() for part in (missing, surplus)]
    if not any(depth):
        return centre(true_HW), 1
    return (centre(missing), 1) if depth[0] >= depth[1] else (centre(surplus), 0)


def centre(mask_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The pixel of the mask farthest from its edge, (x, y); of several the first. The border is an edge."""
    depth_HW = _squared_depth(mask_HW)
    y, x = np.unravel_index(int(depth_HW.argmax()), depth_HW.shape)
    return np.array([x, y], dtype=np.float64)


def _squared_depth(mask_HW: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The square of how far each pixel is from the nearest one outside the mask, a whole number.

    OpenCV's last bit depends on where in memory the mask lies, and would choose among pixels equally far.
    Exact to a depth of some 2,000 pixels.
    """
    distance_HW = cv2.distanceTransform(np.pad(mask_HW, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(np.square(distance_HW[1:-1, 1:-1], dtype=np.float64)).astype(np.int32)

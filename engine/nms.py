"""Non-maximal suppression of boxes: the better of two that overlap stays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def non_maximal_suppression(
    boxes_N4: npt.NDArray[np.int64], scores_N: npt.NDArray[np.float32], threshold: float
) -> npt.NDArray[np.int64]:
    """Indexes of the boxes that stay, by falling score; equal scores keep their order.

    A box goes where its IoU with a better one that stays is above the threshold. Boxes are XYXY and their
    widths x1 − x0: on the generator's inclusive boxes that is one pixel short, as in the released code, so
    that the same pairs are duplicates. Memory is that of the boxes; the work is kept × N.
    """
    boxes = boxes_N4.reshape(-1, 4).astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting = np.argsort(-scores_N, kind="stable")
    keep = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        keep.append(best)
        shared = np.minimum(boxes[best, 2:], boxes[waiting, 2:]) - np.maximum(
            boxes[best, :2], boxes[waiting, :2]
        )
        intersection = np.prod(np.maximum(shared, 0), axis=1, dtype=np.float32)
        union = areas[best] + areas[waiting] - intersection
        # Two boxes one pixel wide have no area and no IoU: both stay.
        iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        waiting = waiting[iou.astype(np.float64) <= threshold]
    return np.array(keep, dtype=np.int64)

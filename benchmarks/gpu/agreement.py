"""How two lists of masks of the same images agree, counted without pycocotools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskmill.engine import GeneratedMasks, MaskRecord
from maskmill.engine.codes import single


def matched_share(
    ours: Sequence[GeneratedMasks], theirs: Sequence[GeneratedMasks], min_iou: float
) -> float | None:
    """The share of masks with a partner of at least that IoU in the other list, the lower of both directions.

    None where a side has no mask at all.
    """
    matched_ours = matched_theirs = 0
    for one, other in zip(ours, theirs, strict=True):
        iou_OT = iou_of_pairs(one.masks, other.masks)
        matched_ours += int((iou_OT.max(1, initial=0) >= min_iou).sum())
        matched_theirs += int((iou_OT.max(0, initial=0) >= min_iou).sum())
    counts = count(ours), count(theirs)
    return min(matched_ours / counts[0], matched_theirs / counts[1]) if all(counts) else None


def same_codes(ours: Sequence[GeneratedMasks], theirs: Sequence[GeneratedMasks]) -> bool:
    """Whether both lists have the same run-length codes in the same order."""
    return [[mask.segmentation for mask in one.masks] for one in ours] == [
        [mask.segmentation for mask in other.masks] for other in theirs
    ]


def count(results: Sequence[GeneratedMasks]) -> int:
    """Masks of all images."""
    return sum(len(result.masks) for result in results)


def iou_of_pairs(ours: Sequence[MaskRecord], theirs: Sequence[MaskRecord]) -> npt.NDArray[np.float64]:
    """IoU of each of O masks with each of T: O×T."""
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    mask_OX, mask_TX = _pixels(ours), _pixels(theirs)
    shared_OT = (mask_OX @ mask_TX.T).astype(np.float64)  # fp32 counts up to 2^24 pixels exactly
    union_OT = mask_OX.sum(1, dtype=np.float64)[:, None] + mask_TX.sum(1, dtype=np.float64) - shared_OT
    return np.asarray(shared_OT / union_OT)


def _pixels(masks: Sequence[MaskRecord]) -> npt.NDArray[np.float32]:
    return np.stack([single.decode(mask.segmentation).flatten().astype(np.float32) for mask in masks])

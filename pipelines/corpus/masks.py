"""The masks of a row, from their run-length codes: painted, cut out, laid over each other, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from ...engine.codes import single
from ...engine.records import Rle
from ..errors import CorpusError

Annotation = dict[str, Any]
Priority = Literal["area", "predicted_iou"]
PRIORITIES: tuple[Priority, ...] = ("area", "predicted_iou")


def mask_nms(row: Mapping[str, Any], annotations: Sequence[Annotation], threshold: float) -> list[int]:
    """Indexes, in order, of the masks that stay where of two with an IoU above `threshold` the one of higher
    predicted IoU does, or the first of equal ones.

    The IoU is that of the pixels, by pycocotools on run-length codes. It cannot exceed the ratio of the
    areas, so only masks of about the same size are compared. Raises CorpusError where a code is damaged.
    """
    codes = [_code(row, index, annotation) for index, annotation in enumerate(annotations)]
    area_N = np.array([annotation["area"] for annotation in annotations], np.float64)
    scores_N = np.array([annotation["predicted_iou"] for annotation in annotations], np.float64)
    waiting = np.argsort(-scores_N, kind="stable")
    keep = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        keep.append(int(best))
        ratio_N = area_N[waiting] / area_N[best]
        near_N = np.minimum(ratio_N, 1 / ratio_N) > threshold
        near = waiting[near_N]
        if len(near):
            iou_1K = coco.iou([codes[best]], [codes[index] for index in near], [0] * len(near))
            near_N[near_N] = iou_1K[0] > threshold
            waiting = waiting[~near_N]
    return sorted(keep)


def label_map(
    row: Mapping[str, Any], annotations: Sequence[Annotation], priority: Priority = "area"
) -> npt.NDArray[np.int32]:
    """The masks laid over each other, H×W: 0 is background, k + 1 is annotation k of those given.

    Where masks overlap, `priority` says which one shows: by "area" the smaller, so that parts stay visible on
    their wholes; by "predicted_iou" the higher; of equal ones the first. A mask that others cover wholly has
    no pixel. Raises ValueError for a rejected image, which has no size, and for another priority; CorpusError
    where a mask's code is damaged or of another size.
    """
    if priority not in PRIORITIES:
        raise ValueError(f"expected a priority out of {', '.join(PRIORITIES)}, got {priority!r}")
    height, width = row["height"], row["width"]
    if height is None or width is None:
        raise ValueError(f"{row['key']}: a rejected image has no masks")
    sign = 1 if priority == "area" else -1
    rank_N = np.array([sign * annotation[priority] for annotation in annotations], np.float64)
    labels = np.zeros(height * width, np.int32)  # down the columns, as the runs go
    for index in np.argsort(rank_N, kind="stable")[::-1]:
        paint(labels, checked_lengths(row, int(index), annotations[index]), index + 1)
    return np.ascontiguousarray(labels.reshape(width, height).T)


def paint(pixels: npt.NDArray[Any], counts: npt.NDArray[np.int64], value: int) -> None:
    """Set the pixels of a mask, given by its run lengths, to a value; `pixels` lie column after column.

    That costs the mask's outline and area, where decoding it costs the image's.
    """
    ends = np.cumsum(counts)
    for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
        pixels[start:end] = value


@dataclass(frozen=True, slots=True)
class Cutout:
    """A mask in its own box: `mask_HW[0, 0]` is pixel (x, y) of the image; outside it the mask is nowhere."""

    x: int
    y: int
    mask_HW: npt.NDArray[np.bool_]


def cutout(row: Mapping[str, Any], index: int) -> Cutout:
    """Mask `index` of a row, of its code's box; of size 0×0 for an empty mask. Costs the box's columns only.

    Raises CorpusError where the code is damaged or of another size.
    """
    ends = np.cumsum(checked_lengths(row, index, row["annotations"][index]))
    starts, ends = ends[:-1:2], ends[1::2]
    starts, ends = starts[starts < ends], ends[starts < ends]  # a code may have runs of nothing
    if len(starts) == 0:
        return Cutout(0, 0, np.zeros((0, 0), np.bool_))
    height = row["height"]
    left, right = int(starts[0]) // height, int(ends[-1] - 1) // height
    changes = np.concatenate([[left * height], np.stack([starts, ends], 1).ravel(), [(right + 1) * height]])
    inside = np.arange(len(changes) - 1) % 2 == 1
    columns_HW = np.repeat(inside, np.diff(changes)).reshape(right - left + 1, height).T
    rows = np.flatnonzero(columns_HW.any(1))
    return Cutout(left, int(rows[0]), columns_HW[rows[0] : rows[-1] + 1])


def checked_lengths(
    row: Mapping[str, Any], index: int, annotation: Mapping[str, Any]
) -> npt.NDArray[np.int64]:
    """The run lengths of mask `index` of a row; CorpusError where its code is damaged, or is not of the
    row's size where the row has one.
    """
    try:
        return single.run_lengths(code_of(row, f"mask {index}", annotation))
    except ValueError as error:
        raise CorpusError(f"{row.get('key')}: mask {index}: {error}") from None


def code_of(row: Mapping[str, Any], named: str, annotation: Mapping[str, Any]) -> Rle:
    """A mask's code, not yet read; CorpusError, in which the mask is `named` so, where it is not of the row's
    size and the row has one.
    """
    size, expected = list(annotation["segmentation"]["size"]), [row.get("height"), row.get("width")]
    if size != expected and expected != [None, None]:
        raise CorpusError(f"{row.get('key')}: {named} is for {size}, not {expected}")
    height, width = size
    return Rle((height, width), annotation["segmentation"]["counts"])


def _code(row: Mapping[str, Any], index: int, annotation: Mapping[str, Any]) -> dict[str, Any]:
    """A mask's code as pycocotools takes it; checked, since a malformed one is a crash in C."""
    checked_lengths(row, index, annotation)
    return {
        "size": list(annotation["segmentation"]["size"]),
        "counts": annotation["segmentation"]["counts"].encode("ascii"),
    }

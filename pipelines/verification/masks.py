"""Which masks of a row group agree with their run-length codes, all of them at once.

Measuring masks one by one costs a Python call or a bitmap each. Here the codes of many masks are decoded
together (`engine.codes.batch`), a piece of a row group at a time: the scratch memory is that of a piece.

What is said here is one-sided: a row that is not in doubt is sound in all that `rows.mask_problems`
looks at, and a row in doubt is for that function to say, which reads each mask by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...engine.codes import batch
from ..format.ids import MASK_BITS

PIECE_CHARACTERS = 1 << 17
"""Codes are decoded in pieces of about this many characters, or one mask; a few megabytes of arrays."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def doubtful_rows(
    annotations: pa.ListArray, plan_rows_R: Ints, heights_R: Ints, widths_R: Ints, imported: bool = False
) -> Bools:
    """For each of R rows, whether something may be wrong with one of its masks.

    `annotations` is that column of the rows; the others are the rows' places in the plan and the images'
    sizes in pixels (0 where there is none: such rows have masks only if they are damaged). `imported`: ids
    and boxes are as `run_record.IMPORTED` has them.
    """
    if len(annotations) == 0:
        return np.zeros(0, np.bool_)
    counts_R = pc.fill_null(pc.list_value_length(annotations), 0).to_numpy().astype(np.int64)
    masks = annotations.flatten()
    if _has_nulls(masks):
        return np.ones(len(annotations), np.bool_)
    row_M = np.repeat(np.arange(len(counts_R)), counts_R)
    place_M = np.arange(len(row_M)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    column = dict(zip(masks.type.names, masks.flatten(), strict=True))
    height_M, width_M = heights_R[row_M], widths_R[row_M]
    ids_M = _numbers(column["id"])
    if imported:
        sound_M = (ids_M >= 0) & _are_single(ids_M, row_M)
    else:
        sound_M = ids_M == (plan_rows_R[row_M] << MASK_BITS) + place_M + 1
    sound_M &= (height_M > 0) & (width_M > 0)
    sound_M &= _scores_are_sound(column) & _places_are_sound(column, height_M, width_M)
    size, counts = column["segmentation"].flatten()
    sound_M &= (_numbers(size.flatten()).reshape(-1, 2) == np.stack([height_M, width_M], axis=1)).all(axis=1)
    area_M, bbox_M4 = _numbers(column["area"]), _numbers(column["bbox"].flatten()).reshape(-1, 4)
    bbox_M4 = bbox_M4 + np.array([0, 0, 1, 1], np.float32) if imported else bbox_M4
    for piece in _pieces(counts):
        if sound_M[piece].all():
            boxes = bbox_M4[piece]
            sound_M[piece] = codes_agree(counts[piece], height_M[piece], width_M[piece], area_M[piece], boxes)
        else:
            sound_M[piece] = False
    doubt_R = np.zeros(len(counts_R), np.bool_)
    doubt_R[row_M[~sound_M]] = True
    return doubt_R


def codes_agree(
    counts: pa.StringArray, height_M: Ints, width_M: Ints, area_M: Ints, bbox_M4: npt.NDArray[np.float32]
) -> Bools:
    """Whether each code is well formed, fills its image, and has this area and this XYWH box.

    False for all of them where one cannot be decoded, has no pixel, or has an empty run after the first.
    Sizes are at least 1.
    """
    offset_M1, text_B = _text(counts)
    pixels_M = height_M * width_M
    try:
        runs = batch.decode(text_B, offset_M1, pixels_M)
    except ValueError:
        return np.zeros(len(counts), np.bool_)
    if not runs.are_proper():
        return np.zeros(len(counts), np.bool_)
    boxes_M4 = batch.boxes(runs, height_M, pixels_M)
    return np.asarray((batch.areas(runs) == area_M) & (bbox_M4 == boxes_M4).all(axis=1))


def _are_single(ids_M: Ints, row_M: Ints) -> Bools:
    """Whether no other mask of the same row has the same id."""
    order_M = np.lexsort((ids_M, row_M))
    twins = (np.diff(ids_M[order_M]) == 0) & (np.diff(row_M[order_M]) == 0)
    single_M = np.ones(len(ids_M), np.bool_)
    single_M[order_M[1:][twins]] = False
    return single_M


def _scores_are_sound(column: dict[str, pa.Array]) -> Bools:
    iou_M, stability_M = _numbers(column["predicted_iou"]), _numbers(column["stability_score"])
    return np.asarray(np.isfinite(iou_M) & (stability_M >= 0) & (stability_M <= 1))


def _places_are_sound(column: dict[str, pa.Array], height_M: Ints, width_M: Ints) -> Bools:
    """Whether crop boxes and points lie in the images; False for all where a point has not two numbers."""
    crops_M4 = _numbers(column["crop_box"].flatten()).reshape(-1, 4).astype(np.float64)
    sides_M2 = np.stack([width_M, height_M], axis=1)
    near_M2, far_M2 = crops_M4[:, :2], crops_M4[:, :2] + crops_M4[:, 2:]
    sound_M = np.asarray((near_M2 >= 0) & (crops_M4[:, 2:] > 0) & (far_M2 <= sides_M2)).all(axis=1)
    points_M = _numbers(pc.list_value_length(column["point_coords"])).astype(np.int64)
    points = column["point_coords"].flatten()
    if not points_M.all() or (_numbers(pc.list_value_length(points)) != 2).any():
        return np.zeros(len(near_M2), np.bool_)
    points_K2 = _numbers(points.flatten()).reshape(-1, 2)
    inside_K = ((points_K2 >= 0) & (points_K2 <= np.repeat(sides_M2, points_M, axis=0))).all(axis=1)
    return np.asarray(sound_M & np.logical_and.reduceat(inside_K, np.cumsum(points_M) - points_M))


def _pieces(counts: pa.StringArray) -> Iterator[slice]:
    """Runs of masks whose codes have about `PIECE_CHARACTERS` together."""
    offset_M1, _ = _text(counts)
    first = 0
    while first < len(counts):
        limit = offset_M1[first] + PIECE_CHARACTERS
        end = max(first + 1, int(np.searchsorted(offset_M1, limit, side="right")) - 1)
        yield slice(first, min(end, len(counts)))
        first = end


def _text(strings: pa.StringArray) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """Where each string starts and the last one ends, and the bytes of them all; nothing is copied."""
    _, offsets, data = strings.buffers()
    offset_M1 = np.frombuffer(offsets, np.int32)[strings.offset :][: len(strings) + 1].astype(np.int64)
    characters = np.frombuffer(data or b"", np.uint8)[offset_M1[0] : offset_M1[-1]]
    return offset_M1 - offset_M1[0], characters


def _has_nulls(array: pa.Array) -> bool:
    nested = isinstance(array.type, pa.StructType | pa.ListType | pa.FixedSizeListType)
    if array.null_count or not nested:
        return bool(array.null_count)
    parts = array.flatten() if isinstance(array.type, pa.StructType) else [array.flatten()]
    return any(_has_nulls(part) for part in parts)


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    return np.asarray(array.to_numpy(zero_copy_only=False))

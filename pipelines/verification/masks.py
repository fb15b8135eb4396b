"""Which masks of a row group agree with their run-length codes, all of them at once.

Measuring masks one by one costs a Python call or a bitmap each. Here the codes of many masks are decoded
together, without bitmaps: the strings of a piece become one array of numbers, laid out in pairs (a run of
background, a run of foreground), so that the differences that COCO writes are undone by one cumulative sum
for each kind of run. Areas are sums of runs; a box needs the first and the last run, and the image row that
each starts in. The scratch memory is that of a piece, not of a row group.

What is said here is one-sided: a row that is not in doubt is sound in all that `rows.mask_problems`
looks at, and a row in doubt is for that function to say, which reads each mask by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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

    False for all of them where one cannot be decoded. Sizes are at least 1.
    """
    runs = _runs(counts)
    if runs is None or not _fill(runs, height_M * width_M):
        return np.zeros(len(counts), np.bool_)
    sound_M = np.add.reduceat(runs.foreground_P, runs.first_M) == area_M
    boxes_M4 = _boxes(runs, height_M, height_M * width_M)
    return np.asarray(sound_M & (bbox_M4 == boxes_M4).all(axis=1))


def _are_single(ids_M: Ints, row_M: Ints) -> Bools:
    """Whether no other mask of the same row has the same id."""
    order_M = np.lexsort((ids_M, row_M))
    twins = (np.diff(ids_M[order_M]) == 0) & (np.diff(row_M[order_M]) == 0)
    single_M = np.ones(len(ids_M), np.bool_)
    single_M[order_M[1:][twins]] = False
    return single_M


@dataclass(frozen=True, slots=True)
class _Runs:
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


def _fill(runs: _Runs, pixels_M: Ints) -> bool:
    """Whether all masks have foreground, no empty run but the first, and exactly their images' pixels."""
    pairs = len(runs.background_P)
    if int(pixels_M.max()) * pairs >= 1 << 52:
        return False  # sums might wrap round, and floats be too coarse
    most_P = runs.each(pixels_M)
    least_P = np.ones(pairs, np.int64)
    least_P[runs.first_M] = 0
    if (runs.background_P < least_P).any() or (runs.background_P > most_P).any():
        return False
    least_P[:] = 1
    least_P[runs.last_M[runs.is_padded_M]] = 0
    if (runs.foreground_P < least_P).any() or (runs.foreground_P > most_P).any():
        return False
    if (runs.is_padded_M & (runs.first_M == runs.last_M)).any():
        return False  # nothing but background
    return bool((np.add.reduceat(runs.background_P + runs.foreground_P, runs.first_M) == pixels_M).all())


def _boxes(runs: _Runs, height_M: Ints, pixels_M: Ints) -> Ints:
    """XYWH of masks whose runs fill their images."""
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


def _runs(counts: pa.StringArray) -> _Runs | None:
    """The codes' numbers, their differences undone; None where a string is malformed.

    `engine.codes.single.run_lengths` describes the strings.
    """
    offset_M1, characters = _text(counts)
    groups = characters - np.uint8(48)  # below 48 it wraps round, to above 63
    more = (groups & 32).astype(np.bool_)
    if (np.diff(offset_M1) == 0).any() or groups.max() > 63 or more[offset_M1[1:] - 1].any():
        return None
    last_N = np.flatnonzero(~more)
    width_N = np.diff(last_N, prepend=-1)
    longest = int(width_N.max())
    if longest > 11:
        return None
    value_N = ((groups[last_N] & 31) ^ 16).astype(np.int64) - 16  # the last group carries the sign
    for place in range(1, longest):
        (longer,) = np.nonzero(width_N > place)
        value_N[longer] = (value_N[longer] << 5) | (groups[last_N[longer] - place] & 31)
    begin_M = np.searchsorted(last_N, offset_M1[:-1])
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
    return _Runs(background_P, foreground_P, first_M, last_M, is_padded_M)


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

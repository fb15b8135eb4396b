"""Masks at the image's size on a device: only where their runs start and end comes to the host.

A mask's box is cut into strips, each a column of tiles. Strips are interpolated into a canvas of flags that
is column-major, as COCO's runs are, with an empty tile below every strip: so no run of flags passes a
column's end, and a run starts or ends wherever a flag differs from the one before. All tiles of a box are
interpolated, those within the mask too: sorting them out costs a device more than their few products, and
the host would have to wait to hear their number.

As many strips are painted together as the memory allows, which also keeps `nonzero` within the number of
flags that it can count; a mask of any size is painted in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..runtime.transfer import fetch, upload
from .interpolation import Indexes
from .tiles import TILE, Resampler

MOST_FLAGS = (1 << 31) - 1
"""`nonzero` counts with 32 bits on a GPU."""

FLAG_BYTES = 4
"""Of each pixel: the flag, whether it differs from the one before, and room for where it does."""


@dataclass(frozen=True)
class Strips:
    """S strips of masks, from left to right, mask after mask: which mask, and where, in tiles."""

    mask_S: Indexes
    column_S: Indexes
    top_S: Indexes
    height_S: Indexes

    def __getitem__(self, chosen: slice) -> Strips:
        return Strips(self.mask_S[chosen], self.column_S[chosen], self.top_S[chosen], self.height_S[chosen])

    @property
    def row_counts(self) -> Indexes:
        """Canvas rows of each strip, TILE flags each: TILE columns of its tiles and an empty one."""
        return TILE * (self.height_S + 1)

    @property
    def first_rows(self) -> Indexes:
        """Each strip's first canvas row. Row 0 stays empty, to come before the first."""
        return 1 + np.cumsum(self.row_counts) - self.row_counts


@dataclass(frozen=True)
class RunEnds:
    """Where the runs of masks start and end, mask after mask: see `Runs.between`."""

    mask_E: Indexes
    x_E: Indexes
    y_E: Indexes


def run_ends(resampler: Resampler, logits_Nhw: Tensor, boxes_N4: Indexes) -> RunEnds:
    """The runs of N masks, given finite logits and each mask's box (XYXY, both ends inside).

    The host waits once for each canvas, whose runs have to be counted, and once for all of the runs.
    """
    canvases = []
    for strips, canvas_RO in _canvases(resampler, logits_Nhw, boxes_N4):
        flags = canvas_RO.flatten()
        changed = flags[TILE:] != flags[TILE - 1 : -1]
        canvases.append((strips, changed.nonzero()[:, 0].int()))
    ends = [
        _placed(strips, place_E.astype(np.int64) + TILE)
        for (strips, _), place_E in zip(canvases, fetch(*(place_E for _, place_E in canvases)), strict=True)
    ]
    return RunEnds(*(np.concatenate(arrays) for arrays in zip(*ends, strict=True)))


def _placed(strips: Strips, place_E: Indexes) -> tuple[Indexes, Indexes, Indexes]:
    """Mask, x and y of flags, counted through the canvas."""
    strip_E = np.searchsorted(TILE * strips.first_rows, place_E, side="right") - 1
    column_E, row_E = np.divmod(place_E - TILE * strips.first_rows[strip_E], strips.row_counts[strip_E])
    return (
        strips.mask_S[strip_E],
        TILE * strips.column_S[strip_E] + column_E,
        TILE * strips.top_S[strip_E] + row_E,
    )


def _canvases(resampler: Resampler, logits_Nhw: Tensor, boxes_N4: Indexes) -> Iterator[tuple[Strips, Tensor]]:
    """The strips of all boxes, some at a time, and the canvas they are painted on: rows × TILE bool."""
    every = _strips(boxes_N4)
    most_rows = min(resampler.budget_bytes // FLAG_BYTES, MOST_FLAGS) // TILE
    last_S = np.cumsum(every.row_counts)
    start = 0
    while start < len(last_S):
        before = last_S[start] - every.row_counts[start]
        stop = max(start + 1, int(np.searchsorted(last_S, before + most_rows - 1, side="right")))
        strips = every[start:stop]
        yield strips, _paint(resampler, logits_Nhw, strips)
        start = stop


def _strips(boxes_N4: Indexes) -> Strips:
    left_N, top_N, right_N, bottom_N = boxes_N4.T // TILE
    width_N = right_N - left_N + 1
    mask_S = np.repeat(np.arange(len(boxes_N4)), width_N)
    column_S = left_N[mask_S] + _count_up(width_N)
    return Strips(mask_S, column_S, top_N[mask_S], (bottom_N - top_N + 1)[mask_S])


def _paint(resampler: Resampler, logits_Nhw: Tensor, strips: Strips) -> Tensor:
    """The canvas of these strips."""
    device = logits_Nhw.device
    canvas_RO = torch.zeros((1 + int(strips.row_counts.sum()), TILE), dtype=torch.bool, device=device)
    strip_K, place_K = np.repeat(np.arange(len(strips.height_S)), strips.height_S), _count_up(strips.height_S)
    index_5K = np.stack(
        [
            strips.mask_S[strip_K],
            strips.top_S[strip_K] + place_K,
            strips.column_S[strip_K],
            strips.first_rows[strip_K] + place_K,
            strips.height_S[strip_K] + 1,
        ]
    )
    pixel_O = torch.arange(TILE, device=device)
    for n, ty, tx, row, step in (
        part_5K.unbind(0) for part_5K in upload(index_5K, device).split(resampler.tiles_at_once, 1)
    ):
        rows_KO = row[:, None] + pixel_O * step[:, None]
        canvas_RO[rows_KO] = (resampler.tiles(logits_Nhw, n, ty, tx) > 0).transpose(1, 2)
    return canvas_RO


def _count_up(lengths: Indexes) -> Indexes:
    """0, 1 … length − 1 for each of the lengths, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)

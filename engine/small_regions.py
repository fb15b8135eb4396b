"""Small-region clean-up: fill a mask's holes and remove its islands below an area (paper, appendix B).

Connected parts are found among the runs of the mask, or of its background, with a union-find over runs that
touch from one column to the next: that costs the outline's length, where labelling pixels costs the area.
"""

from __future__ import annotations

import numpy as np

from ..model.kernels.jit import compiled
from .codes.runs import Positions, Runs


def clean_up(mask: Runs, min_area: int, drop_small: bool = False) -> tuple[Runs | None, bool]:
    """Fill holes, then remove islands, of fewer than `min_area` pixels (8-connected).

    A hole is any part of the background, also one at the image's border, as in the released generator.
    Returns the mask and whether it was touched. Where every part is small, the largest stays, and the mask
    counts as touched; with `drop_small` the mask is None instead. Raises ValueError for an empty mask.
    """
    if len(mask.start_R) == 0:
        raise ValueError("a mask without pixels cannot be cleaned up")
    background = mask.background()
    hole_R = _areas(background)[0] < min_area
    if hole_R.any():
        mask = mask | background.where(hole_R)
    area_R, part_R = _areas(mask)
    small_R = area_R < min_area
    if small_R.all():
        if drop_small:
            return None, True
        small_R = part_R != part_R[np.argmax(area_R)]
        return mask.where(~small_R), True
    if small_R.any():
        mask = mask.where(~small_R)
    return mask, bool(hole_R.any() or small_R.any())


def _areas(mask: Runs) -> tuple[Positions, Positions]:
    """Of each run: pixels of the part that it belongs to, and the part's first run."""
    part_R = np.arange(len(mask.start_R))
    area_R = np.zeros(len(part_R), np.int64)
    _join(mask.start_R, mask.stop_R, mask.size[0], part_R, area_R)
    return area_R[part_R], part_R


@compiled
def _root(part_R: Positions, run: int) -> int:
    """The first run of the part, with paths halved on the way."""
    while part_R[run] != run:
        part_R[run] = part_R[part_R[run]]
        run = part_R[run]
    return run


@compiled
def _join(start_R: Positions, stop_R: Positions, height: int, part_R: Positions, area_R: Positions) -> None:
    """Name each run's part after its first run, and add the part's pixels up there.

    A run touches those of the column before that end no earlier than it starts and start no later than it
    ends: one pixel further than those beside it, since corners connect.
    """
    before = 0
    for run in range(len(start_R)):
        start, stop = start_R[run] - height, stop_R[run] - height  # moved to the column before
        column = start_R[run] // height - 1
        while before < run and (start_R[before] // height < column or stop_R[before] < start):
            before += 1
        other = before
        while other < run and start_R[other] // height == column and start_R[other] <= stop:
            if stop_R[other] >= start:
                one, two = _root(part_R, other), _root(part_R, run)
                part_R[max(one, two)] = min(one, two)
            other += 1
    for run in range(len(start_R)):
        part_R[run] = _root(part_R, run)
        area_R[part_R[run]] += stop_R[run] - start_R[run]

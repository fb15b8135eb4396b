"""A mask's outline as polygons, exactly: along the edges of pixels, holes included.

The corners of an outline are the places where one or three of the four pixels around are in the mask, or two
that touch by a corner. Along each row of corners they come in pairs, an edge between the two, and so along
each column; an outline is followed by taking such edges in turn. Where two pixels touch by a corner only,
it passes there twice, once around each.

COCO's format has no holes: its polygons are united. But each is filled by the even-odd rule, so a hole is
reached from the outline, walked around and left again the same way, which adds nothing to the area.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..corpus.masks import Cutout

Ints = npt.NDArray[np.int64]

_PASSES = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0])
"""How often an outline turns at a place, by which pixels around it are in the mask: 1 for the upper left, 2
for the upper right, 4 and 8 for those below."""


def polygons(mask: Cutout) -> list[list[float]]:
    """The polygons of a mask, as COCO writes them: x and y in turn, one for each connected part.

    Parts are connected by pixels' sides. Decoded by pycocotools they give the mask again, pixel for pixel.
    """
    if not mask.mask_HW.size:
        return []
    _, parts_HW = cv2.connectedComponents(np.pad(mask.mask_HW, 1).astype(np.uint8), connectivity=4)
    found: dict[int, list[list[int]]] = {}
    for part, ring in _rings(np.asarray(parts_HW, np.int32)):
        found.setdefault(part, []).append(ring)
    return [_with_offset(rings, mask.x, mask.y) for _, rings in sorted(found.items())]


def _with_offset(rings: list[list[int]], x: int, y: int) -> list[float]:
    """One polygon out of the outline (the ring that comes first, its top left corner) and its holes."""
    start = rings[0][:2]
    flat = list(rings[0])
    for ring in rings[1:]:
        corners = list(zip(ring[0::2], ring[1::2], strict=True))
        # Against the outline's own direction, so that a hole counts against it by the shoelace formula too.
        backwards = [corners[0], *reversed(corners[1:]), corners[0]]
        flat += [*start, *(value for corner in backwards for value in corner)]
    offset = (x, y)
    return [float(value + offset[at % 2]) for at, value in enumerate(flat)]


def _rings(parts_HW: npt.NDArray[np.int32]) -> list[tuple[int, list[int]]]:
    """The part that each ring is of, and the ring's corners, x and y in turn; by the topmost corners' order.

    `parts_HW` has a border of 0. A corner's coordinates are those of the pixel to its lower right, without
    that border.
    """
    inside_HW = (parts_HW > 0).astype(np.uint8)
    around_HW = inside_HW[:-1, :-1] + 2 * inside_HW[:-1, 1:] + 4 * inside_HW[1:, :-1] + 8 * inside_HW[1:, 1:]
    # A corner that is passed twice is there twice: first the passage that has its left edge.
    ys_N, xs_N = np.nonzero(_PASSES[around_HW])
    times_N = _PASSES[around_HW[ys_N, xs_N]]
    second_N = (np.arange(times_N.sum()) - np.repeat(np.cumsum(times_N) - times_N, times_N)) == 1
    ys_N, xs_N, twice_N = (np.repeat(values, times_N) for values in (ys_N, xs_N, times_N == 2))
    # Its left edge goes with the edge above where the upper left pixel is in the mask, else with that below.
    is_lower_N = twice_N & (second_N == (inside_HW[ys_N, xs_N] == 1))
    across_N = _partners(np.arange(len(xs_N)))
    down_N = _partners(np.lexsort((is_lower_N, ys_N, xs_N)))
    upper_N = np.maximum(parts_HW[ys_N, xs_N], parts_HW[ys_N, xs_N + 1])
    lower_N = np.maximum(parts_HW[ys_N + 1, xs_N], parts_HW[ys_N + 1, xs_N + 1])
    part_N = np.where(twice_N, np.where(is_lower_N, lower_N, upper_N), np.maximum(upper_N, lower_N))
    return _followed(across_N.tolist(), down_N.tolist(), xs_N.tolist(), ys_N.tolist(), part_N.tolist())


def _partners(order_N: Ints) -> Ints:
    """The corner at the other end of each one's edge, where in this order each two make an edge."""
    partner_N = np.empty_like(order_N)
    partner_N[order_N[0::2]] = order_N[1::2]
    partner_N[order_N[1::2]] = order_N[0::2]
    return partner_N


def _followed(
    across: list[int], down: list[int], xs: list[int], ys: list[int], parts: list[int]
) -> list[tuple[int, list[int]]]:
    rings = []
    waiting = [True] * len(xs)
    for start in range(len(xs)):
        if not waiting[start]:
            continue
        ring: list[int] = []
        at = start
        while waiting[at]:
            other = across[at]
            waiting[at] = waiting[other] = False
            ring += [xs[at], ys[at], xs[other], ys[other]]
            at = down[other]
        rings.append((parts[start], ring))
    return rings

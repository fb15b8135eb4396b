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

from engine import rle
from engine.records import Rle

Ints = npt.NDArray[np.int64]


def polygons(mask: Rle) -> list[list[float]]:
    """The polygons of a mask, as COCO writes them: x and y in turn, one for each connected part.

    Parts are connected by pixels' sides. Decoded by pycocotools they give the mask again, pixel for pixel.
    Raises ValueError where the code is malformed.
    """
    x, y, width, height = map(int, rle.bbox(mask))
    if not width:
        return []
    mask_HW = np.ascontiguousarray(rle.decode(mask)[y : y + height, x : x + width]).astype(np.uint8)
    _, parts_HW = cv2.connectedComponents(mask_HW, connectivity=4)
    found: dict[int, list[list[int]]] = {}
    for part, ring in _rings(np.pad(parts_HW, 1).astype(np.int64)):
        found.setdefault(part, []).append(ring)
    return [_with_offset(rings, x, y) for _, rings in sorted(found.items())]


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


def _rings(parts_HW: Ints) -> list[tuple[int, list[int]]]:
    """The part that each ring is of, and the ring's corners, x and y in turn; by the topmost corners' order.

    `parts_HW` has a border of 0. A corner's coordinates are those of the pixel to its lower right, without
    that border.
    """
    top_left, top_right = parts_HW[:-1, :-1], parts_HW[:-1, 1:]
    low_left, low_right = parts_HW[1:, :-1], parts_HW[1:, 1:]
    inside = [part > 0 for part in (top_left, top_right, low_left, low_right)]
    count = sum(part.astype(np.int64) for part in inside)
    falling = (count == 2) & (inside[0] == inside[3])  # the two touch by a corner only
    is_corner = (count % 2 == 1) | falling
    # A corner that is passed twice is there twice: first the passage that has its left edge.
    ys_N, xs_N = (np.repeat(values, np.where(falling[is_corner], 2, 1)) for values in np.nonzero(is_corner))
    twice_N = falling[ys_N, xs_N]
    second_N = np.zeros(len(xs_N), np.bool_)
    second_N[1:] = twice_N[1:] & (ys_N[1:] == ys_N[:-1]) & (xs_N[1:] == xs_N[:-1])
    # Its left edge goes with the edge above where the upper left pixel is in the mask, else with that below.
    is_lower_N = twice_N & (second_N == inside[0][ys_N, xs_N])
    across_N = _partners(np.arange(len(xs_N)))
    down_N = _partners(np.lexsort((is_lower_N, ys_N, xs_N)))
    around = np.stack([top_left, top_right, low_left, low_right])[:, ys_N, xs_N]
    upper, lower = np.maximum(around[0], around[1]), np.maximum(around[2], around[3])
    part_N = np.where(twice_N, np.where(is_lower_N, lower, upper), around.max(axis=0))
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

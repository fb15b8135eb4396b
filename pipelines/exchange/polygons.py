"""A mask's outline as polygons, exactly: along the edges of pixels, holes included.

The corners of an outline are the places where one or three of the four pixels around are in the mask, or two
that touch by a corner. Along each row of corners they come in pairs, an edge between the two, and so along
each column; an outline is followed by taking such edges in turn. Where two pixels touch by a corner only,
it passes there twice, once around each.

COCO's format has no holes: its polygons are united. But each is filled by the even-odd rule, so a hole is
reached from the outline, walked around and left again the same way, which adds nothing to the area.

A hole belongs to the part of the pixels just above it: to the left of those lies an edge of that part, on an
outline that begins higher up and so was followed before.
"""

from __future__ import annotations

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
    return [_with_offset(rings, mask.x, mask.y) for rings in _parts(np.pad(mask.mask_HW, 1).view(np.uint8))]


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


def _parts(inside_HW: npt.NDArray[np.uint8]) -> list[list[list[int]]]:
    """The rings of each connected part, its outline first, then its holes; each is corners, x and y in turn.

    `inside_HW` is 1 in the mask and has a border of 0. A corner's coordinates are those of the pixel to its
    lower right, without that border. Parts, and the holes of each, are in the order of their first pixels.
    """
    xs_N, ys_N, is_lower_N = _corners(inside_HW)
    down_the_columns_N = np.lexsort((is_lower_N, ys_N, xs_N))
    across_N, down_N = _partners(np.arange(len(xs_N))), _partners(down_the_columns_N)
    rings, ring_of = _followed(across_N.tolist(), down_N.tolist(), xs_N.tolist(), ys_N.tolist())
    height = len(inside_HW)
    place_N = (xs_N * height + ys_N)[down_the_columns_N]
    parts: list[list[list[int]]] = []
    part_of_ring: list[list[list[int]]] = []
    for ring in rings:
        x, y = ring[:2]
        if inside_HW[y + 1, x + 1]:
            part: list[list[int]] = []
            parts.append(part)
        else:
            edge_x = int(np.flatnonzero(inside_HW[y, : x + 1] == 0)[-1])
            upper_end = np.searchsorted(place_N, edge_x * height + y - 1, side="right") - 1
            part = part_of_ring[ring_of[down_the_columns_N[upper_end]]]
        part.append(ring)
        part_of_ring.append(part)
    return parts


def _corners(inside_HW: npt.NDArray[np.uint8]) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """The corners' x and y, row by row, and which are the lower passage of a place that is passed twice."""
    around_HW = inside_HW[:-1, :-1] + 2 * inside_HW[:-1, 1:] + 4 * inside_HW[1:, :-1] + 8 * inside_HW[1:, 1:]
    # A corner that is passed twice is there twice: first the passage that has its left edge.
    ys_N, xs_N = np.nonzero(_PASSES[around_HW])
    times_N = _PASSES[around_HW[ys_N, xs_N]]
    second_N = (np.arange(times_N.sum()) - np.repeat(np.cumsum(times_N) - times_N, times_N)) == 1
    ys_N, xs_N, twice_N = (np.repeat(values, times_N) for values in (ys_N, xs_N, times_N == 2))
    # Its left edge goes with the edge above where the upper left pixel is in the mask, else with that below.
    return xs_N, ys_N, twice_N & (second_N == (inside_HW[ys_N, xs_N] == 1))


def _partners(order_N: Ints) -> Ints:
    """The corner at the other end of each one's edge, where in this order each two make an edge."""
    partner_N = np.empty_like(order_N)
    partner_N[order_N[0::2]] = order_N[1::2]
    partner_N[order_N[1::2]] = order_N[0::2]
    return partner_N


def _followed(
    across: list[int], down: list[int], xs: list[int], ys: list[int]
) -> tuple[list[list[int]], list[int]]:
    """The rings, and which of them each corner is on."""
    rings: list[list[int]] = []
    ring_of = [-1] * len(xs)
    for start in range(len(xs)):
        if ring_of[start] >= 0:
            continue
        ring: list[int] = []
        at = start
        while ring_of[at] < 0:
            other = across[at]
            ring_of[at] = ring_of[other] = len(rings)
            ring += [xs[at], ys[at], xs[other], ys[other]]
            at = down[other]
        rings.append(ring)
    return rings, ring_of

"""Small-region clean-up: fill a mask's holes and remove its islands below an area (paper, appendix B).

Works on the mask's box. A part of the background that touches the box's border goes on outside and is no
hole, unless the strip between the box and the image's border is itself too small to count as background: then
the box is widened to the border first. So the result is that of the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class BoxMask:
    """A mask of which only a box is held: h×w bool, its top left corner at pixel (x0, y0) of the image."""

    mask_hw: npt.NDArray[np.bool_]
    x0: int
    y0: int

    def box(self) -> tuple[int, int, int, int]:
        """The tight box, XYXY with both ends inside. The mask must not be empty."""
        rows = np.flatnonzero(self.mask_hw.any(axis=1))
        columns = np.flatnonzero(self.mask_hw.any(axis=0))
        return (
            self.x0 + int(columns[0]),
            self.y0 + int(rows[0]),
            self.x0 + int(columns[-1]),
            self.y0 + int(rows[-1]),
        )


def clean_up(
    mask: BoxMask, image_size: tuple[int, int], min_area: int, drop_small: bool = False
) -> tuple[BoxMask | None, bool]:
    """Fill holes, then remove islands, of fewer than `min_area` pixels (8-connected).

    Returns the mask and whether it was touched. Where every part is small, the largest stays, and the mask
    counts as touched; with `drop_small` the mask is None instead. `image_size` is (height, width).
    """
    wide = _widen(mask, image_size, min_area)
    filled, holes = _fill_holes(wide, image_size, min_area)
    cleaned, islands = _remove_islands(filled, min_area, drop_small)
    if cleaned is None:
        return None, True
    return BoxMask(cleaned, wide.x0, wide.y0), holes or islands


def _widen(mask: BoxMask, image_size: tuple[int, int], min_area: int) -> BoxMask:
    """The same mask in a box that leaves nothing or at least `min_area` pixels beside it on each side."""
    height, width = image_size
    box_height, box_width = mask.mask_hw.shape
    right, bottom = width - mask.x0 - box_width, height - mask.y0 - box_height
    # A strip is no wider than the box was before widening, so a strip that is large now is large afterwards.
    left = mask.x0 if mask.x0 * box_height < min_area else 0
    right = right if right * box_height < min_area else 0
    top = mask.y0 if mask.y0 * box_width < min_area else 0
    bottom = bottom if bottom * box_width < min_area else 0
    if not (left or right or top or bottom):
        return mask
    padded = np.pad(mask.mask_hw, ((top, bottom), (left, right)))
    return BoxMask(padded, mask.x0 - left, mask.y0 - top)


def _fill_holes(
    mask: BoxMask, image_size: tuple[int, int], min_area: int
) -> tuple[npt.NDArray[np.bool_], bool]:
    height, width = image_size
    box_height, box_width = mask.mask_hw.shape
    above, left = int(mask.y0 > 0), int(mask.x0 > 0)
    below, right = int(mask.y0 + box_height < height), int(mask.x0 + box_width < width)
    # One row or column of the outside on each side where there is an outside.
    background = np.pad(~mask.mask_hw, ((above, below), (left, right)), constant_values=True)
    labels, stats = _parts(background)
    hole = stats[:, cv2.CC_STAT_AREA] < min_area
    hole[0] = False  # the mask itself
    for side, there in (
        (labels[0], above),
        (labels[-1], below),
        (labels[:, 0], left),
        (labels[:, -1], right),
    ):
        if there:
            hole[side] = False
    if not hole.any():
        return mask.mask_hw, False
    _erase(background, labels, stats, np.flatnonzero(hole))
    return ~background[above : above + box_height, left : left + box_width], True


def _remove_islands(
    mask_hw: npt.NDArray[np.bool_], min_area: int, drop_small: bool
) -> tuple[npt.NDArray[np.bool_] | None, bool]:
    labels, stats = _parts(mask_hw)
    areas = stats[1:, cv2.CC_STAT_AREA]
    small = areas < min_area
    if not small.any():
        return mask_hw, False
    if small.all():
        if drop_small:
            return None, True
        small[np.argmax(areas)] = False
    cleaned = mask_hw.copy()
    _erase(cleaned, labels, stats, 1 + np.flatnonzero(small))
    return cleaned, True


def _parts(mask_hw: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """8-connected parts: each pixel's label (0: not in the mask) and OpenCV's statistics of each label."""
    picture = np.ascontiguousarray(mask_hw).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(picture, connectivity=8)
    return np.asarray(labels, np.int32), np.asarray(stats, np.int32)


def _erase(
    mask_hw: npt.NDArray[np.bool_],
    labels_hw: npt.NDArray[np.int32],
    stats: npt.NDArray[np.int32],
    parts: npt.NDArray[np.int64],
) -> None:
    """Take these parts out of the mask, in place; looks only at each part's own box."""
    for part in parts:
        x, y, width, height = stats[part, :4].tolist()
        box = (slice(y, y + height), slice(x, x + width))
        mask_hw[box] &= labels_hw[box] != part

"""Where the model is asked: crops of the image, and points on a grid in each crop (paper, appendix B).

Layer 0 is the whole image; layer i cuts it into 2ⁱ × 2ⁱ overlapping crops, which show small objects larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from .config import GeneratorConfig


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image: XYXY in pixels, the right and lower ends exclusive, and its layer."""

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def crops_of(height: int, width: int, layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then each layer's crops column by column, the released generator's order.

    In layer 1 crops overlap by `overlap_ratio` of the image's shorter side; the overlap shrinks with them.
    A crop that lies outside a very small image is left out.
    """
    crops = [Crop(0, 0, width, height, 0)]
    for layer in range(1, layers + 1):
        a_side: int = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / a_side))
        crop_width, crop_height = (
            math.ceil((overlap * (a_side - 1) + length) / a_side) for length in (width, height)
        )
        for column, row in product(range(a_side), repeat=2):
            x0, y0 = column * (crop_width - overlap), row * (crop_height - overlap)
            if x0 < width and y0 < height:
                x1, y1 = min(x0 + crop_width, width), min(y0 + crop_height, height)
                crops.append(Crop(x0, y0, x1, y1, layer))
    return crops


def point_grid(points_per_side: int) -> npt.NDArray[np.float64]:
    """Points (x, y) in the unit square, row by row: the centres of n × n equal cells, as N×2."""
    half = 1 / (2 * points_per_side)
    along = np.linspace(half, 1 - half, points_per_side)
    x, y = np.meshgrid(along, along)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def crop_points(crop: Crop, config: GeneratorConfig) -> npt.NDArray[np.float64]:
    """The crop's grid as (x, y) in pixels from the crop's top left corner, N×2."""
    height, width = crop.size
    return np.asarray(point_grid(config.points_per_side_in_layer(crop.layer)) * np.array([width, height]))

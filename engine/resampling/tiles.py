"""From low-resolution logits to a mask at the image's size, computed only where the mask's edge is.

The published chain interpolates bilinearly twice: logits → the model's square → (cut off the padding) →
the image. Both steps are linear and separable, so each axis is one matrix, composed here once per image size;
a row of it has at most three neighbouring sources. The image is cut into square tiles. An interpolated value
is a weighted mean of its sources, so a tile whose sources all lie below the loose threshold holds no mask,
and one whose sources all lie above the tight threshold is mask throughout: only the tiles between, those
along the mask's edge, are interpolated, many at a time as one batched matrix product. Nothing of the image's
size is ever held as floating point.

Interpolating a cut-out with `F.interpolate` instead would shift the sampling positions, and interpolating the
whole box costs the object's area where this costs its outline. On a CPU `engine.resampling.bands` does the
same faster; this is for devices that want few large operations. `engine.resampling.painting` paints with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from ...model.networks.device_tensors import MOST_MATRICES
from ..runtime.transfer import fetch, upload
from .interpolation import Indexes, compose, finite

TILE = 64
"""Side of a tile in pixels of the image: smaller tiles follow the edge more closely, in more products."""

NOWHERE = 1 << 40
"""A coordinate beyond every image."""

CPU = torch.device("cpu")
Box = tuple[int, int, int, int]
"""XYXY in pixels, both ends inside."""


@dataclass(frozen=True)
class Axis:
    """One axis of the composite interpolation, cut into tiles.

    Tile t makes output pixels start_t … start_t + length_t − 1 from `span` neighbouring sources, sources_ts:
    weights_tOs, with rows of zeros beyond the image's end.
    """

    weights_tOs: Tensor
    sources_ts: Tensor
    start_t: Tensor
    length_t: Tensor

    @property
    def span(self) -> int:
        """Sources of a tile."""
        return self.weights_tOs.shape[2]


@dataclass(frozen=True)
class Measures:
    """What the filters need to know of N masks; all counts in pixels of the image.

    `tight_N` and `loose_N` count logits above threshold ± offset, `area_N` those above the threshold, whose
    tight box is `box_N4` (XYXY, both ends inside; zeros for an empty mask).
    """

    tight_N: Indexes
    area_N: Indexes
    loose_N: Indexes
    box_N4: Indexes

    @classmethod
    def of(cls, table_N7: Indexes) -> Measures:
        """From the columns tight, area, loose, x0, y0, x1, y1."""
        return cls(table_N7[:, 0], table_N7[:, 1], table_N7[:, 2], table_N7[:, 3:])


@dataclass(frozen=True)
class Patch:
    """The part of a mask's logits that its pixels are made of: values_hw from cell (row, column) on."""

    values_hw: Tensor
    row: int
    column: int


class Resampler:
    """Measures masks of one image size. All logits are given relative to the mask threshold.

    `low_size` is the side of the square of logits, `img_size` the model's input side, `input_size` and
    `output_size` (height, width) of the resized and of the original image. `budget_bytes` bounds the scratch
    memory of tiles.
    """

    def __init__(
        self,
        low_size: int,
        img_size: int,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
        *,
        budget_bytes: int = 4 << 20,
        device: torch.device = CPU,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.y = make_axis(low_size, img_size, input_size[0], output_size[0], device)
        self.x = make_axis(low_size, img_size, input_size[1], output_size[1], device)
        # Of a tile: two images of values and flags, and the gathered weights and sources.
        tile_bytes = 4 * (
            2 * TILE * TILE + TILE * (2 * self.x.span + self.y.span) + self.x.span * self.y.span
        )
        self.tiles_at_once = min(max(1, budget_bytes // tile_bytes), MOST_MATRICES)

    def measure(self, logits_Nhw: Tensor, offset: float) -> Measures:
        """Count, at the image's size, the pixels of N masks above 0 and ± `offset`, and find their boxes."""
        (table_N7,) = fetch(self.measured(finite(logits_Nhw), offset))
        return Measures.of(table_N7)

    def measured(self, logits_Nhw: Tensor, offset: float) -> Tensor:
        """The same of finite logits, left on the device: N×7 int64, as `Measures.of` takes it.

        The host waits once: how many tiles there are to interpolate decides what is asked of the device.
        """
        inside_Nyx, edge_Nyx = self._sort_tiles(logits_Nhw, -offset, offset)
        counts_N3, box_N4 = self._measure_inside(inside_Nyx)
        for index_K3 in torch.split(edge_Nyx.nonzero(), self.tiles_at_once):
            n, ty, tx = index_K3.unbind(1)
            values_KOO = self.tiles(logits_Nhw, n, ty, tx)
            flags = torch.empty_like(values_KOO)
            counted = [torch.gt(values_KOO, limit, out=flags).sum((1, 2)) for limit in (offset, 0.0, -offset)]
            beyond = TILE * TILE - self.y.length_t[ty] * self.x.length_t[tx]  # zeros past the image's end
            counted[2] -= beyond * (offset > 0)
            counts_N3.index_add_(0, n, torch.stack(counted, 1).long())
            y0, y1 = _ends(values_KOO.amax(2) > 0, ty)
            x0, x1 = _ends(values_KOO.amax(1) > 0, tx)
            mask_K2 = n[:, None].expand(-1, 2)
            box_N4[:, :2].scatter_reduce_(0, mask_K2, torch.stack([x0, y0], 1), "amin")
            box_N4[:, 2:].scatter_reduce_(0, mask_K2, torch.stack([x1, y1], 1), "amax")
        box_N4.masked_fill_(counts_N3[:, 1:2] == 0, 0)
        return torch.cat([counts_N3, box_N4], 1)

    def tiles(self, logits_Nhw: Tensor, n: Tensor, ty: Tensor, tx: Tensor) -> Tensor:
        """Interpolate K tiles, given the mask, tile row and tile column of each: K×TILE×TILE.

        Past the image's end there are zeros.
        """
        rows_Ks1, columns_K1s = self.y.sources_ts[ty][:, :, None], self.x.sources_ts[tx][:, None]
        sources_Kss = logits_Nhw[n[:, None, None], rows_Ks1, columns_K1s]
        wide_KsO = torch.bmm(sources_Kss, self.x.weights_tOs[tx].transpose(1, 2))
        return torch.bmm(self.y.weights_tOs[ty], wide_KsO)

    def _sort_tiles(self, logits_Nhw: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Which tiles (N×y×x) lie above `high` throughout, and which have to be computed to know."""
        highest_Nyx = self._over_sources(logits_Nhw, torch.maximum)
        lowest_Nyx = self._over_sources(logits_Nhw, torch.minimum)
        inside_Nyx = lowest_Nyx > high
        return inside_Nyx, (highest_Nyx > low) & ~inside_Nyx

    def _over_sources(self, logits_Nhw: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Reduce the sources of each tile with torch.maximum or torch.minimum: N×y×x."""
        rows_Nyw = reduce(pick, (logits_Nhw[:, source_t] for source_t in self.y.sources_ts.T))
        return reduce(pick, (rows_Nyw[:, :, source_t] for source_t in self.x.sources_ts.T))

    def _measure_inside(self, inside_Nyx: Tensor) -> tuple[Tensor, Tensor]:
        """Counts (N×3, int64) and boxes (N×4; the far side of nowhere if there are none) of whole tiles."""
        area_yx = self.y.length_t[:, None] * self.x.length_t
        counts_N = (inside_Nyx * area_yx).sum((1, 2))
        sides = []
        for any_Nt, axis in ((inside_Nyx.any(1), self.x), (inside_Nyx.any(2), self.y)):
            sides.append(_first_last(any_Nt, axis.start_t, axis.start_t + axis.length_t - 1))
        (x0, x1), (y0, y1) = sides
        return counts_N[:, None].repeat(1, 3), torch.stack([x0, y0, x1, y1], 1)


def make_axis(low_size: int, img_size: int, input_size: int, output_size: int, device: torch.device) -> Axis:
    """Cut the composed axis into tiles."""
    sources, weights = compose(low_size, img_size, input_size, output_size)
    tiles = -(-output_size // TILE)
    pixel = np.arange(output_size)
    taps = np.stack([sources.min(1), sources.max(1) + 1], 1)
    first_t = np.minimum.reduceat(taps[:, 0], np.arange(tiles) * TILE)
    span = int((taps[:, 1] - first_t[pixel // TILE]).max())
    first_t = np.minimum(first_t, low_size - span)
    weights_tOs = np.zeros((tiles, TILE, span))
    tile = pixel // TILE
    for k in range(4):
        np.add.at(weights_tOs, (tile, pixel % TILE, sources[:, k] - first_t[tile]), weights[:, k])
    sources_ts = first_t[:, None] + np.arange(span)
    arrays = (weights_tOs.astype(np.float32), sources_ts, TILE * np.arange(tiles), np.bincount(tile))
    return Axis(*(upload(array, device) for array in arrays))


def _ends(any_KO: Tensor, tile_K: Tensor) -> tuple[Tensor, Tensor]:
    """First and last pixel of each tile's set rows or columns, in the image."""
    pixel_KO = tile_K[:, None] * TILE + torch.arange(TILE, device=tile_K.device)
    return _first_last(any_KO, pixel_KO, pixel_KO)


def _first_last(chosen: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The least start and the greatest end of those chosen in each row; nowhere and −1 if none is."""
    return torch.where(chosen, starts, NOWHERE).amin(1), torch.where(chosen, ends, -1).amax(1)

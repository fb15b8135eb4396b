"""Masks from cells in factors, on a CPU: upscaling and the mask head in loops compiled by Numba.

As tensors, a map of sixteen pixels a cell goes through memory several times a prompt. Here some rows of cells
go from their factors to finished logits in the caches, and only the masks that are wanted are made.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .blocks import Floats, add_product, gelu, normalise
from .cells import array_of
from .jit import compiled_sums

BLOCK = 1024
"""Cells worked on at a time."""


def drawn(
    share_JL: Tensor,
    weights_JRL: Tensor,
    rows_JRX: Tensor,
    base_XL: Tensor,
    constant_X: Tensor,
    norm: tuple[Tensor, Tensor, float],
    second: tuple[Tensor, Tensor],
    weights_KC: Tensor,
    row_K: Tensor,
) -> Tensor:
    """Logits K×h×w of masks of J prompts, `row_K` not falling: see `MaskDecoder._draw`.

    The first transposed convolution is given by what it makes of base, β and rows, the norm by its weight,
    bias and ε, the second convolution as a map of a cell to its quarters.
    """
    (prompts, rows, cells), wide = weights_JRL.shape, len(constant_X)
    side = math.isqrt(cells)
    if side * side != cells or (len(row_K) and not 0 <= int(row_K.min()) <= int(row_K.max()) < prompts):
        raise ValueError(f"expected a square of cells and rows of {prompts} prompts, got {cells} and {row_K}")
    logits_Khw = np.empty((len(row_K), 4 * side, 4 * side), np.float32)
    _draw(
        array_of(share_JL[None], 1, prompts, cells),
        array_of(weights_JRL[None], 1, prompts, rows, cells),
        array_of(rows_JRX.mT[None], 1, prompts, wide, rows),
        array_of(base_XL[None], 1, wide, cells),
        array_of(constant_X[None], 1, wide),
        array_of(norm[0][None], 1, wide // 4),
        array_of(norm[1][None], 1, wide // 4),
        np.float32(norm[2]),
        array_of(second[0][None], 1, wide // 2, wide // 4),
        array_of(second[1][None], 1, wide // 2),
        array_of(weights_KC[None], 1, len(row_K), wide // 8),
        row_K.contiguous().numpy(),
        logits_Khw,
    )
    return torch.from_numpy(logits_Khw)


@compiled_sums
def _put(logits_L: Floats, cells: int, logits_hw: Floats, y: int, x: int) -> None:
    """Put one pixel of each cell in its place: from (x, y) on, every fourth, as many rows as there are."""
    side = logits_hw.shape[1] // 4
    for row in range(cells // side):
        out_w = logits_hw[y + 4 * row]
        for column in range(side):
            out_w[x + 4 * column] = logits_L[row * side + column]


@compiled_sums
def _draw(
    share_JL: Floats,
    weights_JRL: Floats,
    rows_JXR: Floats,
    base_XL: Floats,
    constant_X: Floats,
    gamma_c: Floats,
    beta_c: Floats,
    eps: np.float32,
    second_Yc: Floats,
    bias_Y: Floats,
    weights_KC: Floats,
    row_K: npt.NDArray[np.int64],
    logits_Khw: Floats,
) -> None:
    """Some rows of cells at a time: halves, norm, GELU, quarters, GELU, masks."""
    wide, middle, narrow = len(constant_X), len(gamma_c), weights_KC.shape[1]
    side = logits_Khw.shape[2] // 4
    together = max(1, BLOCK // side)
    most = side * together
    half_XL, quarter_YL = np.empty((wide, most), np.float32), np.empty((len(bias_Y), most), np.float32)
    mean_L, scale_L = np.empty(most, np.float32), np.empty(most, np.float32)
    logits_KL = np.empty((len(row_K), most), np.float32)
    first = 0
    while first < len(row_K):
        j, last = row_K[first], first
        while last < len(row_K) and row_K[last] == j:
            last += 1
        for top in range(0, side, together):
            start, cells = top * side, side * min(together, side - top)
            share_L = share_JL[j][start : start + cells]
            for row in range(wide):
                half_L, base_L, constant = half_XL[row], base_XL[row][start : start + cells], constant_X[row]
                for i in range(cells):
                    half_L[i] = constant + share_L[i] * base_L[i]
            add_product(rows_JXR[j], weights_JRL[j], start, half_XL, 0, cells, False)
            for half in range(4):
                half_cL = half_XL[half * middle : (half + 1) * middle]
                normalise(half_cL, cells, gamma_c, beta_c, eps, mean_L, scale_L)
                gelu(half_cL, middle, cells)
                for row in range(len(bias_Y)):
                    quarter_YL[row][:cells] = bias_Y[row]
                add_product(second_Yc, half_cL, 0, quarter_YL, 0, cells, False)
                gelu(quarter_YL, len(bias_Y), cells)
                for quarter in range(4):
                    for k in range(last - first):
                        logits_KL[k][:cells] = 0
                    add_product(
                        weights_KC[first:last],
                        quarter_YL[quarter * narrow : (quarter + 1) * narrow],
                        0,
                        logits_KL,
                        0,
                        cells,
                        False,
                    )
                    y, x = 2 * (half // 2) + quarter // 2, 2 * (half % 2) + quarter % 2
                    for k in range(last - first):
                        _put(logits_KL[k], cells, logits_Khw[first + k], 4 * top + y, x)
        first = last

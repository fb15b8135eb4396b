"""Two bilinear interpolations in a row, composed into one along each axis.

The published chain is logits → the model's square → (cut off the padding) → the image. Both steps are linear
and separable, so a pixel of the image has at most three neighbouring sources along each axis.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indexes = npt.NDArray[np.int64]

FINITE = 1e30
"""Infinite logits become this large, so that a weight of zero takes no part (0 · ∞ is not a number)."""


def compose(
    low_size: int, img_size: int, input_size: int, output_size: int
) -> tuple[Indexes, npt.NDArray[np.float64]]:
    """One axis of the chain, `low_size` → `img_size`, cut to `input_size` → `output_size`.

    Four sources of each output pixel and their weights: at most three differ, and they are neighbours.
    """
    first_low_p, last_low_p, low_weight_p = _bilinear(low_size, img_size)
    first_in_n, last_in_n, in_weight_n = _bilinear(input_size, output_size)
    source_n4, weight_n4 = [], []
    for in_n, in_share_n in ((first_in_n, 1 - in_weight_n), (last_in_n, in_weight_n)):
        source_n4 += [first_low_p[in_n], last_low_p[in_n]]
        weight_n4 += [in_share_n * (1 - low_weight_p[in_n]), in_share_n * low_weight_p[in_n]]
    return np.stack(source_n4, 1), np.stack(weight_n4, 1)


def finite(logits: Tensor) -> Tensor:
    """The logits in float32 without infinities; what is not a number counts as no mask."""
    return torch.nan_to_num(logits.float(), nan=-FINITE).clamp(-FINITE, FINITE)


def _bilinear(sources: int, outputs: int) -> tuple[Indexes, Indexes, npt.NDArray[np.float64]]:
    """Two neighbouring sources of each output and the second one's weight, pixel centres aligned."""
    position = np.maximum((np.arange(outputs) + 0.5) * (sources / outputs) - 0.5, 0)
    first = np.minimum(position.astype(np.int64), sources - 1)
    weight = position - first
    second = np.where(weight > 0, np.minimum(first + 1, sources - 1), first)
    return first, second, weight

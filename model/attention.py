"""Attention whose queries are scaled already, and whose keys may be wider than its values.

In general PyTorch's fused kernel. On a CPU its gradient is slow in bf16, and takes most of a training step:
there matrix products do the work, for a few scores at a time. A part's scores fit in a core's cache, and are
computed again for the gradient instead of being kept. `benchmarks/bench_training.py` times both; in fp32 the
fused kernel is the faster one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 2**21


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ) v of B×heads×L×D, …×D and …×E, E at most D: B×heads×L×E. All of one floating type."""
    trains_on_cpu = torch.is_grad_enabled() and q.device.type == "cpu"
    return in_parts(q, k, v) if trains_on_cpu and q.dtype == torch.bfloat16 else fused(q, k, v)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By PyTorch's kernel. That for CPUs would give way to one that stores all scores, were v narrower."""
    padding = q.shape[-1] - v.shape[-1]
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, padding)), scale=1.0)[..., : v.shape[-1]]


def in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By matrix products, `SCORES_AT_ONCE`."""
    heads_first = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out: Tensor = _InParts.apply(*heads_first)  # type: ignore[no-untyped-call]
    return out.unflatten(0, q.shape[:2])


def _parts(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Heads and queries of each part, heads outermost."""
    (heads, queries), keys = q.shape[:2], k.shape[1]
    rows = max(1, min(queries, SCORES_AT_ONCE // keys))
    beside = max(1, SCORES_AT_ONCE // (rows * keys))
    for head in range(0, heads, beside):
        for row in range(0, queries, rows):
            yield slice(head, head + beside), slice(row, row + rows)


class _InParts(torch.autograd.Function):
    """Heads are the first axis: N×L×D."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = v.new_empty(*q.shape[:2], v.shape[2])
        with torch.autocast(q.device.type, enabled=False):
            for n, rows in _parts(q, k):
                scores = q[n, rows] @ k[n].mT
                out[n, rows] = scores.softmax(-1) @ v[n]
        ctx.save_for_backward(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for n, rows in _parts(q, k):
            shares = (q[n, rows] @ k[n].mT).softmax(-1)
            d_shares = d_out[n, rows] @ v[n].mT
            d_scores = torch._softmax_backward_data(d_shares, shares, -1, shares.dtype)
            d_v[n] += shares.mT @ d_out[n, rows]
            d_q[n, rows] = d_scores @ k[n]
            d_k[n] += d_scores.mT @ q[n, rows]
        return d_q, d_k, d_v

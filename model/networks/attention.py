"""Attention whose queries are scaled already, and whose keys may be wider than its values.

PyTorch's fused kernel is used in general. The one for CPUs is slow in bf16, above all in the backward pass,
and would take most of a training step. There, matrix products do the work, for a few scores at a time, which
stay in the processor's caches and are computed again for the gradient instead of being kept. They are rounded
to bf16 before the softmax. `benchmarks/bench_training.py` times both ways; in fp32 they take about as long.

The fused kernels of GPUs take four axes and heads of a multiple of eight numbers. For other axes PyTorch goes
back to a way that stores all scores, and other heads it copies first. So every call goes through
`scaled_dot_product`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 2**21

WIDTH_STEP = 8
"""Widths of heads that the fused kernels of GPUs take are multiples of it."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ) v of B×heads×L×D, …×D and …×E, E at most D: B×heads×L×E. All of one floating type."""
    trains_on_cpu = torch.is_grad_enabled() and q.device.type == "cpu"
    return in_parts(q, k, v) if trains_on_cpu and q.dtype == torch.bfloat16 else fused(q, k, v)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By PyTorch's kernel. That for CPUs would give way to one that stores all scores, were v narrower."""
    padding = q.shape[-1] - v.shape[-1] if q.device.type == "cpu" else 0
    as_wide = F.pad(v, (0, padding)) if padding else v
    return scaled_dot_product(q, k, as_wide, scale=1.0)[..., : v.shape[-1]]


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """PyTorch's attention of …×heads×L×D, in the shape that the kernels of the tensors' device take.

    `mask`, heads×L×L, is added to the scores; without `scale` these are divided by √D. A CPU's kernel is
    given the tensors as they are.
    """
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = width_for(max(q.shape[-1], v.shape[-1]), q.device)
    q_BNLD, k_BNLD, v_BNLD = (widened(x, wide).flatten(0, -4) for x in (q, k, v))
    mask_1NLL = None if mask is None else mask[None]  # three axes would do for the slow way alone
    out_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, attn_mask=mask_1NLL, scale=scale)
    return out_BNLD[..., : v.shape[-1]].unflatten(0, q.shape[:-3])


def width_for(width: int, device: torch.device) -> int:
    """How wide heads of so many numbers should be on the device: as wide on a CPU, else rounded up."""
    return width if device.type == "cpu" else -(-width // WIDTH_STEP) * WIDTH_STEP


def widened(x: Tensor, width: int) -> Tensor:
    """…×D → …×width with zeros at the end, in one copy; the tensor itself if it is that wide."""
    missing = width - x.shape[-1]
    return torch.cat([x, zeros_beside(x, missing)], -1) if missing else x


def zeros_beside(x: Tensor, width: int) -> Tensor:
    """As many zeros, …×width, beside x, …×D; one number in memory."""
    return x.new_zeros(1).expand(*x.shape[:-1], width)


def in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By matrix products, `SCORES_AT_ONCE`."""
    heads_first = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out: Tensor = _InParts.apply(*heads_first)  # type: ignore[no-untyped-call]
    return out.unflatten(0, q.shape[:2])


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _part(queries: int, keys: int) -> tuple[int, int]:
    """How many heads a part has, and how many of their queries."""
    rows = max(1, min(queries, SCORES_AT_ONCE // keys))
    return max(1, SCORES_AT_ONCE // (rows * keys)), rows


class _InParts(torch.autograd.Function):
    """Heads are the first axis: N×L×D."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = v.new_empty(*q.shape[:2], v.shape[2])
        heads, rows = _part(q.shape[1], k.shape[1])
        with torch.autocast(q.device.type, enabled=False):
            for n in _slices(len(q), heads):
                for m in _slices(q.shape[1], rows):
                    out[n, m] = (q[n, m] @ k[n].mT).softmax(-1) @ v[n]
        ctx.save_for_backward(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        heads, rows = _part(q.shape[1], k.shape[1])
        precise = torch.promote_types(q.dtype, torch.float32)
        for n in _slices(len(q), heads):
            sum_k, sum_v = torch.zeros_like(k[n], dtype=precise), torch.zeros_like(v[n], dtype=precise)
            for m in _slices(q.shape[1], rows):
                shares = (q[n, m] @ k[n].mT).softmax(-1)
                d_shares = d_out[n, m] @ v[n].mT
                d_scores = torch._softmax_backward_data(d_shares, shares, -1, shares.dtype)
                d_q[n, m] = d_scores @ k[n]
                sum_k += d_scores.mT @ q[n, m]
                sum_v += shares.mT @ d_out[n, m]
            d_k[n], d_v[n] = sum_k, sum_v
        return d_q, d_k, d_v

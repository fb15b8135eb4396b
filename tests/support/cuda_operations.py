"""What operations mean to CUDA: which of them wait, which launch nothing, and what they read and write."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .cuda_tensors import tensors

WAITS = {
    "_unique2": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "is_nonzero": "is_nonzero",
    "masked_select": "masked_select",
    "nonzero": "nonzero",
    "repeat_interleave": "repeat_interleave",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
}
"""Operations whose result has as many elements as the device's numbers say, or is one of the host's."""


@cache
def is_composite(func: Any) -> bool:
    """Whether an operation is made of others, of which CUDA would see those."""
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def attention_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    """How PyTorch attends on CUDA: by a fused kernel, which wants four dimensions, or in operations.

    In half precision by flash, to which PyTorch gives padded copies where a head's width is no multiple of 8;
    in fp32, and with a mask, by the memory-efficient kernel, which wants rows of a multiple of 16 bytes.
    """
    if q.dim() != 4:
        return "operations"
    if q.dtype in (torch.float16, torch.bfloat16) and mask is None:
        return "flash" if q.shape[-1] == v.shape[-1] <= 256 else "operations"
    aligned = all(x.shape[-1] * x.element_size() % 16 == 0 for x in (q, k, v))
    return "memory-efficient" if aligned else "operations"


def is_free(func, name, inputs, out) -> bool:
    """Whether nothing is launched: there is nothing to do, memory is taken, or it is seen in another way."""
    if name.startswith(("empty", "new_empty")) or not any(x.numel() for x in tensors(out)):
        return True
    if func._schema.is_mutable:
        return False
    storages = {x.untyped_storage()._cdata for x in tensors(inputs)}
    return all(x.untyped_storage()._cdata in storages for x in tensors(out))


def bytes_of(name, inputs, options, out) -> int:
    """What an operation reads and writes: all of its tensors, but of one that is indexed what is taken."""
    read = [nbytes(x) for x in tensors(inputs, {**options, "out": None})]
    written = sum(map(nbytes, tensors(out)))
    if name in ("index", "index_select", "gather"):
        return 2 * written + sum(read[1:])
    if name in ("index_put_", "_index_put_impl_"):
        return read[-1] + sum(read[1:])
    if name in ("fill_", "zero_", "copy_"):
        return written + sum(read[1:])
    return written + sum(read)


def nbytes(tensor: Tensor) -> int:
    """Bytes touched; an element that is seen many times is read once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else min(size, 1)
    return numbers * tensor.element_size()

"""Tensors that say they lie on `cuda:0`, and hold what would lie there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CUDA = torch.device("cuda:0")


class CudaTensor(torch.Tensor):
    """Says that it lies on `cuda:0`, and holds what would lie there."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> CudaTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )
        self.held = held
        return self

    def __repr__(self, **_: object) -> str:
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    # By these two `nn.Module.to` knows that it has to exchange its parameters.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: object) -> CudaTensor:
        return CudaTensor(parts["held"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a pretended tensor outside of its block")


def is_cuda(device: Any) -> bool:
    """Whether a device is meant, by its name or as such, that is the pretended one."""
    return device is not None and torch.device(device).type == "cuda"


def held(x: Any) -> Any:
    """What a tensor or a list of some holds; all else as it is."""
    if isinstance(x, list | tuple):
        return [held(one) for one in x]
    return x.held if isinstance(x, CudaTensor) else x


def tensors(*arguments: Any) -> Iterator[Tensor]:
    """Those among an operation's arguments, in lists too."""
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from tensors(*x)
        elif isinstance(x, dict):
            yield from tensors(*x.values())

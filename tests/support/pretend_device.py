"""A pretended GPU: the CPU, watched for everything that would make the host wait for a device, or fail there.

`PretendDevice` follows which tensors would lie on the device: the weights, and all that is made of one. It
counts what waits, and raises where a program reads a device's tensor without
`maskmill.engine.runtime.transfer.fetch`, or calculates with a tensor of the host and one of the device.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Tensor = torch.Tensor
WAITS = {
    Tensor.nonzero: "nonzero",
    torch.nonzero: "nonzero",
    torch.argwhere: "nonzero",
    torch.unique: "unique",
    Tensor.unique: "unique",
    torch.unique_consecutive: "unique",
    torch.masked_select: "masked_select",
    Tensor.masked_select: "masked_select",
    torch.equal: "equal",
}
FORBIDDEN = {
    Tensor.numpy,
    Tensor.tolist,
    Tensor.item,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__array__,
    Tensor.cpu,
}
INDEXED = {Tensor.__getitem__, Tensor.__setitem__}


class PretendDevice(TorchFunctionMode):
    """While it is on, `waits` counts what the host would wait for, by name; `fetch` counts each array."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._there = {id(one): one for one in (*module.parameters(), *module.buffers())}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in given if id(x) in self._there]
        if func is Tensor.to:
            return self._moved(args, kwargs, bool(there))
        if there:
            assert func not in FORBIDDEN, f"{func.__name__} of a tensor on the device"
            self._check_together(func, args, given)
            if name := WAITS.get(func):
                self.waits[name] += 1
        out = func(*args, **kwargs)
        if there or (kwargs.get("device") is not None and not given):
            self._keep(out)
        return out

    def _moved(self, args, kwargs, from_device):
        """`to`: the one way between host and device, which waits on the way back, and on the way there too
        unless it is told not to.
        """
        out = Tensor.to(*args, **kwargs)
        target = next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, str | torch.device)), None)
        if from_device and target == "cpu" and kwargs.get("copy"):
            self.waits["fetch"] += 1
            return out
        if from_device or target is not None:
            if not from_device and not kwargs.get("non_blocking") and args[0].numel() > 0:
                self.waits["upload"] += args[0].dim() > 0
            self._keep(out)
        return out

    def _check_together(self, func, args, given):
        masks = [x for x in given if x.dtype == torch.bool and id(x) in self._there]
        if func in INDEXED:
            index = tree_leaves(args[1])
            if any(x is mask for x in index for mask in masks):
                self.waits["index by flags"] += 1
        for x in given:
            assert x.dim() == 0 or id(x) in self._there, f"{func.__name__} of host and device"

    def _keep(self, out):
        self._there.update((id(x), x) for x in tree_leaves(out) if isinstance(x, Tensor))

"""What the tests of networks share: random weights, stand-ins for what oracles import, the largest tensor.

The stand-ins are never called. They are in `sys.modules` only while the oracle is imported: left there, they
would tell other packages that, say, torchvision is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def randomise(module: nn.Module) -> None:
    """Fill every weight and statistic with numbers that show a mistake, those that start at zero, too."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.ndim == 1:  # norms and biases
                offset = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(offset + 0.2 * noise(tensor))
            elif name.endswith(("attention_biases", "gaussian_matrix")):
                tensor.copy_(noise(tensor))
            elif len(tensor) == 1:  # learnt tokens and positions
                tensor.copy_(0.5 * noise(tensor))
            else:
                tensor.copy_(noise(tensor) / tensor[0].numel() ** 0.5)


@contextmanager
def stubbed(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Make `modules` (dotted name → its attributes) and their parents importable inside the block."""
    names = {name.rsplit(".", depth)[0] for name in modules for depth in range(name.count(".") + 1)}
    before = {name: sys.modules.get(name) for name in names}
    for name in sorted(names):
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(modules.get(name, {}))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _never(*args: object, **kwargs: object) -> object:
    raise AssertionError("the tests do not call this part of the oracle")


class _DropPath(nn.Identity):
    """Stochastic depth at rate zero."""

    def __init__(self, drop_prob: float | None = None) -> None:
        assert not drop_prob
        super().__init__()


def _register_model(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


TORCHVISION: dict[str, dict[str, Any]] = {
    "torchvision.ops.boxes": {"batched_nms": _never, "box_area": _never},
    "torchvision.transforms.functional": {"resize": _never, "to_pil_image": _never},
}
TIMM: dict[str, dict[str, Any]] = {
    "timm.models.layers": {
        "DropPath": _DropPath,
        "to_2tuple": lambda x: (x, x),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": _register_model},
}

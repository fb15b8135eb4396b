"""Stand-ins for packages that an oracle imports and never needs for what the tests ask of it.

They are in `sys.modules` only while the oracle is imported: left there, they would tell other packages that,
say, torchvision is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn


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

"""What programs ask of CUDA beside its tensors: streams, events, and what PyTorch keeps for a process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.autograd.grad_mode import inference_mode

ORDERS = ("wait_event", "wait_stream", "record", "record_event", "wait")
"""What a stream or an event is told without anybody waiting for it."""


class Queue:
    """The one stream that there is; events are waited for as it is."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize

    def __getattr__(self, name: str) -> Callable[..., Queue]:
        if name not in ORDERS:
            raise AttributeError(name)
        return lambda *_: self


@contextlib.contextmanager
def streams(waited: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `torch.cuda` has one stream; `waited` is told when somebody waits for it."""
    queue = Queue(waited)
    stand_ins = {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda *_: queue,
        "default_stream": lambda *_: queue,
        "Stream": lambda *_, **__: queue,
        "Event": lambda *_, **__: queue,
        "stream": lambda *_: contextlib.nullcontext(),
        "synchronize": lambda *_: waited(),
    }
    with mock.patch.multiple(torch.cuda, **stand_ins):
        yield


@contextlib.contextmanager
def no_inference_mode() -> Iterator[None]:
    """While the block runs, `torch.inference_mode` only turns gradients off, and on."""
    before: list[bool] = []

    def begins(mode: inference_mode) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(not mode.mode)

    def ends(_: object, *raised: object) -> None:
        torch.set_grad_enabled(before.pop())

    with mock.patch.multiple(inference_mode, __enter__=begins, __exit__=ends):
        yield


@contextlib.contextmanager
def made_on_the_host() -> Iterator[None]:
    """While the block runs, `torch.tensor(…, device="cuda")` makes it on the host and moves it."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@contextlib.contextmanager
def nothing_cached() -> Iterator[None]:
    """Tensors that maskmill makes once for each device belong to one block."""
    _clear_caches()
    try:
        yield
    finally:
        _clear_caches()


def _clear_caches() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith(("maskmill.engine", "maskmill.model")):
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)) and not isinstance(value, type):
                    value.cache_clear()

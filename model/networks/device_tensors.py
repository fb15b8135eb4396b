"""Tensors that come to a device from the host, and those that are made there once and kept.

A copy from ordinary memory passes a buffer of the driver's, for which the host waits. From locked (pinned)
memory the device reads by itself, after what it has in hand.

What one thread has asked a device to make is not there yet when the call returns. Another thread, whose
stream is not ordered behind this one's, would read whatever lies in that memory. So a tensor that is kept is
waited for once, before anybody gets it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

MOST_MATRICES = (1 << 16) - 1
"""Of one batched product: the last axis of a grid of CUDA's ends there."""


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device, copied without waiting; itself if it is there already.

    A copy from the host to a GPU is from locked memory, which stays taken until the GPU has read it.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def wait_until_made(device: torch.device) -> None:
    """Return when the device has done all that this thread has asked it for. On a CPU that is at once."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class KeptOnDevice(Generic[Arguments, Made]):
    """What a function has made for each of its latest arguments, as by `functools.lru_cache`.

    One of the arguments is the device. However many threads ask, the function is called once, and what it
    makes is complete when they get it. Training can use it even where generation was the first to ask.
    """

    def __init__(self, make: Callable[Arguments, Made], most: int) -> None:
        self.__doc__ = make.__doc__
        self._make = make
        self._lock = threading.Lock()
        self._kept = lru_cache(maxsize=most)(self._made)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        """What the function makes of these arguments."""
        if torch.compiler.is_compiling():  # the graph makes its own
            return self._make(*args, **kwargs)
        with self._lock:
            return self._kept(*args, **kwargs)  # type: ignore[arg-type]  # whatever is no key, it refuses

    def cache_clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.cache_clear()

    def _made(self, *args: Any, **kwargs: Any) -> Made:
        with torch.inference_mode(False):
            made = self._make(*args, **kwargs)
        for device in (x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)):
            wait_until_made(device)
        return made


def kept_on_device(
    most: int,
) -> Callable[[Callable[Arguments, Made]], KeptOnDevice[Arguments, Made]]:
    """Decorator: keep what the function makes for `most` different arguments (`KeptOnDevice`)."""
    return lambda make: KeptOnDevice(make, most)

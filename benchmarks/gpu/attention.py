"""Which kernel each call of `scaled_dot_product_attention` gets: flash, cuDNN's, plain products …"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from maskmill.model import MODELS, SamConfig
from maskmill.model.networks.sam import Sam

Meta = tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]
PREFIX = "aten::_scaled_dot_product_"


@dataclass(frozen=True)
class Call:
    """One kind of call: type, shape and strides of query, key, value and mask, and the other arguments."""

    tensors: tuple[Meta | None, ...]
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        shapes = ", ".join("×".join(map(str, shape)) for one in self.tensors if one for shape in [one[1]])
        first = self.tensors[0]
        return f"{shapes} {str(first[0]).removeprefix('torch.') if first else ''}"


class _Listener(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Call, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = [*args, kwargs.get("attn_mask")][:4] if len(args) < 4 else [*args[:4]]
            options = tuple(sorted((name, x) for name, x in kwargs.items() if name != "attn_mask"))
            call = Call(tuple(_meta(x) for x in given), options)
            self.calls[call] = self.calls.get(call, 0) + 1
        return func(*args, **kwargs)


def _meta(x: Tensor | None) -> Meta | None:
    return None if x is None else (x.dtype, tuple(x.shape), tuple(x.stride()))


def calls_of(work: Callable[[], object]) -> dict[Call, int]:
    """Kinds of calls that the work makes, and how many of each."""
    listener = _Listener()
    with listener:
        work()
    return listener.calls


def backend_of(call: Call, device: torch.device) -> tuple[str, list[str]]:
    """What torch does for such a call (`flash_attention`, `attention_math` …), and its kernels by name."""
    given: list[Any] = [random_like(one, device) for one in call.tensors]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with torch.inference_mode(), torch.profiler.profile(activities=activities) as profile:
        F.scaled_dot_product_attention(*given, **dict(call.options))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = profile.key_averages()
    # A backend's operator may call another's with padded arguments: the first is the one that was chosen.
    chosen = [event.key for event in profile.events() if event.key.startswith(PREFIX)]
    kernels = [event.key for event in events if str(event.device_type).endswith("CUDA")]
    return (chosen[0].removeprefix(PREFIX) if chosen else "none"), kernels


def random_like(one: Meta | None, device: torch.device) -> Tensor | None:
    """Random numbers, or a mask that lets all through, of that type, shape and strides."""
    if one is None:
        return None
    dtype, shape, stride = one
    once = [1 if step == 0 else length for length, step in zip(shape, stride, strict=True)]
    like = torch.empty_strided(once, stride, device=device, dtype=dtype)
    return (like.fill_(True) if dtype == torch.bool else like.normal_()).expand(shape)


def table_of(calls: dict[Call, int], device: torch.device) -> list[dict[str, Any]]:
    """A row for each kind of call: its shapes, how many there were, backend and kernels."""
    rows = []
    for call, number in calls.items():
        backend, kernels = backend_of(call, device)
        rows.append({"call": str(call), "calls": number, "backend": backend, "kernels": kernels})
    return rows


@torch.inference_mode()
def of_network(config: SamConfig, sam: Sam, prompts: int, images: int = 1) -> dict[Call, int]:
    """The calls of an encode and of prompts of one point."""
    pixels = torch.randint(0, 256, (3, config.img_size, config.img_size), dtype=torch.uint8)
    points_BP12 = (torch.rand(images, prompts, 1, 2) * config.img_size).to(sam.device)
    labels_BP1 = torch.ones(images, prompts, 1, dtype=torch.int64, device=sam.device)

    def work() -> None:
        encoded = sam.encode([pixels.to(sam.device)] * images)
        decoded = sam.attend(encoded, points_BP12, labels_BP1)
        sam.draw(decoded, torch.arange(min(8, prompts)), torch.ones(min(8, prompts), dtype=torch.int64))

    return calls_of(work)


def two_blocks(name: str) -> SamConfig:
    """A published size with one block of windows and one that is global: they have all kinds of calls."""
    return replace(MODELS[name], depth=2, global_attn_indexes=(1,))

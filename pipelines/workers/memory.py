"""Whether a machine has the memory that a worker needs.

What is estimated is what every image costs, whatever its size: the process, the weights, an encode, and the
prompts that are worked on together. Photographs come on top of it: those that wait decoded, three bytes a
pixel, and the masks of the one at work. So this finds what cannot go well before hours are spent on it, and
promises nothing more; where memory runs out later, batches are halved (`engine.runtime.batching`), and a
worker that dies of it is replaced.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ...engine.config import GeneratorConfig
from ...model.config import SamConfig
from ..config.run import RunConfig
from ..errors import UsageError
from ..machine import memory_of_machine
from ..text import counted

MIB = 2**20
PROCESS_BYTES = 512 * MIB
"""Python, torch, the compiled loops and Arrow, before any weights."""

ENCODER_ARRAYS = 64
"""Arrays of the encoder's width, one number a cell and channel, that live at once in an encode."""

LANE_BYTES = 64 * MIB
"""What a batch of prompts holds in a lane of the CPU, in the published sizes."""


def check_memory(
    config: RunConfig, device: str, *, threads: int, neighbours: int = 1, gpu_share: float = 1.0
) -> None:
    """Hold what this worker needs against what its machine, and on "cuda" its GPU, has.

    `neighbours` counts the workers of this size that the machine is to hold, this one too; `gpu_share` is the
    part of the GPU that is its own. Raises UsageError where that can never be enough, MemoryError where it is
    not now: others may have taken it, and may give it back.
    """
    on_gpu = device == "cuda"
    needed = needed_on_host(config, threads, on_gpu=on_gpu)
    has, free = memory_of_machine()
    _compare(needed, f"{counted(neighbours, 'worker')} on this machine", has // neighbours, free)
    if on_gpu:
        import torch

        free, total = torch.cuda.mem_get_info()
        share = min(1.0, gpu_share)
        _compare(needed_on_gpu(config), f"a worker on {share:g} of its GPU", int(total * share), free)


def needed_on_host(config: RunConfig, threads: int, *, on_gpu: bool) -> dict[str, int]:
    """Bytes of the machine's memory by purpose. Weights for a GPU pass through it, in fp32."""
    shape = _shape(config)
    needed = {"process": PROCESS_BYTES, "weights": 4 * _parameters(shape)}
    if not on_gpu:
        needed["encoding"] = _encoding_bytes(shape, config.generator, 4)
        needed["prompts"] = threads * LANE_BYTES
    return needed


def needed_on_gpu(config: RunConfig) -> dict[str, int]:
    """Bytes of a GPU's memory by purpose."""
    shape = _shape(config)
    number = {"fp32": 4, "bf16": 2}[config.model.precision]
    return {
        "CUDA": PROCESS_BYTES,
        "weights": number * _parameters(shape),
        "encoding": _encoding_bytes(shape, config.generator, number),
        "generator.device_budget_bytes": config.generator.device_budget_bytes,
    }


def _compare(needed: Mapping[str, int], who: str, has: int, free: int) -> None:
    """UsageError where `has`, what each may have at most, is too little; MemoryError where `free` is."""
    total = sum(needed.values())
    parts = ", ".join(f"{purpose} {_gib(size)}" for purpose, size in needed.items())
    expected = f"{socket.gethostname()}: {who}: expected {_gib(total)} GiB for each ({parts})"
    remedy = (
        "take a smaller model.name, fewer --workers or more --gpus-per-worker, a smaller "
        "generator.encode_batch or generator.device_budget_bytes, or a larger machine"
    )
    if has < total:
        raise UsageError(f"{expected}, there is {_gib(has)} GiB for each; {remedy}")
    if free < total:
        raise MemoryError(f"{expected}, {_gib(free)} GiB is free now; end what takes the rest, or {remedy}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _shape(config: RunConfig) -> SamConfig:
    from ...model import MODELS

    return MODELS[config.model.name]


def _parameters(shape: SamConfig) -> int:
    import torch

    from ...model import Sam
    from ...model.checkpoints.loading import Uninitialised

    # Shapes without numbers. Drawing such numbers, torch would load its compiler, for a second and only where
    # there is a folder for temporary files.
    with torch.device("meta"), Uninitialised():
        return sum(parameter.numel() for parameter in Sam(shape).parameters())


def _encoding_bytes(shape: SamConfig, generator: GeneratorConfig, number: int) -> int:
    """An encode's, of as many images or crops as are encoded together."""
    windows = -(-shape.embedding_size // shape.window_size)
    cells = (windows * shape.window_size) ** 2  # padded to whole windows
    return generator.encode_batch * cells * shape.embed_dim * ENCODER_ARRAYS * number

"""Whether a machine has the memory that a worker needs.

What is estimated is what every image costs, whatever its size: the process, the weights, an encode, and the
prompts that are worked on together. Images come on top of it: those that wait decoded, three bytes a
pixel, and the masks of the one at work. So this finds what cannot go well before hours are spent on it, and
promises nothing more; where memory runs out later, batches are halved (`engine.runtime.batching`), and a
worker that dies of it is replaced.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from ...engine.config import GeneratorConfig
from ...engine.runtime.budget import BATCHES_AT_ONCE, CUDA_BYTES, budget_of_card, encoding_bytes
from ...model.config import SamConfig
from ..config.run import RunConfig
from ..errors import UsageError
from ..machine import memory_of_machine
from ..text import counted

log = logging.getLogger(__name__)

MIB = 2**20
PROCESS_BYTES = 512 * MIB
"""Python, torch, the compiled loops and Arrow, before any weights."""

NUMBER_BYTES = {"fp32": 4, "bf16": 2}
"""Of a weight, by `model.precision`."""

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
        free, total = _gpu_memory()
        share = min(1.0, gpu_share)
        own = int(total * share)
        needed = needed_on_gpu(config, _usable(own, free))
        _compare(needed, f"a worker on {share:g} of its GPU", own, free)


def keep_to_share(gpu_share: float) -> None:
    """Let torch allocate no more of the GPU than this worker's part, with what CUDA takes beside it.

    Who asks for more is out of memory, and halves its batches, instead of its neighbours.
    """
    import torch

    if gpu_share < 1:
        _, total = torch.cuda.mem_get_info()
        own = max(0.0, gpu_share - CUDA_BYTES / total)
        torch.cuda.set_per_process_memory_fraction(own)


def with_budget_of_share(config: RunConfig, gpu_share: float) -> GeneratorConfig:
    """The generator's options with a budget by the worker's part of its GPU, where they have none."""
    free, total = _gpu_memory()
    budget = budget_on_gpu(config, _usable(int(total * min(1.0, gpu_share)), free))
    log.info("prompts and masks of a batch may take %s GiB of the GPU, two batches at once", _gib(budget))
    return config.generator.model_copy(update={"device_budget_bytes": budget})


def budget_on_gpu(config: RunConfig, own: int) -> int:
    """What a worker takes that has `own` bytes of a GPU: by `generator.device_budget_bytes` or the card.

    Of a number for another card, which a corpus may bring, no more is taken than there is room for.
    """
    weights, encode = _weights_on_gpu(config), _encoding_on_gpu(config)
    given = config.generator.device_budget_bytes
    if given is None:
        return budget_of_card(own, weights, encode)
    return min(given, budget_of_card(own, weights, encode, reserve=0.0, most=given))


def needed_on_host(config: RunConfig, threads: int, *, on_gpu: bool) -> dict[str, int]:
    """Bytes of the machine's memory by purpose. Weights for a GPU pass through it, in fp32."""
    shape = _shape(config)
    needed = {"process": PROCESS_BYTES, "weights": 4 * _parameters(shape)}
    if not on_gpu:
        needed["encoding"] = encoding_bytes(shape, config.generator.encode_batch, 4)
        needed["prompts"] = threads * LANE_BYTES
    return needed


def needed_on_gpu(config: RunConfig, own: int) -> dict[str, int]:
    """Bytes of a GPU's memory by purpose, of which the worker has `own`; of all batches that are at once."""
    return {
        "CUDA": CUDA_BYTES,
        "weights": _weights_on_gpu(config),
        f"encoding {BATCHES_AT_ONCE} batches": BATCHES_AT_ONCE * _encoding_on_gpu(config),
        f"{BATCHES_AT_ONCE} × generator.device_budget_bytes": BATCHES_AT_ONCE * budget_on_gpu(config, own),
    }


def _gpu_memory() -> tuple[int, int]:
    """Bytes of the GPU that are free or taken by CUDA for this process, which asking does, and all of it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return min(free + CUDA_BYTES, total), total


def _usable(own: int, free: int) -> int:
    """What a budget goes by: a screen or another program may hold some of the worker's part for good.

    Where over half is taken, a worker that died may not have left yet: the budget goes by the whole part, and
    the worker waits for it.
    """
    return free if own // 2 <= free < own else own


def _weights_on_gpu(config: RunConfig) -> int:
    return NUMBER_BYTES[config.model.precision] * _parameters(_shape(config))


def _encoding_on_gpu(config: RunConfig) -> int:
    number_bytes = NUMBER_BYTES[config.model.precision]
    return encoding_bytes(_shape(config), config.generator.encode_batch, number_bytes)


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
        raise MemoryError(
            f"{expected}, {_gib(free)} GiB is free now; stop the processes that use the rest, or {remedy}"
        )


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

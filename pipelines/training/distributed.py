"""The processes of one training run, as `torchrun` starts them: which of them this one is, and its device.

torchrun comes with torch, and its processes need nothing but each other: DistributedDataParallel averages
gradients, and everything else is the same in each process or done by the first. (Ray Train would
start the same DistributedDataParallel; a run here keeps all that it needs to go on in one checkpoint, so
there is nothing left for it to do.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import ConfigError

LONGEST_WAIT = timedelta(hours=6)
"""How long the others wait for the first one, which scores the model by every mask of many photographs."""

_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that torchrun sets beside WORLD_SIZE."""


@dataclass(frozen=True)
class Processes:
    """Which process this is: number `rank`, counted from 0, of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over all processes of what each has measured, name by name."""
        if self.count == 1:
            return dict(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        summed = torch.tensor([*values.values()], dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return dict(zip(values, (summed / self.count).tolist(), strict=True))

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.count > 1:
            dist.barrier()


def check_device(device: str) -> None:
    """Raise ConfigError if `device` names a GPU that PyTorch does not see."""
    place = torch.device(device)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device}: PyTorch sees {torch.cuda.device_count()} GPUs here")


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the other processes, if torchrun started this one; yields which it is, and its device.

    `device` is the configured one; with `cuda`, each process takes the GPU of its number on its machine.
    Raises ConfigError if one GPU is named for several processes, or if there is none for this one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        check_device(device)
        yield Processes(), device
        return
    if missing := [name for name in _OF_TORCHRUN if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are other processes, but {missing[0]} is "
            f"not set: start them by torchrun, or unset WORLD_SIZE"
        )
    if device.startswith("cuda"):
        if ":" in device:
            raise ConfigError(f"device: {device} is one GPU; torchrun gives each process its own, say cuda")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        check_device(device)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()

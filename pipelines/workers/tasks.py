"""What travels between the driver and its workers, beside shards' tasks: the job, receipts, failures.

No pixels. Small, frozen and picklable, since each goes through Ray, and the same without it.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ... import __version__
from ..config.run import RunConfig
from ..format.tally import Tally
from ..inputs.moved import Moved


@dataclass(frozen=True, slots=True)
class Job:
    """What every shard of a run shares; small, since it travels to each worker."""

    out: Path
    config: RunConfig
    run_digest: str
    threads: int | None = None  # of the CPU; None leaves torch its own choice
    neighbours: int = 1  # workers that a machine may have to hold, each one counted
    gpu_share: float = 1.0  # of one GPU, or how many of them
    version: str = __version__  # of the maskmill that started the run
    weights_sha256: str | None = None  # of the run's weights, where a worker's are to be held against them
    moved: Moved = field(default_factory=Moved)  # from the plan's uris to where the inputs are read


@dataclass(frozen=True, slots=True)
class ShardReceipt:
    """A shard is committed: by this worker, or, where `committed` is False, by another one before it.

    Attributes:
        worker: who did it, as `WorkerPlace.name` has it.
        seconds: from when it was taken up; a worker does several side by side.

    """

    shard: int
    committed: bool
    tally: Tally
    worker: str = field(default="", compare=False)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A shard that could not be finished for now, and why, in one line.

    Attributes:
        output: the corpus's own storage failed: it did not give the plan, or not take what was done.
        worker: in whose hands it failed; empty where it was in nobody's.
        retries: as `Tally` has them.

    """

    shard: int
    reason: str
    output: bool = False
    worker: str = field(default="", compare=False)
    retries: Counter[str] = field(default_factory=Counter, compare=False)


class WorkerPlace(NamedTuple):
    """Where a worker is: its node's id, its process by host and number, the GPUs that are its own."""

    node: str
    host: str
    pid: int
    gpus: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What logs call it: `host:pid`."""
        return f"{self.host}:{self.pid}"


OnProgress = Callable[[Sequence[Tally], int], bool]
"""Told what the shards in hand have done so far, and how many workers are at work; whether to go on."""


def this_place(node: str = "", gpus: Sequence[str] = ()) -> WorkerPlace:
    """Where this process is."""
    return WorkerPlace(node, socket.gethostname(), os.getpid(), tuple(gpus))

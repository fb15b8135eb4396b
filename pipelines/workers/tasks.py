"""What travels between the driver and its workers, beside shards' tasks: the job, receipts, failures.

All of it is small, frozen and picklable, since it goes through Ray, and holds no pixels. Without Ray it is
the same.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ... import __version__
from ..config.run import RunConfig
from ..format.tally import Tally
from ..inputs.moved import Moved


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of a run have in common. It is small, since it travels to each worker."""

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
    """A shard that is committed: by this worker, or, where `committed` is False, by another one before it.

    Attributes:
        worker: the name of the worker, as `WorkerPlace.name` has it.
        seconds: since the worker began it; a worker has several shards in hand.

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
        output: whether the corpus's own storage failed to give the plan or to take the rows.
        worker: the name of the worker where it failed; empty where it was with none.
        retries: of reads and writes, as in `Tally`.

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
        """The worker's name in logs: `host:pid`."""
        return f"{self.host}:{self.pid}"


def this_place(node: str = "", gpus: Sequence[str] = ()) -> WorkerPlace:
    """Say where this process is."""
    return WorkerPlace(node, socket.gethostname(), os.getpid(), tuple(gpus))

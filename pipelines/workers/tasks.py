"""What travels between the driver and its workers: a shard's description, its receipt, counts. No pixels.

Small, frozen and picklable, since each goes through Ray, and the same without it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..config.run import RunConfig
from ..format.plan import PlannedImage
from ..format.schema import ImageRow


@dataclass(slots=True)
class Tally:
    """Counts over rows, and seconds by stage."""

    statuses: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    candidates: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # class of refusal → the first image, and why
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    retries: Counter[str] = field(default_factory=Counter)  # "read", "write" → times tried again

    @property
    def images(self) -> int:
        """Rows counted, whatever their status."""
        return self.statuses.total()

    def add_row(self, row: ImageRow) -> None:
        """Count one row."""
        self.statuses[row.status] += 1
        self.masks += len(row.masks)
        self.candidates += row.candidates
        self.drops.update(row.drops)
        if row.error is not None:
            self.rejects[row.error.error_class] += 1
            self.examples.setdefault(row.error.error_class, f"{row.key} ({row.error.message})")

    def add(self, other: Tally) -> None:
        """Count all that another one counted."""
        self.masks += other.masks
        self.candidates += other.candidates
        self.statuses.update(other.statuses)
        self.drops.update(other.drops)
        self.rejects.update(other.rejects)
        self.examples = {**other.examples, **self.examples}
        self.retries.update(other.retries)
        self.add_seconds(other.seconds)

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add time spent, stage by stage."""
        for stage, spent in seconds.items():
            self.seconds[stage] += spent


@dataclass(frozen=True, slots=True)
class Job:
    """What every shard of a run shares; small, since it travels to each worker."""

    out: Path
    config: RunConfig
    run_digest: str
    threads: int | None = None  # of the CPU; None leaves torch its own choice
    neighbours: int = 1  # workers that a machine may have to hold, each one counted
    gpu_share: float = 1.0  # of one GPU, or how many of them
    weights_sha256: str | None = None  # of the run's weights, where a worker's are to be held against them


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard's description.

    Attributes:
        deadly: ids of images that ended their workers; refused without being read.
        probe: try the images and commit nothing.
        replaces: the SHA-256 of the shard that is there; `images` are those of its rows that are to be made
            anew. Empty where the whole shard is to be made.

    """

    shard: int
    images: tuple[PlannedImage, ...]
    deadly: frozenset[int] = frozenset()
    probe: bool = False
    replaces: str = ""


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

"""A run's metrics: which there are, and which of the run's events each one counts. No Ray in here.

`pipelines.workers.ray_actors` makes an instrument of each and Ray exports it as `ray_NAME`. All but one are
counted in the driver (`pipelines.workers.events` says why). The exception is how long the network is at work,
which only its worker sees while a shard lasts; no row is counted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from .events import Loss, Watcher
from .tasks import ShardFailure, ShardReceipt

RUN_CHARACTERS = 12
"""Of a run's digest, which each metric carries as `run`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as Prometheus knows it.

    Attributes:
        labels: beside `run`.
        boundaries: upper ends of a histogram's buckets, in seconds.

    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


BUSY = Metric("maskmill_busy_seconds_total", "counter", "Seconds during which a worker's network was busy.")
METRICS = (
    Metric("maskmill_images_total", "counter", "Images of the shards that ended, by status.", ("status",)),
    Metric("maskmill_masks_total", "counter", "Masks of the shards that ended."),
    Metric("maskmill_shards_total", "counter", "Shards that ended, by outcome.", ("outcome",)),
    Metric(
        "maskmill_stage_seconds_total", "counter", "Seconds spent on shards that ended, by stage.", ("stage",)
    ),
    Metric(
        "maskmill_commit_seconds",
        "histogram",
        "Seconds to write and commit a shard, retries included.",
        boundaries=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    ),
    Metric(
        "maskmill_storage_retries_total", "counter", "Storage operations that were retried.", ("operation",)
    ),
    Metric("maskmill_worker_deaths_total", "counter", "Workers that died, hung or were lost.", ("phase",)),
    Metric("maskmill_shards_queued", "gauge", "Shards not handed out yet."),
    Metric("maskmill_shards_in_hand", "gauge", "Shards that workers have in hand."),
    Metric("maskmill_workers", "gauge", "Workers that have loaded their weights."),
    BUSY,
)


class Instrument(Protocol):
    """Takes in a metric's numbers: what a counter goes up by, a gauge's value, an observation."""

    def __call__(self, value: float, labels: Mapping[str, str] = ...) -> None:
        """Take one in."""


class Metrics(Watcher):
    """Puts what it is told into instruments, one for each of `METRICS`."""

    def __init__(self, make: Callable[[Metric], Instrument]) -> None:
        self._take = {metric.name: make(metric) for metric in METRICS if metric is not BUSY}

    def ended(self, outcome: ShardReceipt | ShardFailure) -> None:
        """Count the shard, and all that is in it."""
        if isinstance(outcome, ShardFailure):
            self._count("maskmill_shards_total", 1, outcome="undone")
            self._retried(outcome.retries)
            return
        tally = outcome.tally
        self._count("maskmill_shards_total", 1, outcome="committed" if outcome.committed else "found")
        for status, images in tally.statuses.items():
            self._count("maskmill_images_total", images, status=status)
        self._count("maskmill_masks_total", tally.masks)
        for stage, seconds in tally.seconds.items():
            self._count("maskmill_stage_seconds_total", seconds, stage=stage)
        self._take["maskmill_commit_seconds"](tally.seconds["write"])
        self._retried(tally.retries)

    def worker_lost(self, loss: Loss) -> None:
        """Count it."""
        self._count("maskmill_worker_deaths_total", 1, phase="starting" if loss.starting else "working")

    def load(self, queued: int, in_hand: int, workers: int) -> None:
        """Show it."""
        self._take["maskmill_shards_queued"](queued)
        self._take["maskmill_shards_in_hand"](in_hand)
        self._take["maskmill_workers"](workers)

    def _retried(self, retries: Mapping[str, int]) -> None:
        for operation, times in retries.items():
            self._count("maskmill_storage_retries_total", times, operation=operation)

    def _count(self, name: str, value: float, **labels: str) -> None:
        if value > 0:  # Ray counts up only
            self._take[name](value, labels)

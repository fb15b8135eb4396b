"""What a crew tells while it works: events that the run acts on, and a watcher that listens beside it.

An event is a shard's outcome, or how far the shards in hand are. A watcher is the log of events or the
metrics: it is told more, and decides nothing.

All is told in the driver's process only. A shard's outcome reaches the driver once, whichever worker made it
and however many died over it, and so it is counted once. A worker that counted what it commits would take
what was not exported yet with it when it dies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..format.tally import Tally
from .tasks import ShardFailure, ShardReceipt, WorkerPlace


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done of the shards that have not ended yet.

    Attributes:
        in_hand: what each shard in hand has done so far.
        workers: how many workers are ready.

    """

    in_hand: Sequence[Tally]
    workers: int

    def on_top_of(self, done: Tally) -> Tally:
        """Add up all that is done: `done`, of the shards that have ended, and those in hand."""
        total = Tally()
        for tally in (done, *self.in_hand):
            total.add(tally)
        return total


Event = Progress | ShardReceipt | ShardFailure


class Loss(NamedTuple):
    """A worker that died, hung, or went with its node.

    Attributes:
        worker: None where it died before it was placed.
        shards: what it had in its hands.
        starting: whether it was not ready yet.

    """

    worker: WorkerPlace | None
    reason: str
    shards: tuple[int, ...]
    starting: bool


class Watcher:
    """Is told what happens, as it happens; this one ignores it. No call may fail or take long."""

    def worker_ready(self, worker: WorkerPlace) -> None:
        """A worker has loaded its weights, and will be given shards."""

    def worker_lost(self, loss: Loss) -> None:
        """A worker is lost: it will not answer any more."""

    def ended(self, outcome: ShardReceipt | ShardFailure) -> None:
        """A shard is committed, or is left undone. Called once for each shard of the run."""

    def load(self, queued: int, in_hand: int, workers: int) -> None:
        """So many shards wait, so many are in hand, so many workers are ready. Called about once a second."""


class Watchers(Watcher):
    """Tells several watchers, one after the other."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def worker_ready(self, worker: WorkerPlace) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.worker_ready(worker)

    def worker_lost(self, loss: Loss) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.worker_lost(loss)

    def ended(self, outcome: ShardReceipt | ShardFailure) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.ended(outcome)

    def load(self, queued: int, in_hand: int, workers: int) -> None:
        """See `Watcher`."""
        for watcher in self._watchers:
            watcher.load(queued, in_hand, workers)

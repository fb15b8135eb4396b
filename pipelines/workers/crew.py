"""Who makes a run's shards, as the run sees it and as the dispatcher does.

A run has a `Crew`: this process alone (`local_crew`), or workers on Ray (`ray_actors`). It yields events, and
the run decides what they mean. Workers in processes of their own are led by a `dispatcher.Dispatcher`, which
is a crew and asks of Ray what `Actors` lists.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from .events import Event


class Crew(Protocol):
    """Whoever makes the shards of a run."""

    def run(self) -> Generator[Event, None, None]:
        """Make the shards; yield how far they are, and each one's outcome as it ends. However this ends, no
        worker is left behind; whoever does not take all events closes it.
        """

    def stop(self) -> None:
        """Begin no other shard. What is in hand may finish, and `run` yields it and ends."""


class WorkerLost(Exception):  # noqa: N818
    """A worker that will not answer: it died, or its node did.

    Attributes:
        preempted: its node was taken away.
        gpu_failed: its process lives, and cannot use its GPU any more.

    """

    def __init__(self, reason: str, *, preempted: bool = False, gpu_failed: bool = False) -> None:
        super().__init__(reason)
        self.preempted = preempted
        self.gpu_failed = gpu_failed


class Actors(Protocol):
    """Workers in processes of their own: what the dispatcher asks of Ray. A call's answer comes under its
    ref.
    """

    def start(self) -> Any:
        """Start a worker and return it; it may take its time to be placed."""

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of `ShardWorker`; return the ref of its answer."""

    def answered(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Return the refs that have an answer; where none has, wait for one, at most so many seconds."""

    def answer(self, ref: Any) -> Any:
        """Return the answer. Raises WorkerLost, a MaskmillError of the worker's, or what was a bug there."""

    def end(self, workers: Sequence[Any], refs: Sequence[Any]) -> None:
        """End workers; return when the calls under way, `refs`, can write no more."""

    def node_lives(self, node: str | None) -> bool:
        """Tell whether the node is still in the cluster."""

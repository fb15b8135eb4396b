"""A crew of one: this process makes the shards itself, one after another, with no Ray at all.

It does so in the thread that takes the events, so that Ctrl-C ends a shard where it is. A shard is made step
by step, and each step's progress is an event.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from ..errors import IncompleteRun
from ..format.records import ShardTask
from .events import Event, Progress, Watcher
from .loading import make_generator
from .shard import Generates, shard_steps
from .tasks import Job, ShardFailure, ShardReceipt, this_place


class LocalCrew:
    """The `Crew` of a run without Ray. `watcher` is told when the weights are loaded."""

    def __init__(
        self,
        job: Job,
        shards: Sequence[int],
        task_of: Callable[[int], ShardTask | ShardFailure],
        watcher: Watcher,
    ) -> None:
        self._job = job
        self._shards = shards
        self._task_of = task_of
        self._watcher = watcher
        self._stopped = False

    def run(self) -> Generator[Event, None, None]:
        """See `Crew`. Raises IncompleteRun where the weights find no memory, UsageError where they are not
        here, GpuFailed; and KeyboardInterrupt at once.
        """
        try:
            generator = make_generator(self._job)
        except MemoryError as error:
            raise IncompleteRun(f"no shard was begun: {error}") from None
        self._watcher.worker_ready(this_place())
        for shard in self._shards:
            task = self._task_of(shard)
            if isinstance(task, ShardFailure):
                yield task
                continue
            yield (yield from self._make(task, generator))
            yield Progress((), 1)
            if self._stopped:
                return

    def stop(self) -> None:
        """See `Crew`."""
        self._stopped = True

    def _make(
        self, task: ShardTask, generator: Generates
    ) -> Generator[Progress, None, ShardReceipt | ShardFailure]:
        steps = shard_steps(task, generator, self._job)
        while True:
            try:
                tally = next(steps)
            except StopIteration as end:
                outcome: ShardReceipt | ShardFailure = end.value
                return outcome
            yield Progress((tally,), 1)

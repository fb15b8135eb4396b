"""The driver's decisions: which shard goes to which worker, and what a worker's death means. No Ray in here.

The driver owns the slots. A slot is fed only after its worker has said that it is ready; a worker that dies,
hangs or is lost is fenced and a new one takes its slot. Its shards are suspects
(`pipelines.workers.blame.quarantine`): each is tried alone, on a worker that holds nothing else. A death that
comes with its node's, or with a pre-emption, proves nothing against a shard. Workers that die over one image
after the other without any coming through, anywhere, end the run: the fault is not the images'. That one
image ends its worker twice more says nothing new, and is not counted. A folder of bad images looks the same,
though, as long as only suspects are tried. So before the last death that is allowed comes a control: an image
that came through earlier, or, where none has, work that nobody suspects. If it comes through, the trial of
the suspects goes on; the run ends if its worker dies too.

A GPU that fails may itself be to blame (`pipelines.workers.blame.gpu_faults`). One that is left out stays in
the hands of a worker without work, so that no other is placed on it; the run goes on with one worker less.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BreakerTripped
from ..format.records import ShardTask
from ..format.tally import Tally
from ..signals import Interrupts, held_back
from .blame.gpu_faults import GpuFaults
from .blame.quarantine import Suspect
from .crew import Actors, WorkerLost
from .events import Event, Loss, Progress, Watcher
from .tasks import Job, ShardFailure, ShardReceipt, WorkerPlace

log = logging.getLogger(__name__)

FAILED_STARTS = 3  # in a row for each worker of the run, before it is given up
POLL_SECONDS = 1.0
ASKED_A_SECOND = 64  # workers, how far they are: Ray takes about a millisecond of the driver's CPU for each

Outcome = ShardReceipt | ShardFailure


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one worker, and what the worker has in hand."""

    worker: Any
    hello: Any
    loading: Any
    placed: float | None = None  # when it said hello
    place: WorkerPlace | None = None
    asking: Any = None
    asked: float = 0.0
    suspect: Suspect | None = None
    work: dict[Any, ShardTask] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)
    moved: dict[int, float] = field(default_factory=dict)  # shard → when it last finished an image

    @property
    def ready(self) -> bool:
        """Whether the worker may be given shards."""
        return self.loading is None

    @property
    def node(self) -> str | None:
        """The id of its worker's node."""
        return self.place and self.place.node

    def refs(self) -> list[Any]:
        """Return the refs of all answers that the worker owes."""
        return [ref for ref in (self.hello, self.loading, self.asking, *self.work) if ref is not None]

    def note(self, tallies: dict[int, Tally]) -> bool:
        """Take in an answer of `stats()` and restart the clock of shards that moved; tell whether any did."""
        mine = {shard: tally for shard, tally in tallies.items() if shard in self.moved}
        ahead = [shard for shard, tally in mine.items() if tally.images != self._images(shard)]
        self.moved.update(dict.fromkeys(ahead, time.monotonic()))
        self.tallies = mine
        return bool(ahead)

    def stalled(self, start_seconds: float, stall_seconds: float) -> bool:
        """Tell whether the worker takes too long to load its weights or to finish a shard's next image."""
        now = time.monotonic()
        if not self.ready:
            return self.placed is not None and now - self.placed > start_seconds
        return any(now - moved > stall_seconds for moved in self.moved.values())

    def _images(self, shard: int) -> int:
        return self.tallies[shard].images if shard in self.tallies else 0


class Dispatcher:
    """The `Crew` of workers in processes of their own. It feeds shards to `workers` slots until each shard is
    committed or given up.
    """

    def __init__(
        self,
        job: Job,
        shards: Sequence[int],
        task_of: Callable[[int], ShardTask | ShardFailure],
        actors: Actors,
        workers: int,
        watcher: Watcher | None = None,
    ) -> None:
        self._watcher = watcher or Watcher()
        self._limits = job.config.cluster
        self._deaths_allowed = job.config.breaker.worker_deaths * workers
        self._queue = deque(shards)
        self._task_of = task_of  # a shard's images are looked up when it is handed out, not before
        self._actors = actors
        self._workers = workers
        self._least = self._limits.min_workers
        self._begun = False
        self._suspects: deque[Suspect] = deque()
        self._slots: list[Slot] = []
        self._gpus = GpuFaults()
        self._holders: list[Any] = []  # workers that keep others away from GPUs that are left out
        self._failed_starts = 0  # in a row, like the deaths: since an image came through anywhere
        self._deaths = 0
        self._control: ShardTask | None = None  # one image, as a probe, of a shard that came through whole
        self._last_fault = ""  # of a GPU that was left out
        self._held_at = 0.0  # when a worker was last placed on such a GPU
        self._give_up_at: float | None = None  # after an interruption

    def run(self) -> Generator[Event, None, None]:
        """Yield each shard's outcome as it ends, and about once a second what is in hand.

        After `stop`, or when a signal has come, nothing more is handed out, and what is in hand may finish
        within the grace. Raises KeyboardInterrupt then, if it was a signal; what a worker raised, with the
        worker's traceback, if it was a bug; BreakerTripped where workers cannot be started, or die again and
        again. However it ends, no worker is left behind.
        """
        try:
            with held_back() as signals:
                while self._queue or self._suspects or any(slot.work for slot in self._slots):
                    yield from self._turn()
                    self._heed(signals)
                    if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
                        break
                if signals.received:
                    raise KeyboardInterrupt
        finally:
            workers = [*self._holders, *(slot.worker for slot in self._slots)]
            self._actors.end(workers, [ref for slot in self._slots for ref in slot.work])
            self._slots.clear()
            self._watcher.load(0, 0, 0)

    def stop(self) -> None:
        """Hand out nothing new, and give what is in hand the grace to finish."""
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + self._limits.grace_seconds
        self._queue.clear()
        self._suspects.clear()

    def _turn(self) -> Iterator[Event]:
        """Hand out what there is, take in what has come, and tell how far it is."""
        self._check_left()
        self._refill()
        yield from self._feed()
        yield from self._listen()
        yield from self._end_stalled()
        self._ask()
        working = sum(slot.ready for slot in self._slots)
        given = sum(len(slot.work) for slot in self._slots)
        self._watcher.load(len(self._queue) + len(self._suspects), given, working)
        yield Progress([tally for slot in self._slots for tally in slot.tallies.values()], working)

    def _refill(self) -> None:
        """Start workers for the free slots, no more than there are shards to hold."""
        open_shards = len(self._queue) + len(self._suspects) + sum(len(slot.work) for slot in self._slots)
        while len(self._slots) < min(self._workers, open_shards):
            worker = self._actors.start()
            hello, loading = (self._actors.call(worker, method) for method in ("hello", "load"))
            self._slots.append(Slot(worker, hello, loading))

    def _feed(self) -> Iterator[ShardFailure]:
        """Hand out shards, once enough workers are ready. A suspect goes to an idle slot, which holds nothing
        else until it is done, and so does a control.
        """
        ready = [slot for slot in self._slots if slot.ready and slot.suspect is None]
        if not self._begun and len(ready) < min(self._least, len(self._slots)):
            return
        self._begun = True
        self._try_doubted(ready)
        control = self._control if self._doubts() else None
        if ready and (control or (self._suspects and not self._doubts())):
            slot = min(ready, key=lambda slot: len(slot.work))  # kept from new work until it is idle
            ready.remove(slot)
            if not slot.work and control:
                self._give(slot, control)
            elif not slot.work:
                slot.suspect = self._suspects.popleft()
                self._give(slot, slot.suspect.next_task())
        for _ in range(self._limits.shards_in_flight):
            for slot in ready:
                if self._queue and len(slot.work) < self._limits.shards_in_flight:
                    task = self._task_of(self._queue.popleft())
                    if isinstance(task, ShardFailure):
                        yield task
                    else:
                        self._give(slot, task)

    def _try_doubted(self, ready: list[Slot]) -> None:
        """Give the control to idle workers whose GPU is in doubt, and take them from those that are ready."""
        for slot in [slot for slot in ready if self._control and self._gpus.in_doubt(slot.place)]:
            ready.remove(slot)
            if not slot.work and self._control:
                self._give(slot, self._control)

    def _doubts(self) -> bool:
        """Tell whether one more death ends the run, and there is something else than suspects to try."""
        trusted = self._control or self._queue or any(slot.work and not slot.suspect for slot in self._slots)
        return bool(trusted) and 0 < self._deaths == self._deaths_allowed - 1

    def _give(self, slot: Slot, task: ShardTask) -> None:
        slot.work[self._actors.call(slot.worker, "run", task)] = task
        slot.moved[task.shard] = time.monotonic()

    def _listen(self) -> Iterator[Outcome]:
        """Take in all answers that are there; wait for one, up to a second, where there is none."""
        refs = {ref: slot for slot in self._slots for ref in slot.refs()}
        for ref in self._actors.answered(list(refs), POLL_SECONDS):
            if refs[ref] in self._slots:  # it may have been buried by an answer before this one
                yield from self._settle(refs[ref], ref)

    def _ask(self) -> None:
        """Ask busy workers how far they are: once a second, since each answer would else bring the next; or
        less often where they are many, though several times within the time that a shard may stall.
        """
        now = time.monotonic()
        interval = min(len(self._slots) / ASKED_A_SECOND, self._limits.stall_seconds / 4)
        due = now - max(POLL_SECONDS, interval)
        for slot in self._slots:
            if slot.ready and slot.work and slot.asking is None and slot.asked <= due:
                slot.asking, slot.asked = self._actors.call(slot.worker, "stats"), now

    def _settle(self, slot: Slot, ref: Any) -> Iterator[Outcome]:
        """Take in one answer of a worker, or its death."""
        try:
            answer = self._actors.answer(ref)
        except WorkerLost as lost:
            yield from self._bury(slot, lost)
            return
        if ref is slot.hello:
            slot.hello, slot.place, slot.placed = None, answer, time.monotonic()
            if self._gpus.is_left_out(answer):
                self._hold(slot)
        elif ref is slot.loading:
            slot.loading = None
            self._failed_starts = 0
            if slot.place is not None:
                log.info("a worker is ready: %s, GPUs %s", slot.place.name, slot.place.gpus or "none")
                self._watcher.worker_ready(slot.place)
        elif ref is slot.asking:
            slot.asking = None
            if slot.note(answer):
                self._came_through(slot)
        else:
            yield from self._finished(slot, slot.work.pop(ref), answer)

    def _finished(self, slot: Slot, task: ShardTask, outcome: Outcome) -> Iterator[Outcome]:
        slot.moved.pop(task.shard, None)
        slot.tallies.pop(task.shard, None)
        suspect, slot.suspect = slot.suspect, None
        if isinstance(outcome, ShardReceipt):
            if any(image.image_id not in task.deadly for image in task.images):
                self._came_through(slot)
            if task.images and not outcome.tally.statuses["rejected"]:
                self._control = replace(task, images=task.images[:1], probe=True)
            if suspect is not None and task.probe:
                suspect.survived()
                if self._give_up_at is None:
                    slot.suspect = suspect
                    self._give(slot, suspect.next_task())
                return
        elif task is self._control:
            self._control = None  # its storage fails: it tells nothing about the workers
        if suspect is not None or not task.probe:  # a control is nobody's shard
            yield outcome

    def _came_through(self, slot: Slot) -> None:
        self._failed_starts = self._deaths = 0
        self._gpus.came_through(slot.place)

    def _hold(self, slot: Slot) -> None:
        """Keep a worker that was placed on a GPU that is left out where it is, without work."""
        self._slots.remove(slot)
        self._holders.append(slot.worker)
        self._workers -= 1
        self._held_at = time.monotonic()

    def _check_left(self) -> None:
        """Raise BreakerTripped where GPUs are left out, and no other has had a worker for long enough."""
        alone = bool(self._holders) and not any(slot.place for slot in self._slots)
        waited = time.monotonic() - self._held_at > self._limits.start_seconds
        if alone and (waited or not self._workers):
            raise BreakerTripped(
                f"stopped: no GPU is left to the run: {self._last_fault}; look at the GPU (nvidia-smi, "
                "dmesg), then run the same command again"
            )

    def _blame_gpu(self, slot: Slot, lost: WorkerLost) -> bool:
        """Count a failure of a GPU; tell whether the GPU is in doubt now, and no image accused."""
        place = slot.place
        if not lost.gpu_failed or place is None or slot.placed is None or not place.gpus:
            return False
        starting, can_be_tried = not slot.ready, self._control is not None
        if self._gpus.failed(place, slot.placed, starting=starting, can_be_tried=can_be_tried):
            name = f"{place.host}, GPU {','.join(place.gpus)}"
            self._last_fault = f"{name}: {' '.join(str(lost).split())}"
            log.warning("%s is left out of the run: work keeps failing on it; the last error: %s", name, lost)
        return self._gpus.is_left_out(place) or (can_be_tried and self._gpus.in_doubt(place))

    def _bury(self, slot: Slot, lost: WorkerLost) -> Iterator[ShardFailure]:
        """Fence a dead or lost worker, free its slot, and put what it held under suspicion."""
        self._actors.end([slot.worker], [])
        self._slots.remove(slot)
        log.info("a worker died: %s", lost)
        held = tuple(task.shard for task in slot.work.values())
        self._watcher.worker_lost(Loss(slot.place, str(lost), held, not slot.ready))
        gpu_is_blamed = self._blame_gpu(slot, lost)
        if not slot.ready:
            self._failed_starts += 1
            self._trip(self._failed_starts, FAILED_STARTS * self._workers, "died while starting", lost)
            return
        proof = self._actors.node_lives(slot.node) and not lost.preempted and not gpu_is_blamed
        counts = slot.suspect is None or not (slot.suspect.is_tried_again or self._doubts())
        if slot.suspect is None:
            self._suspects.extend(Suspect(task) for task in slot.work.values() if not task.probe)
        elif gave_up := slot.suspect.died(proof):
            yield ShardFailure(slot.suspect.task.shard, gave_up, worker=slot.place.name if slot.place else "")
        else:
            self._suspects.append(slot.suspect)
        if proof and counts:
            self._deaths += 1
            done = "died on their images, and none finished in between"
            self._trip(self._deaths, self._deaths_allowed, done, lost)

    def _trip(self, count: int, limit: int, what: str, last: WorkerLost) -> None:
        if count >= limit:
            raise BreakerTripped(
                f"stopped: {count} workers in a row {what}; the last: {' '.join(str(last).split())}; look "
                "for too little memory (fewer --workers, a smaller generator.points_per_batch) or a "
                "library that crashes (--workers 0 shows where), then run the same command again; "
                "--set breaker.worker_deaths=N allows N for each worker"
            )

    def _end_stalled(self) -> Iterator[ShardFailure]:
        """Replace the workers that take too long."""
        for slot in list(self._slots):
            if slot.stalled(self._limits.start_seconds, self._limits.stall_seconds):
                yield from self._bury(slot, WorkerLost("no progress within the time allowed"))

    def _heed(self, signals: Interrupts) -> None:
        if not signals.received:
            return
        if self._give_up_at is None:
            log.warning(
                "interrupted: shards in hand may finish within %g s (cluster.grace_seconds); "
                "a second signal ends at once",
                self._limits.grace_seconds,
            )
        self.stop()

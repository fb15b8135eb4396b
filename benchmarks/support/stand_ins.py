"""Workers that sleep in place of the network and commit real shards of empty rows, and their crews.

A stand-in is a `ShardWorker`: the driver cannot tell it from a real one. On Ray several may share a process;
beyond what a machine's processes hold they are threads of the driver's own.
"""

from __future__ import annotations

import copy
import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from maskmill.pipelines.format.records import ImageRow, PlannedImage, ShardTask
from maskmill.pipelines.format.rows import table_from_rows
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.workers.cluster.connect import connect
from maskmill.pipelines.workers.cluster.own_ray import OBJECT_STORE_BYTES
from maskmill.pipelines.workers.crew import Actors, WorkerLost
from maskmill.pipelines.workers.loading import check_sees_corpus
from maskmill.pipelines.workers.placement import Placement
from maskmill.pipelines.workers.ray_actors import RayActors, ShardWorker, ray
from maskmill.pipelines.workers.tasks import Job, ShardFailure, ShardReceipt, WorkerPlace, this_place

STAGES = ("read", "decode", "resize", "encode", "prompt", "draw", "resample", "filter", "nms", "rle", "table")
"""Of a real shard's receipt, which the driver adds up."""

STEPS = 8  # in which a shard tells how far it is


@dataclass(frozen=True)
class StandInJob(Job):
    """A job for stand-ins: it says how long a shard takes, and which shards end their worker once."""

    shard_seconds: float = 0.0
    deadly: frozenset[int] = frozenset()
    deaths: Path = Path()  # a folder with a file for each shard that has ended its worker

    @property
    def image_seconds(self) -> float:
        """How long an image takes."""
        return self.shard_seconds / self.config.shard_size


class Seat:
    """One worker's place: its device, which serves one shard at a time, and when it had nothing in hand."""

    def __init__(self) -> None:
        self.device = threading.Lock()
        self._lock = threading.Lock()
        self._in_hand = 0
        self._since = time.monotonic()

    def begin(self) -> float:
        """Take a shard in hand; returns the seconds that passed without one."""
        with self._lock:
            now = time.monotonic()
            idle = 0.0 if self._in_hand else now - self._since
            self._since = self._since if self._in_hand else now
            self._in_hand += 1
            return idle

    def finish(self) -> float:
        """Be done with a shard; returns the seconds with one in hand since the last call."""
        with self._lock:
            now = time.monotonic()
            busy, self._since = now - self._since, now
            self._in_hand -= 1
            return busy


class StandIn(ShardWorker):
    """A `ShardWorker` without a network. `number` tells apart the workers that share a process."""

    def __init__(self, job: StandInJob, gpus: float) -> None:
        super().__init__(job, gpus)
        self._job: StandInJob = job
        self._seats: dict[int, Seat] = {}
        self.ended = threading.Event()

    def load(self, number: int = 0) -> None:
        """Be ready, if this process sees the corpus."""
        check_sees_corpus(self._job)
        self._seats[number] = Seat()

    def run(self, task: ShardTask, number: int = 0) -> ShardReceipt | ShardFailure:
        """Sleep as long as the shard's images take, then commit the shard."""
        seat, job = self._seats[number], self._job
        tally = Tally()
        tally.add_seconds({**dict.fromkeys(STAGES, 0.0), "idle": seat.begin()})
        rows: list[ImageRow] = []
        try:
            step = -(-len(task.images) // STEPS)
            for start in range(0, len(task.images), step):
                images = task.images[start : start + step]
                with seat.device:
                    if self.ended.wait(job.image_seconds * len(images)):
                        raise WorkerLost("ended")
                for image in images:
                    rows.append(empty_row(image))
                    tally.add_row(rows[-1])
                self._running[task.shard] = copy.deepcopy(tally)
                if start + step >= len(task.images) // 2 and self._is_to_die(task):
                    self.die()
            metadata = shard_metadata(job.run_digest, task.shard, tally.seconds)
            committed = task.probe or commit_table(job.out, task.shard, table_from_rows(rows), metadata)
        finally:
            self._running.pop(task.shard, None)
            tally.add_seconds({"busy": seat.finish()})
        return ShardReceipt(task.shard, committed, tally)

    def die(self) -> None:
        """End this process, as a crash would."""
        os._exit(1)

    def _is_to_die(self, task: ShardTask) -> bool:
        if task.shard not in self._job.deadly:
            return False
        try:
            (self._job.deaths / str(task.shard)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def empty_row(image: PlannedImage) -> ImageRow:
    size = {"width": 1, "height": 1, "orientation": 1, "image_sha256": "0" * 64}
    common = {"row": image.row, "image_id": image.image_id, "key": image.key, "uri": image.uri}
    return ImageRow(**common, status="empty", **size)


class PackedCrew(RayActors):
    """Workers on Ray, `seats` of which share a process: a worker is an actor, and its number in there."""

    def __init__(self, job: StandInJob, placement: Placement, seats: int) -> None:
        cluster = job.config.cluster
        packed = cluster.model_copy(update={"shards_in_flight": cluster.shards_in_flight * seats})
        config = job.config.model_copy(update={"cluster": packed})
        super().__init__(replace(job, config=config), placement, StandIn)
        self._seats = seats
        self._free: list[tuple[Any, int]] = []

    def start(self) -> Any:
        """A free seat, in a new process where there is none."""
        if not self._free:
            actor = super().start()
            self._free = [(actor, number) for number in range(self._seats)]
        return self._free.pop()

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call the actor, and say for which of its workers."""
        actor, number = worker
        return super().call(actor, method, *arguments, *((number,) if method in ("load", "run") else ()))

    def end(self, workers: Sequence[Any], refs: Sequence[Any]) -> None:
        """End the workers' processes, and with them who shares those."""
        ended = [actor for actor, _ in workers]
        self._free = [worker for worker in self._free if worker[0] not in ended]
        super().end(list(dict.fromkeys(ended)), refs)


class InThreads(StandIn):
    """A stand-in whose shards run in two threads of this process."""

    def __init__(self, job: StandInJob) -> None:
        super().__init__(job, 1.0)
        self.threads = ThreadPoolExecutor(job.config.cluster.shards_in_flight)

    def hello(self) -> WorkerPlace:
        """Where it is."""
        return this_place("this one")

    def die(self) -> None:
        """End this shard and the other one in hand, as a process that dies would."""
        self.ended.set()
        raise WorkerLost("died")


class ThreadCrew:
    """Workers as threads: the `Actors` (which says what each method does) with nothing between."""

    def __init__(self, job: StandInJob) -> None:
        self._job = job
        self._control = ThreadPoolExecutor(1)  # hello, load and stats, which take no time
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()

    def start(self) -> InThreads:  # noqa: D102
        return InThreads(self._job)

    def call(self, worker: InThreads, method: str, *arguments: Any) -> Future[Any]:  # noqa: D102
        threads = worker.threads if method == "run" else self._control
        ref: Future[Any] = threads.submit(getattr(worker, method), *arguments)
        ref.add_done_callback(self._done.put)
        return ref

    def answered(self, refs: Sequence[Any], seconds: float) -> list[Any]:  # noqa: D102
        owed, found = set(refs), []
        try:
            found.append(self._done.get(timeout=seconds))
            while True:
                found.append(self._done.get_nowait())
        except Empty:
            return [ref for ref in found if ref in owed]

    def answer(self, ref: Future[Any]) -> Any:  # noqa: D102
        return ref.result()

    def end(self, workers: Sequence[InThreads], refs: Sequence[Future[Any]]) -> None:  # noqa: D102
        for worker in workers:
            worker.ended.set()
            worker.threads.shutdown(wait=False)
        wait(refs)

    def node_lives(self, _node: str | None) -> bool:  # noqa: D102
        return True


@contextmanager
def crew_of(kind: str, job: StandInJob, workers: int, processes: int) -> Iterator[Actors]:
    """The workers: threads, or Ray's actors on logical GPUs; gone after the block."""
    if kind == "threads":
        yield ThreadCrew(job)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    ray.init(
        address="local",
        num_cpus=processes,
        num_gpus=processes,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        with connect(job.config, None) as placement:
            yield PackedCrew(job, placement, -(-workers // processes))
    finally:
        ray.shutdown()

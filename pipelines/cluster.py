"""Shards on Ray: where they run, and what happens when a worker dies. The only module that imports Ray.

Ray Core actors, not Ray Data: what travels is a shard's description and its receipt, no pixels, and the file
a worker commits is the result, so that a lost worker costs at most the shards it held. The driver owns the
slots: an actor is never restarted by Ray, because calls to a restarting actor bounce and strike innocent
shards; it is fenced with `ray.kill` and a new one takes the slot. A slot is fed only after its actor has said
it is ready.

A shard whose worker died is a suspect (`pipelines.suspects`): it is tried alone, on a worker that holds
nothing else. A death that comes with its node's, or with a pre-emption, proves nothing against it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

# Ray reads these at import. Nothing phones home; the empty CUDA_VISIBLE_DEVICES of a CPU actor stays; and
# workers have the priority of the command that started them (`nice maskmill …`), not Ray's 15 below it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from pipelines.errors import IncompleteRun, MaskmillError, UsageError
from pipelines.placement import Node, Placement, how_many_fit, place
from pipelines.suspects import Suspect
from pipelines.worker import (
    Job,
    OnProgress,
    ShardFailure,
    ShardReceipt,
    ShardTask,
    Tally,
    is_infrastructure,
    make_generator,
    run_shard,
)

if TYPE_CHECKING:
    import numpy as np

    from engine.records import GeneratedMasks
    from pipelines.config import RunConfig

log = logging.getLogger(__name__)

FAILED_STARTS = 3  # in a row, before the run is given up
POLL_SECONDS = 1.0
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 2**20  # nothing but descriptions and receipts passes through it


@contextmanager
def connect(config: RunConfig, address: str | None) -> Iterator[Placement]:
    """A Ray to run on: the cluster at `address` (or `auto`, or RAY_ADDRESS), else one started here and ended
    after.

    A Ray that this process has joined already is used, and left as it is. Raises UsageError where no
    cluster answers, and where a Ray started here has no room for a worker.
    """
    if ray.is_initialized():
        yield _placement(config, grows=True)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            join(address)
        else:
            _start(config)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
        yield _placement(config, grows=bool(address))
    finally:
        ray.shutdown()


def join(address: str) -> None:
    """Join a running cluster: `host:port`, `ray://host:port` or `auto`. Raises UsageError where none answers.

    The port is tried first, since Ray itself goes on trying for a minute or more.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"--ray {address}: expected a running Ray cluster's address: {line}") from None


def _start(config: RunConfig) -> None:
    """Start a Ray of our own, with the CPUs the workers ask for, whether or not the machine has as many."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token file appears in the home folder
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ray.init(
        address="local",
        num_cpus=max(cpus, (config.workers or 1) * (config.threads_per_worker or 1)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _placement(config: RunConfig, *, grows: bool) -> Placement:
    """Place the workers on the nodes that are alive; UsageError where one machine has too few GPUs."""
    nodes = live_nodes()
    placement = place(config, nodes, grows=grows)
    room = how_many_fit(nodes, placement.threads, placement.gpus)
    if not grows and placement.gpus and placement.workers > room:
        raise UsageError(
            f"expected workers for the {sum(node.gpus for node in nodes):g} GPU(s) that are here, "
            f"got {placement.workers * placement.gpus:g} GPU(s) asked for"
        )
    if not room:
        log.warning(
            "no node has room for a worker of %d CPU(s) and %g GPU(s) yet; waiting for one to join",
            placement.threads,
            placement.gpus,
        )
    return placement


def live_nodes() -> list[Node]:
    """What each node that is alive has, whether or not it is in use."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [Node(held.get("CPU", 0.0), held.get("GPU", 0.0)) for held in resources]


class _OneAtATime:
    """A generator's queue: shards overlap in decoding and committing, the network serves one of them at a
    time.

    A thread of its own rather than a lock: first come, first served, and all of torch's work, the loading of
    the weights too, in one thread. Each thread that calls torch gets a team of CPU threads, and with more
    threads than CPUs the teams sleep between steps where they would spin: nearly twice the time an image.
    """

    def __init__(self, job: Job) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._generator = self._thread.submit(make_generator, job).result()

    def generate_batch(self, images: Sequence[np.ndarray]) -> list[GeneratedMasks]:
        return self._thread.submit(self._generator.generate_batch, images).result()


class ShardWorker:
    """The actor: weights loaded once, then shard after shard."""

    def __init__(self, job: Job, gpus: float) -> None:
        if gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides GPUs only from actors that reserve some
        self._job = job
        self._generator: _OneAtATime | None = None
        self._running: dict[int, Tally] = {}

    @ray.method(concurrency_group="ctl")
    def hello(self) -> str:
        """The id of the node this worker was placed on."""
        return str(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="ctl")
    def load(self) -> None:
        """Load the weights: a call, not the constructor, so that an error keeps its type and traceback."""
        self._generator = _OneAtATime(self._job)

    @ray.method(concurrency_group="ctl")
    def stats(self) -> dict[int, Tally]:
        """What the shards in hand have done so far."""
        return dict(self._running)

    @ray.method(concurrency_group="shard")
    def run(self, task: ShardTask) -> ShardReceipt | ShardFailure:
        """Run one shard; two may run at once."""
        assert self._generator is not None, "the driver feeds a worker only after load()"

        def note(tally: Tally) -> None:
            self._running[task.shard] = tally

        try:
            return run_shard(task, self._generator, self._job, note)
        finally:
            self._running.pop(task.shard, None)


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for one worker, and what it has in hand."""

    actor: Any
    hello: Any
    loading: Any
    placed: float | None = None  # when it said hello
    node: str | None = None
    asking: Any = None
    asked: float = 0.0
    suspect: Suspect | None = None
    work: dict[Any, ShardTask] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)
    moved: dict[int, float] = field(default_factory=dict)  # shard → when it last finished an image

    @property
    def ready(self) -> bool:
        return self.loading is None

    def refs(self) -> list[Any]:
        return [ref for ref in (self.hello, self.loading, self.asking, *self.work) if ref is not None]

    def note(self, tallies: dict[int, Tally]) -> None:
        """Take in an answer of `stats()`; a shard that moved has its clock set back."""
        for shard, tally in tallies.items():
            if shard in self.moved and tally.images != self.tallies.get(shard, Tally()).images:
                self.moved[shard] = time.monotonic()
        self.tallies = {shard: tally for shard, tally in tallies.items() if shard in self.moved}


class Dispatcher:
    """Feeds shards to slots until each is committed, refused or given up."""

    def __init__(
        self,
        job: Job,
        shards: Sequence[int],
        task_of: Callable[[int], ShardTask],
        placement: Placement,
        worker: type[ShardWorker] = ShardWorker,
    ) -> None:
        self._job = job
        self._placement = placement
        self._queue = deque(shards)
        self._task_of = task_of  # a shard's images are looked up when it is handed out, not before
        self._suspects: deque[Suspect] = deque()
        self._slots: list[_Slot] = []
        self._failed_starts = 0
        self._actor_class: Any = ray.remote(  # type: ignore[call-overload]
            num_cpus=placement.threads,
            num_gpus=placement.gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"ctl": 1, "shard": job.config.cluster.shards_in_flight},
        )(worker)

    def run(self, on_progress: OnProgress) -> Iterator[ShardReceipt | ShardFailure]:
        """Yield each shard's outcome as it ends; about once a second, tell what is in hand and how many work.

        Raises what a worker raised, with the worker's traceback, if it was a bug; IncompleteRun where workers
        cannot be started. However it ends, no actor is left behind.
        """
        try:
            while self._queue or self._suspects or any(slot.work for slot in self._slots):
                self._refill()
                self._feed()
                refs = {ref: slot for slot in self._slots for ref in slot.refs()}
                done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
                if not done:
                    done, _ = ray.wait(list(refs), num_returns=1, timeout=POLL_SECONDS)
                for ref in done:
                    if refs[ref] in self._slots:  # it may have been buried by an answer before this one
                        yield from self._settle(refs[ref], ref)
                yield from self._end_stalled()
                self._ask()
                working = sum(slot.ready for slot in self._slots)
                on_progress([tally for slot in self._slots for tally in slot.tallies.values()], working)
        finally:
            for slot in self._slots:
                ray.kill(slot.actor, no_restart=True)
            self._slots.clear()

    def _refill(self) -> None:
        """Start workers for the free slots, no more than there are shards to hold."""
        open_shards = len(self._queue) + len(self._suspects) + sum(len(slot.work) for slot in self._slots)
        while len(self._slots) < min(self._placement.workers, open_shards):
            actor = self._actor_class.remote(self._job, self._placement.gpus)
            self._slots.append(_Slot(actor, actor.hello.remote(), actor.load.remote()))

    def _feed(self) -> None:
        """Hand out shards: a suspect goes to an idle slot, which holds nothing else until it is done."""
        ready = [slot for slot in self._slots if slot.ready and slot.suspect is None]
        if self._suspects and ready:
            slot = min(ready, key=lambda slot: len(slot.work))  # kept from new work until it is idle
            ready.remove(slot)
            if not slot.work:
                slot.suspect = self._suspects.popleft()
                self._give(slot, slot.suspect.next_task())
        for _ in range(self._job.config.cluster.shards_in_flight):
            for slot in ready:
                if self._queue and len(slot.work) < self._job.config.cluster.shards_in_flight:
                    self._give(slot, self._task_of(self._queue.popleft()))

    def _give(self, slot: _Slot, task: ShardTask) -> None:
        slot.work[slot.actor.run.remote(task)] = task
        slot.moved[task.shard] = time.monotonic()

    def _ask(self) -> None:
        """Ask busy workers how far they are: once a second, since each answer would else bring the next."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.ready and slot.work and slot.asking is None and now - slot.asked >= POLL_SECONDS:
                slot.asking, slot.asked = slot.actor.stats.remote(), now

    def _settle(self, slot: _Slot, ref: Any) -> Iterator[ShardReceipt | ShardFailure]:
        """Take in one answer of a worker, or its death."""
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            if ref is slot.loading and is_infrastructure(error.cause):
                yield from self._bury(slot, error)
                return
            if isinstance(error.cause, MaskmillError):
                raise error.cause from None
            raise
        except RayError as error:
            yield from self._bury(slot, error)
            return
        if ref is slot.hello:
            slot.hello, slot.node, slot.placed = None, answer, time.monotonic()
        elif ref is slot.loading:
            slot.loading = None
            self._failed_starts = 0
        elif ref is slot.asking:
            slot.asking = None
            slot.note(answer)
        else:
            yield from self._finished(slot, slot.work.pop(ref), answer)

    def _finished(
        self, slot: _Slot, task: ShardTask, outcome: ShardReceipt | ShardFailure
    ) -> Iterator[ShardReceipt | ShardFailure]:
        slot.moved.pop(task.shard, None)
        slot.tallies.pop(task.shard, None)
        suspect, slot.suspect = slot.suspect, None
        if suspect is not None and task.probe and isinstance(outcome, ShardReceipt):
            suspect.survived()
            slot.suspect = suspect
            self._give(slot, suspect.next_task())
            return
        yield outcome

    def _bury(self, slot: _Slot, error: Exception) -> Iterator[ShardFailure]:
        """Fence a dead or lost worker, free its slot, and put what it held under suspicion."""
        ray.kill(slot.actor, no_restart=True)
        self._slots.remove(slot)
        log.info("a worker died: %s", error)
        if not slot.ready:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                reason = " ".join(str(getattr(error, "cause", None) or error).split())
                raise IncompleteRun(
                    f"{FAILED_STARTS} workers in a row died while starting; the last: {reason}"
                )
            return
        proof = self._node_lives(slot) and not getattr(error, "preempted", False)
        if slot.suspect is None:
            self._suspects.extend(Suspect(task) for task in slot.work.values())
            return
        gave_up = slot.suspect.died(proof)
        if gave_up:
            yield ShardFailure(slot.suspect.task.shard, gave_up)
        else:
            self._suspects.append(slot.suspect)

    def _node_lives(self, slot: _Slot) -> bool:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return any(node["NodeID"] == slot.node and node["Alive"] for node in nodes)

    def _end_stalled(self) -> Iterator[ShardFailure]:
        """Replace workers that take too long: to load the weights, or to finish the next image of a shard."""
        now = time.monotonic()
        limits = self._job.config.cluster
        for slot in list(self._slots):
            if not slot.ready:
                stalled = slot.placed is not None and now - slot.placed > limits.start_seconds
            else:
                stalled = any(now - moved > limits.stall_seconds for moved in slot.moved.values())
            if stalled:
                yield from self._bury(slot, TimeoutError("no progress within the time allowed"))


def run_on_ray(
    job: Job,
    shards: Sequence[int],
    task_of: Callable[[int], ShardTask],
    address: str | None,
    on_progress: OnProgress,
) -> Iterator[ShardReceipt | ShardFailure]:
    """Run the shards on the cluster at `address`, or on a Ray of our own; yield each one's outcome as it
    ends.
    """
    with connect(job.config, address) as placement:
        placed = replace(job, threads=placement.threads)
        yield from Dispatcher(placed, shards, task_of, placement).run(on_progress)

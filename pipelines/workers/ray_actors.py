"""Workers on Ray: the actors, and how they are called.

Ray Core actors, not Ray Data: what travels is a shard's description and its receipt, no pixels, and the file
a worker commits is the result, so that a lost worker costs at most the shards it held. Which worker gets what
is decided in `pipelines.workers.dispatcher`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.metrics import Counter, Gauge, Histogram

from ..errors import GpuFailed, MaskmillError, UsageError
from ..format.records import ShardTask
from ..format.tally import Tally
from ..text import without_escapes
from .cluster.connect import connect
from .crew import WorkerLost
from .dispatcher import Dispatcher
from .events import Event, Progress, Watcher, Watchers
from .generator_queue import GeneratorQueue
from .loading import check_same_version, check_sees_corpus, limit_threads
from .metrics import BUSY, RUN_CHARACTERS, Instrument, Metric, Metrics
from .placement import Placement, check_sees_its_gpus
from .shard import is_infrastructure, run_shard
from .tasks import Job, ShardFailure, ShardReceipt, WorkerPlace, this_place

END_SECONDS = 10.0  # for killed actors to be dead


def instrument(metric: Metric, run: str) -> Instrument:
    """Make Ray's instrument for a metric, which each node exports; it does nothing without `ray[default]`.

    `run` is the run's digest.
    """
    labels, always = ("run", *metric.labels), {"run": run[:RUN_CHARACTERS]}

    def shown(take: Callable[..., None]) -> Instrument:
        return lambda value, given=None: take(value, {**always, **(given or {})})

    if metric.kind == "counter":
        return shown(Counter(metric.name, metric.description, labels).inc)
    if metric.kind == "gauge":
        return shown(Gauge(metric.name, metric.description, labels).set)
    return shown(Histogram(metric.name, metric.description, list(metric.boundaries), labels).observe)


def not_loaded(reason: str) -> Exception:
    """Return the error for a worker whose process could not load `ShardWorker`; `reason` is Ray's text of it.

    What is missing or of another version is wrong use; memory or storage that failed is a lost worker.
    """
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*", reason, re.MULTILINE)
    last = raised[-1].strip() if raised else " ".join(reason.split()) or "no reason given"
    name = last.partition(":")[0].rpartition(".")[2]
    passing = "Cannot allocate memory" in reason or "failed to map segment" in reason
    if passing or name not in ("ImportError", "ModuleNotFoundError", "AttributeError", "SyntaxError"):
        return WorkerLost(f"it could not load maskmill: {last}")
    return UsageError(
        f"a worker cannot import maskmill: {last}: is maskmill missing on that node, or of another version?"
    )


class ShardWorker:
    """The actor: weights loaded once, then shard after shard."""

    def __init__(self, job: Job, gpus: float) -> None:
        if gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides GPUs only from actors that reserve some
        self._job = job
        self._generator: GeneratorQueue | None = None
        self._running: dict[int, Tally] = {}

    @ray.method(concurrency_group="ctl")
    def hello(self) -> WorkerPlace:
        """Tell where this worker was placed."""
        return self._place()

    def _place(self) -> WorkerPlace:
        gpus = [str(number) for number in ray.get_gpu_ids()]
        return this_place(str(ray.get_runtime_context().get_node_id()), gpus)

    @ray.method(concurrency_group="ctl")
    def load(self) -> None:
        """Load the weights: a call, not the constructor, so that an error keeps its type and traceback.

        Raises UsageError where this node has another maskmill, where it does not see the run's corpus, whose
        shards would stay here, where the process sees other GPUs than it was given, and where it can never
        have the memory it needs.
        """
        here = self._place()
        check_sees_its_gpus(here.host, here.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        check_same_version(self._job)
        check_sees_corpus(self._job)
        limit_threads(self._job.threads or 1)
        self._generator = GeneratorQueue(self._job, instrument(BUSY, self._job.run_digest))

    @ray.method(concurrency_group="ctl")
    def stats(self) -> dict[int, Tally]:
        """Tell what the shards in hand have done so far."""
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


class RayActors:
    """Workers as Ray actors: the `Actors` that `pipelines.workers.dispatcher` feeds.

    An actor is never restarted by Ray: calls to a restarting one bounce and strike innocent shards.
    """

    def __init__(self, job: Job, placement: Placement, worker: type[ShardWorker] = ShardWorker) -> None:
        self._job = job
        self._gpus = placement.gpus
        self._actor_class: Any = ray.remote(  # type: ignore[call-overload]
            num_cpus=placement.threads,
            num_gpus=placement.gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"ctl": 1, "shard": job.config.cluster.shards_in_flight},
        )(worker)

    def start(self) -> Any:
        """Ask for one more actor; the cluster places it where it fits."""
        return self._actor_class.remote(self._job, self._gpus)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call the actor; return the object ref of its answer."""
        group = "shard" if method == "run" else "ctl"
        return getattr(worker, method).options(concurrency_group=group).remote(*arguments)

    def answered(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Return all refs that are ready; where none is, wait for the first."""
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        if not done:
            done, _ = ray.wait(list(refs), num_returns=1, timeout=seconds)
        return list(done)

    def answer(self, ref: Any) -> Any:
        """Return the ref's value; see `Actors`. A worker without memory, and no shard in hand, is lost."""
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, GpuFailed):
                raise WorkerLost(str(error.cause), gpu_failed=True) from None
            if is_infrastructure(error.cause):  # a corpus that cannot be read now, too
                raise WorkerLost(str(error.cause)) from None
            if isinstance(error.cause, MaskmillError):
                raise error.cause from None
            raise
        except RayError as error:
            reason = without_escapes(str(error))
            if getattr(error, "actor_init_failed", False):  # the constructor does nothing that could fail
                raise not_loaded(reason) from None
            raise WorkerLost(reason, preempted=getattr(error, "preempted", False)) from None

    def end(self, workers: Sequence[Any], refs: Sequence[Any]) -> None:
        """Kill the actors; each call of a dead one is answered with its death."""
        for worker in workers:
            ray.kill(worker, no_restart=True)
        if refs:
            ray.wait(list(refs), num_returns=len(refs), timeout=END_SECONDS)

    def node_lives(self, node: str | None) -> bool:
        """Tell whether the cluster still counts the node among the living."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return any(entry["NodeID"] == node and entry["Alive"] for entry in nodes)


class RayCrew:
    """The `Crew` of a run with Ray: workers on the cluster at `address`, or on a Ray of the run's own.

    It tells the watcher of the workers; whoever takes the events tells it of the outcomes.
    """

    def __init__(
        self,
        job: Job,
        shards: Sequence[int],
        task_of: Callable[[int], ShardTask | ShardFailure],
        address: str | None,
        watcher: Watcher,
    ) -> None:
        self._job = job
        self._shards = shards
        self._task_of = task_of
        self._address = address
        self._watcher = watcher
        self._dispatcher: Dispatcher | None = None

    def run(self) -> Generator[Event, None, None]:
        """See `Crew`. Raises as `connect` and `Dispatcher.run` do."""
        with connect(self._job.config, self._address) as placement:
            job = replace(
                self._job,
                threads=placement.threads,
                neighbours=placement.neighbours,
                gpu_share=placement.gpus or 1.0,
            )
            metrics = Metrics(lambda metric: instrument(metric, job.run_digest))
            actors, told = RayActors(job, placement), Watchers(self._watcher, metrics)
            self._dispatcher = Dispatcher(job, self._shards, self._task_of, actors, placement.workers, told)
            with closing(self._dispatcher.run()) as events:
                for event in events:
                    if not isinstance(event, Progress):
                        metrics.ended(event)
                    yield event

    def stop(self) -> None:
        """See `Crew`."""
        if self._dispatcher is not None:
            self._dispatcher.stop()

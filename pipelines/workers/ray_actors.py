"""Workers on Ray: the cluster, the actors on it, and how they are called. The only module that imports Ray.

Ray Core actors, not Ray Data: what travels is a shard's description and its receipt, no pixels, and the file
a worker commits is the result, so that a lost worker costs at most the shards it held. Which worker gets what
is decided in `pipelines.workers.dispatcher`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import site
import socket
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.run import RunConfig
from ..errors import MaskmillError, UsageError
from ..format.records import ShardTask
from ..format.tally import Tally
from ..machine import usable_cpus
from ..text import without_escapes
from .crew import WorkerLost
from .dispatcher import Dispatcher
from .events import Watcher, Watchers
from .generator_queue import GeneratorQueue
from .loading import check_same_version, check_sees_corpus, limit_threads
from .metrics import BUSY, RUN_CHARACTERS, Instrument, Metric, Metrics
from .placement import Node, Placement, check_sees_its_gpus, how_many_fit, place
from .shard import is_infrastructure, run_shard
from .tasks import Job, OnProgress, ShardFailure, ShardReceipt, WorkerPlace, this_place

# Ray reads these at import. Nothing phones home; the empty CUDA_VISIBLE_DEVICES of a CPU actor stays; and
# workers have the priority of the command that started them (`nice maskmill …`), not Ray's 15 below it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.job_config import JobConfig
from ray.util.metrics import Counter, Gauge, Histogram

log = logging.getLogger(__name__)

END_SECONDS = 10.0  # for killed actors to be dead
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
    named = "--ray" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if address:
                join(address, named)
            else:
                _start(config)
        except SystemExit:  # what Ray makes of a SIGTERM while it starts
            raise KeyboardInterrupt from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
        yield _placement(config, grows=bool(address))
    finally:
        ray.shutdown()


def join(address: str, named: str = "--ray") -> None:
    """Join a running cluster: `host:port` or `auto`; `named` is where that was said.

    Ray's client, `ray://`, cannot carry the workers' calls. Raises UsageError for it, where no cluster
    answers, and where one turns this process away. The port is tried first, since Ray itself goes on trying
    for a minute or more, and says the same of a wrong token as of no cluster.
    """
    if "://" in address:
        raise UsageError(
            f"{named} {address}: expected auto or HOST:PORT of a cluster that this machine is in; from "
            "outside submit the command as a job (ray job submit)"
        )
    host, _, port = address.rpartition(":")
    hint = ""
    try:
        if host:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            hint = "; something answers there: are RAY_AUTH_MODE, the token and Ray's version the cluster's?"
        ray.init(address=address, job_config=_OwnPath(), log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        line = " ".join(str(error).split())
        raise UsageError(
            f"{named} {address}: expected a running Ray cluster's address: {line}{hint}"
        ) from None


def _start(config: RunConfig) -> None:
    """Start a Ray of our own, with the CPUs the workers ask for, whether or not the machine has as many."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token file appears in the home folder
    ray.init(
        address="local",
        num_cpus=max(usable_cpus(), (config.workers or 1) * (config.threads_per_worker or 1)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        job_config=_OwnPath(),
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


class _OwnPath(JobConfig):
    """Workers find maskmill where this process has it, and nothing in the folder it was started in.

    Ray puts that folder, and the script's, before all others on each worker's path: a `model.py`, `numpy.py`
    or `maskmill.py` of the user's would be imported in place of what is meant. A job with a working directory
    of its own is left without them, so every one is made to look like that here.
    """

    def __init__(self) -> None:
        home = str(Path(__file__).parents[3])
        installed = {*map(sysconfig.get_path, ("purelib", "platlib")), site.getusersitepackages()}
        super().__init__(_py_driver_sys_path=[] if home in installed else [home])

    def _runtime_env_has_working_dir(self) -> bool:
        return True


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


def instrument(metric: Metric, run: str) -> Instrument:
    """Ray's own of a metric, which each node exports; one that does nothing where `ray[default]` is missing.

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
    """The error for a worker whose process could not load `ShardWorker`, by Ray's text of what was raised.

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
        """Where this worker was placed."""
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


class RayCrew:
    """Workers as Ray actors: the `Crew` that `pipelines.workers.dispatcher` feeds.

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
        """Call the actor; the object ref of its answer."""
        group = "shard" if method == "run" else "ctl"
        return getattr(worker, method).options(concurrency_group=group).remote(*arguments)

    def answered(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """All refs that are ready, or the first to be so within the time."""
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        if not done:
            done, _ = ray.wait(list(refs), num_returns=1, timeout=seconds)
        return list(done)

    def answer(self, ref: Any) -> Any:
        """The ref's value; see `Crew`. What ran out of memory where no shard was in hand is a lost worker."""
        try:
            return ray.get(ref)
        except RayTaskError as error:
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
        """Whether the cluster still counts the node among the living."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return any(entry["NodeID"] == node and entry["Alive"] for entry in nodes)


def run_on_ray(
    job: Job,
    shards: Sequence[int],
    task_of: Callable[[int], ShardTask | ShardFailure],
    address: str | None,
    on_progress: OnProgress,
    watcher: Watcher,
) -> Iterator[ShardReceipt | ShardFailure]:
    """Run the shards on the cluster at `address`, or on a Ray of our own; yield each one's outcome as it
    ends. The watcher is told of the workers, of the outcomes by whoever takes them.
    """
    with connect(job.config, address) as placement:
        share = placement.gpus or 1.0
        job = replace(job, threads=placement.threads, neighbours=placement.neighbours, gpu_share=share)
        crew = RayCrew(job, placement)
        metrics = Metrics(lambda metric: instrument(metric, job.run_digest))
        told = Watchers(watcher, metrics)
        dispatcher = Dispatcher(job, shards, task_of, crew, placement.workers, told)
        with closing(dispatcher.run(on_progress)) as outcomes:
            for outcome in outcomes:
                metrics.ended(outcome)
                yield outcome

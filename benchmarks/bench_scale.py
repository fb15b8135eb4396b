"""What the driver costs as workers grow in number: shards handed out, answers taken in, deaths mended.

    python -m benchmarks.bench_scale                 # shards of 60 s and of 5 s; eighteen minutes

The driver is the real one (`maskmill.pipelines.workers.dispatcher`), with the progress that `maskmill
generate` shows; the workers are stand-ins: they sleep in place of the network, by turns for the two shards
that each holds, and commit real shards of empty rows. Some shards end their worker once, in the middle. Up to
what the machine holds the workers are Ray's actors, a process and a logical GPU each, or, with --processes,
several to a process, so that the driver has as many calls under way as with a process each. Beyond, they are
threads of this process, and what is measured is the driver without Ray.

`idle` is what scheduling costs: the share of the workers' time, from being ready on, that they held no
shard and were given one later. The driver's processor time is that of its process with Ray, and of its thread
with threads. Then the corpus is closed as `maskmill generate` does it. Prints a table for people and JSON on
the last line; --results writes the JSON to a folder too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import re
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least
from benchmarks.support.machine import forget_peak, peak_since, short_name
from maskmill.pipelines.config.run import RunConfig, digest, load_config
from maskmill.pipelines.format.layout import CORPUS
from maskmill.pipelines.format.records import ImageRow, PlannedImage, ShardTask
from maskmill.pipelines.format.rows import table_from_rows
from maskmill.pipelines.format.run_record import RunRecord
from maskmill.pipelines.format.shards import commit_table, committed_shards, shard_metadata
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.generation.circuit_breaker import too_many_rejected
from maskmill.pipelines.machine import hardware
from maskmill.pipelines.workers.cluster.connect import connect
from maskmill.pipelines.workers.cluster.own_ray import OBJECT_STORE_BYTES
from maskmill.pipelines.workers.crew import Actors, WorkerLost
from maskmill.pipelines.workers.dispatcher import Dispatcher
from maskmill.pipelines.workers.events import Progress
from maskmill.pipelines.workers.loading import check_sees_corpus
from maskmill.pipelines.workers.placement import Placement
from maskmill.pipelines.workers.ray_actors import RayActors, ShardWorker, ray
from maskmill.pipelines.workers.tasks import Job, ShardFailure, ShardReceipt, WorkerPlace, this_place
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import Run, open_run
from maskmill.pipelines.writing.progress import LiveLine

PACKAGES = ("maskmill", "ray", "numpy", "pyarrow")
STAGES = ("read", "decode", "resize", "encode", "prompt", "draw", "resample", "filter", "nms", "rle", "table")
"""Of a real shard's receipt, which the driver adds up."""

STEPS = 8  # in which a shard tells how far it is
PROCESS_BYTES = 150 << 20  # of a stand-in's process
PROCESSES_A_CPU = 32  # that can be started in some seconds each


@dataclass(frozen=True)
class StandInJob(Job):
    """What the stand-ins are told beside a job: how long a shard takes, and which end their worker once."""

    shard_seconds: float = 0.0
    deadly: frozenset[int] = frozenset()
    deaths: Path = Path()  # a file for each that has died

    @property
    def image_seconds(self) -> float:
        """That an image takes."""
        return self.shard_seconds / self.config.shard_size


class Seat:
    """One worker's place: its device, which serves one shard at a time, and when it had nothing in hand."""

    def __init__(self) -> None:
        self.device = threading.Lock()
        self._lock = threading.Lock()
        self._in_hand = 0
        self._since = time.monotonic()

    def begin(self) -> float:
        """A shard has come; the seconds that passed without one."""
        with self._lock:
            now = time.monotonic()
            idle = 0.0 if self._in_hand else now - self._since
            self._since = self._since if self._in_hand else now
            self._in_hand += 1
            return idle

    def finish(self) -> float:
        """A shard is done; the seconds with one in hand, since this was last told."""
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
        """Be ready, once the corpus is seen."""
        check_sees_corpus(self._job)
        self._seats[number] = Seat()

    def run(self, task: ShardTask, number: int = 0) -> ShardReceipt | ShardFailure:
        """Sleep as long as the shard's images take, and commit it."""
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


class Watched:
    """What is noted while the driver runs: progress, as `maskmill generate` has it, and who was ready."""

    def __init__(self, images: int, config: RunConfig) -> None:
        self.done = Tally()
        self.asked = time.monotonic()
        self.first_shard: float | None = None  # handed out, seconds after it was asked for
        self.all_ready: float | None = None
        self.ready_seconds = 0.0  # of all workers
        self._config = config
        self._line = LiveLine(images, Console(stderr=True))
        self._at = (self.asked, 0)

    def handing_out(self, task_of: Callable[[int], ShardTask]) -> Callable[[int], ShardTask]:
        """The same, with the first call noted."""

        def noted(shard: int) -> ShardTask:
            if self.first_shard is None:
                self.first_shard = time.monotonic() - self.asked
            return task_of(shard)

        return noted

    def show(self, progress: Progress) -> bool:
        """Add up and show what `maskmill generate` adds up and shows; whether to go on."""
        working = progress.workers
        self._line.show(progress.on_top_of(self.done), working)
        self.until_now(working)
        if self.all_ready is None and working == self._config.workers:
            self.all_ready = self._at[0] - self.asked
        return too_many_rejected(self.done, self._config.breaker) is None

    def until_now(self, working: int) -> None:
        """Count the seconds of the workers that were ready until now; `working` are from now on."""
        before, were_working = self._at
        self._at = time.monotonic(), working
        self.ready_seconds += were_working * (self._at[0] - before)


def main() -> None:
    given = arguments()
    runs = []
    for seconds in given.seconds:
        for workers in given.workers:
            with tempfile.TemporaryDirectory(prefix="maskmill-scale-", dir=given.folder) as folder:
                runs.append(measure(workers, seconds, given, Path(folder)))
    result = {
        "runs": runs,
        "config": {name: getattr(given, name) for name in ("rounds", "shard_size", "deaths", "crew")},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(torch.device("cpu")) | {"memory_bytes": memory_bytes("MemTotal")},
    }
    show(result)
    if given.results:
        given.results.mkdir(parents=True, exist_ok=True)
        kind = "scale" if given.crew == "auto" else f"scale-{given.crew}"
        name = f"{kind}-{short_name(result['hardware']['processor'])}.json"
        (given.results / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    """The command line; ends with 2 where it is wrong."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=at_least(1), nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=positive, nargs="+", default=[60.0, 5.0], help="that a shard takes")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="shards for each worker")
    parser.add_argument("--shard-size", type=at_least(1), default=64, help="images a shard")
    parser.add_argument("--deaths", type=share, default=0.01, help="share of shards that end their worker")
    parser.add_argument("--crew", choices=("auto", "ray", "threads"), default="auto")
    parser.add_argument("--processes", type=at_least(1), help="with Ray, that share the workers; one each")
    parser.add_argument("--folder", type=Path, help="where to put the corpora for the while")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="for the JSON, too")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.workers, given.seconds, given.rounds, given.shard_size, given.deaths = (
            [2, 64],
            [0.5],
            4,
            8,
            0.15,
        )
    return given


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


def measure(workers: int, seconds: float, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run, from nothing to a closed corpus; raises AssertionError where a shard is missing or twice."""
    config = load_config(
        None, [f"workers={workers}", f"shard_size={given.shard_size}", "threads_per_worker=1"]
    )
    run = plan(folder / "corpus", workers * given.rounds, config)
    job = job_of(run, config, seconds, given.deaths, folder / "deaths")
    kind, why = chosen_crew(given, workers)
    processes = min(given.processes or workers, workers) if kind == "ray" else 0
    clock = time.process_time if kind == "ray" else time.thread_time
    knows_peak = forget_peak()
    watched = Watched(len(run.plan), config)
    with crew_of(kind, job, workers, processes) as crew:
        started, cpu = time.monotonic(), clock()
        task_of = watched.handing_out(lambda shard: ShardTask(shard, tuple(run.plan.images(shard))))
        receipts = []
        dispatcher = Dispatcher(job, run.todo(), task_of, crew, workers)
        for event in dispatcher.run():
            if isinstance(event, Progress):
                if not watched.show(event):
                    dispatcher.stop()
                continue
            assert isinstance(event, ShardReceipt), event
            receipts.append(event)
            watched.done.add(event.tally)
        watched.until_now(0)
        wall, cpu = time.monotonic() - started, clock() - cpu
        peak = peak_since() if knows_peak else None
    check_once(run, receipts)
    closing = time.monotonic()
    finish_corpus(run.out, run.plan.shards)
    closing = time.monotonic() - closing
    shards, ideal = len(receipts), given.rounds * seconds
    idle, busy = (watched.done.seconds[name] for name in ("idle", "busy"))
    return {
        "workers": workers,
        "shard_seconds": seconds,
        "crew": kind,
        "why": why,
        "processes": processes,
        "shards": shards,
        "images": len(run.plan),
        "deaths": len(list(job.deaths.iterdir())),
        "committed": len(committed_shards(run.out)),
        "wall_seconds": wall,
        "ideal_seconds": ideal,
        "efficiency": ideal / wall,
        "efficiency_once_ready": ideal * workers / watched.ready_seconds,
        "idle_share": idle / (idle + busy),
        "driver_cpu_seconds": cpu,
        "driver_cpu_ms_a_shard": 1000 * cpu / shards,
        "driver_cpu_share": cpu / wall,
        "driver_peak_rss_bytes": peak,
        "first_shard_seconds": watched.first_shard,
        "all_ready_seconds": watched.all_ready,
        "closing_seconds": closing,
        "closing_ms_a_shard": 1000 * closing / shards,
        "corpus_json_bytes": (run.out / CORPUS).stat().st_size,
    }


def plan(out: Path, shards: int, config: RunConfig) -> Run:
    """A corpus of that many shards, to be filled."""
    names = [f"collection/photograph-{number:09d}.jpg" for number in range(shards * config.shard_size)]
    inputs = pa.table({"key": names, "uri": [f"/photographs/{name}" for name in names]})
    record = RunRecord(config.model_dump(mode="json"), digest(config), "nano", "0" * 64, {})
    return open_run(out, inputs, record, config.shard_size)


def job_of(run: Run, config: RunConfig, seconds: float, deaths: float, folder: Path) -> StandInJob:
    """Deadly are shards of the first half: a long run hardly pays for what a death at its end costs."""
    folder.mkdir()
    half = run.plan.shards[: -(-len(run.plan.shards) // 2)]
    count = min(len(half), round(deaths * len(run.plan.shards)))
    deadly = frozenset(random.Random(7).sample(half, count))
    said = {"shard_seconds": seconds, "deadly": deadly, "deaths": folder}
    return StandInJob(run.out, config, run.record.digest, threads=1, **said)


def chosen_crew(given: argparse.Namespace, workers: int) -> tuple[str, str]:
    """Ray or threads, and why."""
    if given.crew != "auto":
        return given.crew, "as asked for"
    processes = min(given.processes or workers, workers)
    cpus, free = os.cpu_count() or 1, memory_bytes("MemAvailable")
    most = 2 if given.quick else min(PROCESSES_A_CPU * cpus, free // 2 // PROCESS_BYTES)
    if processes <= most:
        return "ray", f"{processes} processes fit"
    return "threads", f"{processes} processes are more than the {most} that {cpus} CPUs and memory hold"


def memory_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found, "Linux counts it"
    return int(found[1]) * 1024


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


def check_once(run: Run, receipts: Sequence[ShardReceipt]) -> None:
    """Each shard has one receipt that committed it, and one file."""
    times = Counter(receipt.shard for receipt in receipts if receipt.committed)
    assert times == Counter(run.plan.shards), f"committed: {times}"
    assert len(receipts) == len(run.plan.shards)
    assert committed_shards(run.out) == set(run.plan.shards)


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['config']['rounds']} shards for each worker")
    columns = ("workers", "on", "s a shard", "shards", "deaths", "wall s", "ideal s", "efficiency", "idle")
    for heading in (*columns, "driver CPU ms a shard", "of a core", "MiB", "first shard s", "closing ms"):
        table.add_column(heading, justify="left" if heading == "on" else "right")
    for run in result["runs"]:
        peak = run["driver_peak_rss_bytes"]
        table.add_row(
            str(run["workers"]),
            f"Ray, {run['processes']}" if run["crew"] == "ray" else "threads",
            f"{run['shard_seconds']:g}",
            str(run["shards"]),
            str(run["deaths"]),
            f"{run['wall_seconds']:.1f}",
            f"{run['ideal_seconds']:.1f}",
            f"{run['efficiency']:.1%}",
            f"{run['idle_share']:.2%}",
            f"{run['driver_cpu_ms_a_shard']:.1f}",
            f"{run['driver_cpu_share']:.1%}",
            f"{peak / 2**20:.0f}" if peak else "",
            f"{run['first_shard_seconds']:.2f}",
            f"{run['closing_ms_a_shard']:.2f}",
        )
    console = Console(file=sys.stdout, width=150)
    console.print(table)
    for run in result["runs"]:
        console.print(f"{run['workers']} workers on {run['crew']}: {run['why']}")


if __name__ == "__main__":
    main()

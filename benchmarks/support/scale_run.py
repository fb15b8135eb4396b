"""One run of the driver over stand-ins, from a plan to a closed corpus, and what was measured of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from benchmarks.support.machine import forget_peak, peak_since
from benchmarks.support.stand_ins import StandInJob, crew_of
from maskmill.pipelines.config.run import RunConfig, digest, load_config
from maskmill.pipelines.format.layout import CORPUS
from maskmill.pipelines.format.records import ShardTask
from maskmill.pipelines.format.run_record import RunRecord
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.generation.circuit_breaker import too_many_rejected
from maskmill.pipelines.workers.crew import Actors
from maskmill.pipelines.workers.dispatcher import Dispatcher
from maskmill.pipelines.workers.events import Progress
from maskmill.pipelines.workers.tasks import ShardReceipt
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import Run, open_run
from maskmill.pipelines.writing.progress import LiveLine


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is made of: its workers, what they run on, and the shards that they get.

    Attributes:
        workers: the number of workers.
        shard_seconds: how long a shard takes.
        rounds: the number of shards for each worker.
        shard_size: the number of images in a shard.
        deaths: the share of shards that end their worker once.
        crew: what the workers run on, `ray` or `threads`.
        why: the reason for that crew, for people.
        processes: the number of Ray's processes, which share the workers; 0 with threads.

    """

    workers: int
    shard_seconds: float
    rounds: int
    shard_size: int
    deaths: float
    crew: str
    why: str
    processes: int


class Watched:
    """Notes taken while the driver runs: progress, as `maskmill generate` shows it, and who was ready."""

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


def measure(setup: Setup, folder: Path) -> dict[str, Any]:
    """Run it, from nothing to a closed corpus; AssertionError if a shard is missing or there twice."""
    workers = setup.workers
    config = load_config(
        None, [f"workers={workers}", f"shard_size={setup.shard_size}", "threads_per_worker=1"]
    )
    run = plan(folder / "corpus", workers * setup.rounds, config)
    job = job_of(run, config, setup, folder / "deaths")
    clock = time.process_time if setup.crew == "ray" else time.thread_time
    knows_peak = forget_peak()
    watched = Watched(len(run.plan), config)
    with crew_of(setup.crew, job, workers, setup.processes) as actors:
        started, cpu = time.monotonic(), clock()
        receipts = drive(run, job, actors, workers, watched)
        wall, cpu = time.monotonic() - started, clock() - cpu
        peak = peak_since() if knows_peak else None
    check_once(run, receipts)
    closing = time.monotonic()
    finish_corpus(run.out, run.plan.shards)
    closing = time.monotonic() - closing
    shards, ideal = len(receipts), setup.rounds * setup.shard_seconds
    idle, busy = (watched.done.seconds[name] for name in ("idle", "busy"))
    return {
        "workers": workers,
        "shard_seconds": setup.shard_seconds,
        "crew": setup.crew,
        "why": setup.why,
        "processes": setup.processes,
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


def drive(run: Run, job: StandInJob, actors: Actors, workers: int, watched: Watched) -> list[ShardReceipt]:
    """Have the driver hand out every shard; returns the receipts. Raises AssertionError if a shard fails."""
    task_of = watched.handing_out(lambda shard: ShardTask(shard, tuple(run.plan.images(shard))))
    receipts = []
    dispatcher = Dispatcher(job, run.todo(), task_of, actors, workers)
    for event in dispatcher.run():
        if isinstance(event, Progress):
            if not watched.show(event):
                dispatcher.stop()
            continue
        assert isinstance(event, ShardReceipt), event
        receipts.append(event)
        watched.done.add(event.tally)
    watched.until_now(0)
    return receipts


def plan(out: Path, shards: int, config: RunConfig) -> Run:
    """Begin a corpus of that many shards."""
    names = [f"collection/photograph-{number:09d}.jpg" for number in range(shards * config.shard_size)]
    inputs = pa.table({"key": names, "uri": [f"/photographs/{name}" for name in names]})
    record = RunRecord(config.model_dump(mode="json"), digest(config), "nano", "0" * 64, {})
    return open_run(out, inputs, record, config.shard_size)


def job_of(run: Run, config: RunConfig, setup: Setup, folder: Path) -> StandInJob:
    """The workers' job. Deadly shards are of the first half: a death at the end of so short a run would weigh
    more than it does in a long one.
    """
    folder.mkdir()
    half = run.plan.shards[: -(-len(run.plan.shards) // 2)]
    count = min(len(half), round(setup.deaths * len(run.plan.shards)))
    deadly = frozenset(random.Random(7).sample(half, count))
    return StandInJob(
        run.out,
        config,
        run.record.digest,
        threads=1,
        shard_seconds=setup.shard_seconds,
        deadly=deadly,
        deaths=folder,
    )


def check_once(run: Run, receipts: Sequence[ShardReceipt]) -> None:
    """Check that each shard has one receipt that committed it, and one file."""
    times = Counter(receipt.shard for receipt in receipts if receipt.committed)
    assert times == Counter(run.plan.shards), f"committed: {times}"
    assert len(receipts) == len(run.plan.shards)
    assert committed_shards(run.out) == set(run.plan.shards)

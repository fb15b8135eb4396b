"""The run: photographs in, a closed corpus out.

    list the inputs → open the run (plan, or find the plan) → the shards that are not there yet → workers
    → corpus.json → summary

The same command does whatever is left to do: all of it, the rest after a kill, or nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipelines import manifest, storage
from pipelines.config import RunConfig, digest
from pipelines.errors import IncompleteRun, UsageError
from pipelines.plan import Mode, Run, open_run
from pipelines.report import LiveLine, summary_table
from pipelines.sources import list_inputs
from pipelines.worker import (
    Job,
    OnProgress,
    ShardFailure,
    ShardReceipt,
    ShardTask,
    Tally,
    make_generator,
    run_shard,
    weights_sha256,
)


def generate(
    inputs: Sequence[str], out: Path, config: RunConfig, *, mode: Mode = "resume", ray: str | None = None
) -> Tally:
    """Make the corpus `out` of `inputs`, or what is missing of it; return what this call did.

    `ray` is a cluster's address; None starts a Ray for the run, and `workers: 0` does without. Raises
    UsageError and CorpusError before any work, IncompleteRun after all that could be done.
    """
    console = Console(soft_wrap=True, markup=False, highlight=False)
    out, config = out.absolute(), _with_absolute_checkpoint(config)
    items = list_inputs(inputs, config.input.extensions)
    record = _record(config)
    with storage.failing_as(UsageError, out):
        run = open_run(out, items, record, config.shard_size, mode)
        todo = run.todo()
    left = _images_in(run, todo)
    if len(todo) < len(run.plan.shards):
        there = len(run.plan.shards) - len(todo)
        console.print(
            f"{out}: {there} of {len(run.plan.shards)} shards are there ({len(run.plan) - left} images)"
        )
    if not todo:
        if not (out / manifest.CORPUS).exists():
            _finish(run)
        console.print(f"{out}: complete, nothing to do")
        return Tally()
    started = time.monotonic()
    done, failures = _work(run, todo, left, config, ray)
    totals = None if failures else _finish(run)["totals"]
    console.print(summary_table(done, time.monotonic() - started, totals))
    if failures:
        raise IncompleteRun(
            f"{len(failures)} of {len(todo)} shards are left undone, run the same command again to go on; "
            f"shard {failures[0].shard}: {failures[0].reason}"
        )
    return done


def _work(
    run: Run, todo: Sequence[int], images: int, config: RunConfig, ray: str | None
) -> tuple[Tally, list[ShardFailure]]:
    """Run the shards, showing progress; what was done, and what failed."""
    job = Job(run.out, config, run.record.digest, config.threads_per_worker, run.record.weights_sha256)
    done = Tally()
    failures: list[ShardFailure] = []

    def show(in_hand: Sequence[Tally], workers: int) -> None:
        now = Tally()
        for tally in (done, *in_hand):
            now.add(tally)
        line.show(now, workers)

    def task_of(shard: int) -> ShardTask:
        return ShardTask(shard, tuple(run.plan.images(shard)))

    with LiveLine(images) as line:
        for outcome in _outcomes(job, todo, task_of, ray, show):
            if isinstance(outcome, ShardReceipt):
                done.add(outcome.tally)
            else:
                failures.append(outcome)
    return done, failures


def _outcomes(
    job: Job, todo: Sequence[int], task_of: Callable[[int], ShardTask], ray: str | None, show: OnProgress
) -> Iterator[ShardReceipt | ShardFailure]:
    if job.config.workers == 0:
        generator = make_generator(job)
        for shard in todo:
            yield run_shard(task_of(shard), generator, job, lambda tally: show([tally], 1))
        return
    from pipelines.cluster import run_on_ray  # only now: a run without Ray never loads it

    yield from run_on_ray(job, todo, task_of, ray, show)


def _finish(run: Run) -> dict[str, Any]:
    with storage.failing_as(IncompleteRun, run.out):
        return manifest.finish_corpus(run.out, run.plan.shards)


def _images_in(run: Run, shards: Sequence[int]) -> int:
    return int(np.isin(run.plan.table["shard"].to_numpy(), shards).sum())


def _with_absolute_checkpoint(config: RunConfig) -> RunConfig:
    """The configuration for workers that were started in other folders than this process."""
    if config.model.checkpoint is None:
        return config
    path = str(Path(config.model.checkpoint).expanduser().absolute())
    model = config.model.model_copy(update={"checkpoint": path})
    return config.model_copy(update={"model": model})


def _record(config: RunConfig) -> manifest.RunRecord:
    """What decides the rows of this run; CheckpointError where there are no such weights."""
    return manifest.RunRecord(
        config=config.model_dump(mode="json"),
        config_digest=digest(config),
        model_name=config.model.name,
        weights_sha256=weights_sha256(config.model),
        software=manifest.software_versions(),
    )

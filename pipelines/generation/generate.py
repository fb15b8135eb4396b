"""The run: photographs in, a closed corpus out.

    list the inputs → take the lease → open the run (plan, or find the plan) → the shards that are not there
    yet → workers → corpus.json → summary

The same command does whatever is left to do: all of it, the rest after a kill, or nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ...engine.config import GeneratorConfig
from ..config.run import RunConfig, digest
from ..errors import BreakerTripped, IncompleteRun
from ..format import run_record
from ..format.layout import PLAN, SHARDS
from ..format.tally import Tally
from ..inputs.listing import list_inputs
from ..storage import atomic
from ..storage.lease import Lease, held
from ..storage.retries import opening, retrying
from ..workers.events import Watcher
from ..workers.loading import make_generator, weights_sha256, with_thresholds
from ..workers.shard import run_shard
from ..workers.tasks import Job, OnProgress, ShardFailure, ShardReceipt, this_place
from ..writing import close
from ..writing.open import Mode, Run, open_run, refuse_foreign
from ..writing.progress import LiveLine, summary_table
from .circuit_breaker import check_unwritten, too_many_refused
from .event_log import EventLog
from .work import Work, work_of


def generate(
    inputs: Sequence[str],
    out: Path,
    config: RunConfig,
    *,
    mode: Mode = "resume",
    ray: str | None = None,
    retry: Collection[str] = (),
    cleared: Callable[[], None] = lambda: None,
    events: EventLog | None = None,
) -> Tally:
    """Make the corpus `out` of `inputs`, or what is missing of it; return what this call did.

    `ray` is a cluster's address; None starts a Ray for the run, and `workers: 0` does without. `retry` names
    the classes of refused images that are to be run again. `cleared` is called as `open_run` says. `events`
    is told of all that happens. Raises UsageError and CorpusError before any work; IncompleteRun at once
    where another run is at it, or the storage of a corpus that is there keeps failing, when what is in hand
    is finished where the breaker trips, else after all that could be done.
    """
    events = events or EventLog()
    console = Console(stderr=events.is_standard_output, soft_wrap=True, markup=False, highlight=False)
    with events.of_a_run():
        out, config = out.absolute(), with_thresholds(_with_absolute_checkpoint(config))
        listed = list_inputs(inputs, config.input.extensions, config.input.image_column, console.print)
        record = _record(config)
        events.identify(record.digest)
        is_there = opening(lambda: refuse_foreign(out), out, is_there=True)  # or that cannot be told
        with held(out, console.print, is_there=is_there) as lease, _swept(out, lease):
            open_it = partial(open_run, out, listed, record, config.shard_size, mode, cleared)
            run = opening(open_it, out, is_there=is_there)
            del listed, open_it  # the run reads its plan from the disk
            work = opening(lambda: work_of(run, retry, console), out, is_there=True)
            events.started(inputs, **work.facts())
            if not work.shards:
                if not work.is_closed:
                    _finish(run)
                console.print(f"{out}: complete, nothing to do")
                return Tally()
            return _do(work, config, ray, lease, console, events)


def _do(
    work: Work, config: RunConfig, ray: str | None, lease: Lease, console: Console, events: EventLog
) -> Tally:
    started = time.monotonic()
    done, failures = _run_shards(work, config, ray, lease, events)
    lease.check()
    totals = None if failures else _finish(work.run)["totals"]
    console.print(summary_table(done, time.monotonic() - started, totals))
    if advice := _advice(done, config.generator):
        console.print(advice)
    if failures:
        raise IncompleteRun(
            f"{len(failures)} of {len(work.shards)} shards are left undone, run it again to go on; "
            f"shard {failures[0].shard}: {failures[0].reason}"
        )
    return done


def _advice(done: Tally, generator: GeneratorConfig) -> str | None:
    """What to say of a run in which over half of the images have no mask."""
    used = done.images - done.statuses["rejected"]
    if 2 * done.statuses["empty"] <= used:
        return None
    return (
        f"{done.statuses['empty']} of {used} images are empty: they have no mask with a predicted IoU above "
        f"{generator.pred_iou_thresh} and a stability score of at least {generator.stability_score_thresh}; "
        "try lower thresholds (--set generator.pred_iou_thresh=N, --set generator.stability_score_thresh=N) "
        "or another model"
    )


def _run_shards(
    work: Work, config: RunConfig, ray: str | None, lease: Lease, events: EventLog
) -> tuple[Tally, list[ShardFailure]]:
    """Run the shards, showing progress; what was done, and what failed."""
    record = work.run.record
    job = Job(
        work.run.out,
        config,
        record.digest,
        threads=config.threads_per_worker,
        weights_sha256=record.weights_sha256,
    )
    done = Tally()
    failures: list[ShardFailure] = []
    in_a_row: list[ShardFailure] = []
    at_work, committed = 1, 0
    stopped: BreakerTripped | None = None

    def show(in_hand: Sequence[Tally], workers: int) -> bool:
        nonlocal at_work, stopped
        at_work = workers
        now = Tally()
        for tally in (done, *in_hand):
            now.add(tally)
        line.show(now, workers)
        lease.check()
        stopped = stopped or too_many_refused(done, config.breaker)
        return stopped is None

    with LiveLine(work.images) as line, closing(_outcomes(job, work, ray, show, events)) as outcomes:
        for outcome in outcomes:
            events.ended(outcome)
            if isinstance(outcome, ShardReceipt):
                done.add(outcome.tally)
                committed += 1
                in_a_row.clear()
            else:
                failures.append(outcome)
                in_a_row.append(outcome)
                check_unwritten(in_a_row, at_work, config.breaker)
    if stopped and committed + len(failures) < len(work.shards):
        raise stopped
    return done, failures


def _outcomes(
    job: Job, work: Work, ray: str | None, show: OnProgress, watcher: Watcher
) -> Generator[ShardReceipt | ShardFailure, None, None]:
    if job.config.workers == 0:
        try:
            generator = make_generator(job)
        except MemoryError as error:
            raise IncompleteRun(f"no shard was begun: {error}") from None
        watcher.worker_ready(this_place())

        def note(tally: Tally) -> None:
            show([tally], 1)

        for shard in work.shards:
            task = work.task(shard)
            if isinstance(task, ShardFailure):
                yield task
                continue
            yield run_shard(task, generator, job, note)
            if not show([], 1):
                return
        return
    from ..workers.ray_actors import run_on_ray  # only now: a run without Ray never loads it

    yield from run_on_ray(job, work.shards, work.task, ray, show, watcher)


@contextmanager
def _swept(out: Path, lease: Lease) -> Iterator[None]:
    """Leave no temporary file behind, however the block ends: an ended worker may have been at one."""
    try:
        yield
    finally:
        with suppress(OSError):  # what cannot be removed now, the next run removes
            # Once the lease is lost, they may be the other run's.
            for folder in () if lease.is_lost else (out, out / PLAN, out / SHARDS):
                atomic.sweep(folder)


def _finish(run: Run) -> dict[str, Any]:
    with atomic.failing_as(IncompleteRun, run.out):
        return retrying(lambda: close.finish_corpus(run.out, run.plan.shards))


def _with_absolute_checkpoint(config: RunConfig) -> RunConfig:
    """The configuration for workers that were started in other folders than this process."""
    if config.model.checkpoint is None:
        return config
    path = str(Path(config.model.checkpoint).expanduser().absolute())
    model = config.model.model_copy(update={"checkpoint": path})
    return config.model_copy(update={"model": model})


def _record(config: RunConfig) -> run_record.RunRecord:
    """What decides the rows of this run; CheckpointError where there are no such weights."""
    return run_record.RunRecord(
        config=config.model_dump(mode="json"),
        config_digest=digest(config),
        model_name=config.model.name,
        weights_sha256=weights_sha256(config.model),
        software=run_record.software_versions(),
    )

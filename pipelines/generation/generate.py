"""The run: images in, a closed corpus out.

    generate: list the inputs → take the lease → open the run (plan, or find the plan) ┐
    resume:   take the lease → open the run that `run.json` and the plan describe      ┴→ the shards that are
    not there yet → a crew, whose events `_run_shards` acts on → corpus.json → summary

`writing.session` holds the corpus meanwhile.

The same command does whatever is left to do: all of it, the rest after a kill, or nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from ...engine.config import GeneratorConfig
from ..config.run import AUTO, RunConfig, digest
from ..errors import BreakerTripped, CorpusError, IncompleteRun, UsageError
from ..format import run_record
from ..format.layout import CORPUS, RUN
from ..format.tally import Tally
from ..inputs.listing import list_inputs
from ..inputs.moved import Moved
from ..text import counted, redacted, visible
from ..workers.crew import Crew
from ..workers.events import Progress
from ..workers.loading import resolve_device, weights_sha256, with_thresholds
from ..workers.local_crew import LocalCrew
from ..workers.placement import fitting_shard_size, this_machine
from ..workers.tasks import Job, ShardFailure, ShardReceipt
from ..writing import close
from ..writing.go_on import GoOn
from ..writing.open import Mode, Run, open_planned, open_run
from ..writing.progress import Display, named, next_commands, print_summary
from ..writing.session import Session
from .circuit_breaker import check_unwritten, too_many_rejected
from .event_log import EventLog
from .recorded import recorded_config
from .status import recorded_counts
from .work import Work, work_of


@dataclass(frozen=True)
class Call:
    """What a run is told beside its configuration.

    Attributes:
        ray: a cluster's address; None starts a Ray for the run, and `workers: 0` does without.
        retry: classes of rejected images that are to be run again.
        go_on: told what there is by now, for the last line of a run that is interrupted.
        events: told of all that happens.
        display: how much people are shown.

    """

    ray: str | None = None
    retry: Collection[str] = ()
    go_on: GoOn = field(default_factory=GoOn)
    events: EventLog = field(default_factory=EventLog)
    display: Display = field(default_factory=Display)

    @cached_property
    def console(self) -> Console:
        """The console for what people read."""
        return self.display.console(stderr=self.events.is_standard_output)

    def warn(self, line: str) -> None:
        """Print a line that even a quiet run shows."""
        (Display().console(stderr=True) if self.display.quiet else self.console).print(line)


def generate(
    inputs: Sequence[str], out: Path, config: RunConfig, call: Call | None = None, *, mode: Mode = "resume"
) -> Tally:
    """Make the corpus `out` of `inputs`, or what is missing of it; return what this call did.

    Raises UsageError and CorpusError before any work; IncompleteRun at once where another run is at it, or
    the storage of a corpus that is there keeps failing, when what is in hand is finished where the breaker
    trips, else after all that could be done; NothingUsable where all is done and every image is rejected.
    """
    call = call or Call()
    with call.events.of_a_run(), Session(out, call.go_on, call.warn) as session:
        session.look()
        if config.model.device == "cuda" and not _joins(config, call):
            resolve_device("cuda")  # before a corpus is begun that this machine cannot go on with
        config = with_thresholds(_with_absolute_checkpoint(config))
        run = _planned(session, inputs, config, mode, call)
        for old, new in run.moved.pairs:
            line = visible(redacted(f"planned at {old or '/'}, read at {new or '/'} now"))
            call.console.print(f"{named(session.out)}: {line}")
        return _do_what_is_left(session, run, inputs, config, call)


def resume(
    out: Path,
    changes: Sequence[str] = (),
    call: Call | None = None,
    *,
    moved: Mapping[str, str] | None = None,
) -> Tally:
    """Make what is missing of the corpus `out`, as its `run.json` and its plan say; no input is listed.

    `changes` (`key=value`) are values that decide no row; `moved` says where inputs lie that were moved since
    they were planned. Returns and raises as `generate` does.
    """
    call = call or Call()
    with call.events.of_a_run(), Session(out, call.go_on, call.warn) as session:
        out = session.out
        if not session.read((out / RUN).is_file):
            raise CorpusError(f"{out}: not a corpus: it has no {RUN}; maskmill generate makes one")
        run = session.open(partial(open_planned, out, Moved.of(moved or {})))
        config = _with_absolute_checkpoint(recorded_config(run, changes))
        if call.ray is not None and config.workers == 0:
            raise UsageError(f"{out}: it was begun without Ray; give --workers N with --ray")
        return _do_what_is_left(session, run, (), config, call)


def _planned(session: Session, inputs: Sequence[str], config: RunConfig, mode: Mode, call: Call) -> Run:
    """List the inputs and open their run. Their table is not kept: the run reads its plan from the disk."""
    listed = list_inputs(inputs, config.input.extensions, config.input.image_column, call.console.print)
    weights = weights_sha256(config.model)
    return session.open(partial(_open, session.out, listed, config, weights, mode, call))


def _open(out: Path, listed: pa.Table, config: RunConfig, weights: str, mode: Mode, call: Call) -> Run:
    """Plan these inputs, or find that they are planned; choose the shard size where it was left open."""
    size = config.shard_size
    if size == AUTO and mode != "overwrite" and (out / RUN).is_file():
        size = run_record.read_run(out).config.get("shard_size", AUTO)
    if size == AUTO:
        nodes = None if _joins(config, call) else [this_machine(config)]
        size = fitting_shard_size(config, listed.num_rows, nodes)
    config = config.model_copy(update={"shard_size": size})
    record = run_record.RunRecord(
        config=config.model_dump(mode="json"),
        config_digest=digest(config),
        model_name=config.model.name,
        weights_sha256=weights,
        software=run_record.software_versions(),
    )
    return open_run(out, listed, record, size, mode, call.go_on.without_overwrite)


def _joins(config: RunConfig, call: Call) -> bool:
    """Tell whether the work is done on a running cluster, not on this machine alone."""
    return config.workers != 0 and bool(call.ray or os.environ.get("RAY_ADDRESS"))


def _do_what_is_left(
    session: Session, run: Run, inputs: Sequence[str], config: RunConfig, call: Call
) -> Tally:
    call.events.identify(run.record.digest)
    call.go_on.planned(run.record.changes(config.model_dump(mode="json")), run.moved.pairs)
    todo = session.left(run)
    work = session.read(partial(work_of, run, todo, call.retry, call.console))
    call.events.started(inputs, **work.facts())
    if work.shards:
        return _do(session, work, config, call)
    if work.is_closed:
        call.console.print(f"{named(run.out)}: complete, nothing to do")
    else:
        session.finish(run)
        call.console.print(next_commands(run.out))
    statuses, _ = session.read(partial(recorded_counts, run.out / CORPUS))
    close.check_usable(run.out, statuses)
    return Tally()


def _do(session: Session, work: Work, config: RunConfig, call: Call) -> Tally:
    started, out = time.monotonic(), work.run.out
    done, failures = _run_shards(session, work, config, call)
    session.check()
    corpus = None if failures else session.finish(work.run)
    seconds = time.monotonic() - started
    print_summary(call.console, out, done, seconds, corpus, verbose=call.display.verbose)
    if advice := _advice(done, config.generator):
        call.warn(advice)
    if failures:
        raise IncompleteRun(
            f"{len(failures)} of {counted(len(work.shards), 'shard')} left undone; run the same command "
            f"again to resume; shard {failures[0].shard}: {failures[0].reason}"
        )
    if corpus is not None:
        close.check_usable(out, corpus.statuses)
        call.console.print(next_commands(out))
    return done


def _advice(done: Tally, generator: GeneratorConfig) -> str | None:
    """Return what to say of a run in which over half of the images have no mask."""
    used = done.images - done.statuses["rejected"]
    if 2 * done.statuses["empty"] <= used:
        return None
    return (
        f"{done.statuses['empty']} of {counted(used, 'image')} without a mask: in these none has a predicted "
        f"IoU above {generator.pred_iou_thresh} and a stability score of at least "
        f"{generator.stability_score_thresh}; "
        "try lower thresholds (--pred-iou-thresh, --stability-score-thresh) or another --model"
    )


def _run_shards(
    session: Session, work: Work, config: RunConfig, call: Call
) -> tuple[Tally, list[ShardFailure]]:
    """Have a crew make the shards and act on its events; return what was done, and the failures.

    Raises BreakerTripped where the run gets nowhere, when what was in hand has ended and shards are left;
    IncompleteRun at once where another run has taken the corpus over.
    """
    crew, workers = _crew(work, config, call), 1
    done, committed = Tally(), 0
    failures: list[ShardFailure] = []
    in_a_row: list[ShardFailure] = []
    tripped: BreakerTripped | None = None
    with call.display.live_line(work.images) as line, closing(crew.run()) as events:
        for event in events:
            if isinstance(event, Progress):
                workers, now = event.workers, event.on_top_of(done)
                line.show(now, workers)
                session.progressed(now.images - done.images)
                tripped = tripped or too_many_rejected(done, config.breaker)
                if tripped:
                    crew.stop()
                continue
            call.events.ended(event)
            if isinstance(event, ShardReceipt):
                session.committed()
                done.add(event.tally)
                committed += 1
                in_a_row.clear()
            else:
                failures.append(event)
                in_a_row.append(event)
                check_unwritten(in_a_row, workers, config.breaker)
    if tripped and committed + len(failures) < len(work.shards):
        raise tripped
    return done, failures


def _crew(work: Work, config: RunConfig, call: Call) -> Crew:
    """Choose who makes the shards: this process, or workers on Ray."""
    record = work.run.record
    job = Job(
        work.run.out,
        config,
        record.digest,
        threads=config.threads_per_worker,
        weights_sha256=record.weights_sha256,
        moved=work.run.moved,
    )
    if config.workers == 0:
        return LocalCrew(job, work.shards, work.task, call.events)
    from ..workers.ray_actors import RayCrew  # only now: a run without Ray never loads it

    return RayCrew(job, work.shards, work.task, call.ray, call.events)


def _with_absolute_checkpoint(config: RunConfig) -> RunConfig:
    """Make the checkpoint's path absolute, for workers that were started in other folders."""
    if config.model.checkpoint is None:
        return config
    path = os.path.abspath(os.path.expanduser(config.model.checkpoint))  # noqa: PTH100, PTH111  (or pathlib raises)
    model = config.model.model_copy(update={"checkpoint": path})
    return config.model_copy(update={"model": model})

"""A run's events for whoever collects logs: one line of JSON each, on standard output or behind a file's end.

Each line stands alone: when, how bad, what, of which run, by which attempt at it. The run is its digest, as
`run.json` and each shard's footer have it, so that a line and a file find each other; the attempt is drawn
anew each time that the command is started. Lines are flushed one by one, a process that is killed leaves the
ones before. What a line quotes has no credentials in it and nothing that breaks a line (`docs/observing.md`).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO

from ..errors import BreakerTripped, IncompleteRun, MaskmillError, NothingUsable, UsageError
from ..format.schema import STATUSES
from ..storage.paths import place, scheme_of
from ..text import one_line, redacted, visible
from ..workers.events import Loss, Watcher
from ..workers.tasks import ShardFailure, ShardReceipt, WorkerPlace

log = logging.getLogger(__name__)

INPUTS_TOLD = 20  # a shell makes thousands of one pattern
STANDARD_OUTPUT = "-"


class EventLog(Watcher):
    """Writes what it is told to `file`, or, without one, nowhere."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._run: str | None = None
        self._attempt = uuid.uuid4().hex[:12]
        self._began = time.monotonic()
        self._counts = Counter[str]()

    @property
    def is_standard_output(self) -> bool:
        """Whether standard output is for its lines, and what people read must go elsewhere."""
        return self._file is not None and self._file is sys.stdout

    @contextmanager
    def of_a_run(self) -> Iterator[None]:
        """Take the warnings of the block's modules in, too; tell at its end how it ended."""
        with _warnings_to(self) if self._file else nullcontext():
            try:
                yield
            except KeyboardInterrupt:
                self._tell("interrupted", "warning")
                self._finish("interrupted", "warning")
                raise
            except BaseException as error:
                if isinstance(error, BreakerTripped):
                    self._tell("breaker_tripped", "error", reason=str(error))
                self._finish(_outcome_of(error), "error", one_line(error))
                raise
            self._finish("complete", "info")

    def identify(self, run: str) -> None:
        """From here on it is known which run this is: its digest."""
        self._run = run

    def started(self, inputs: Sequence[str], **facts: Any) -> None:
        """All is known that there is to do; `inputs` as they were typed."""
        told = {"inputs": list(inputs[:INPUTS_TOLD]), "inputs_given": len(inputs)}
        self._tell("run_started", "info", **told, **facts)

    def worker_ready(self, worker: WorkerPlace) -> None:
        """See `Watcher`."""
        self._tell("worker_ready", "info", **_placed(worker), gpus=list(worker.gpus))

    def worker_lost(self, loss: Loss) -> None:
        """See `Watcher`."""
        self._counts["workers_lost"] += 1
        phase = "starting" if loss.starting else "working"
        told = {"phase": phase, "shards": list(loss.shards), "reason": " ".join(loss.reason.split())}
        self._tell("worker_lost", "warning", **_placed(loss.worker), **told)

    def ended(self, outcome: ShardReceipt | ShardFailure) -> None:
        """See `Watcher`."""
        whose = {"shard": outcome.shard, "worker": outcome.worker or None}
        retries = outcome.retries if isinstance(outcome, ShardFailure) else outcome.tally.retries
        if retries.total():
            told = {"read": retries["read"], "write": retries["write"]}
            self._tell("storage_retried", "warning", **whose, **told)
        if isinstance(outcome, ShardFailure):
            self._counts["shards_failed"] += 1
            self._tell("shard_failed", "error", **whose, reason=outcome.reason)
            return
        tally = outcome.tally
        counts = {"images": tally.images, **{status: tally.statuses[status] for status in STATUSES}}
        counts["masks"] = tally.masks
        self._counts.update(counts, shards_committed=1)
        seconds = {"seconds": outcome.seconds, "commit_seconds": tally.seconds["write"]}
        self._tell(
            "shard_committed", "info", **whose, already_there=not outcome.committed, **counts, **seconds
        )

    def warned(self, level: str, message: str) -> None:
        """A module has something to say that a person reads on standard error."""
        self._tell("warning", level, message=message)

    def _finish(self, outcome: str, level: str, reason: str | None = None) -> None:
        names = ("shards_committed", "shards_failed", "workers_lost", "images", *STATUSES, "masks")
        counts = {name: self._counts[name] for name in names}
        seconds = time.monotonic() - self._began
        self._tell("finished", level, outcome=outcome, **counts, seconds=seconds, reason=reason)

    def _tell(self, event: str, level: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"time": now, "level": level, "event": event, "run": self._run, "attempt": self._attempt}
        line = json.dumps(_clean({**head, **fields}))
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(f"{line}\n")
                self._file.flush()
                return
            except OSError as error:
                self._file, failure = None, error
        log.warning("the log of events cannot be written and ends here: %s", failure)


@contextmanager
def opened(target: str | None) -> Iterator[EventLog]:
    """The log that `--log-json` names: a file, whose end it is written behind, or `-`; None is none.

    Raises UsageError where the file cannot be opened.
    """
    if target is None:
        yield EventLog()
    elif target == STANDARD_OUTPUT:
        yield EventLog(sys.stdout)
    else:
        with _opened(target) as file:
            yield EventLog(file)


def _opened(target: str) -> TextIO:
    expected = "expected a local file in a folder that is there, or - for standard output"
    if scheme_of(target):
        raise UsageError(
            f"--log-json {redacted(target)}: {expected}; a store's objects cannot be appended to"
        )
    try:
        return place(target).open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--log-json {target}: {expected}: {error.strerror}") from None


class _Forward(logging.Handler):
    """Hands warnings to a log of events."""

    def __init__(self, events: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._events.warned(level, record.getMessage())


@contextmanager
def _warnings_to(events: EventLog) -> Iterator[None]:
    """Hand the block's warnings to the log; whoever else got them gets them still."""
    root = logging.getLogger()
    ours: list[logging.Handler] = [_Forward(events)]
    if (
        not root.handlers and logging.lastResort
    ):  # which writes them to standard error as long as none is there
        ours.append(logging.lastResort)
    for handler in ours:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in ours:
            root.removeHandler(handler)


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, BreakerTripped):
        return "stopped"
    if isinstance(error, IncompleteRun):
        return "incomplete"
    if isinstance(error, NothingUsable):
        return "complete"
    return "refused" if isinstance(error, MaskmillError) else "failed"


def _placed(worker: WorkerPlace | None) -> dict[str, str | None]:
    if worker is None:
        return dict.fromkeys(("worker", "host", "node"))
    return {"worker": worker.name, "host": worker.host, "node": worker.node or None}


def _clean(value: Any) -> Any:
    """The value with every text in it printable and without credentials, and seconds to the millisecond."""
    if isinstance(value, str):
        return visible(redacted(value))
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _clean(part) for name, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value

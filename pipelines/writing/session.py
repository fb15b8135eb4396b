"""The life of a corpus while one process makes it: looked at, leased, opened, worked on, finished, swept.

    with Session(out, go_on, say) as session:
        session.look()                   whether a corpus is there; a folder of something else is left alone
        run = session.open(begin)        the lease, then the plan: made, or found
        for shard in session.left(run):  commit it, after `session.check()`; then `session.committed()`
        session.finish(run)              `corpus.json`

However the block ends, no temporary file is left and the lease is released. `generate`, `resume` and `import`
share this; they differ in how they plan, and in who makes the shards. Storage that fails in any of these
steps is tried again, and leaves the run incomplete where it keeps failing (`storage.retries.opening`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ..errors import IncompleteRun
from ..format.tally import Tally
from ..storage.atomic import failing_as
from ..storage.lease import Lease, held
from ..storage.retries import opening, retrying
from . import close
from .go_on import GoOn
from .open import Run, refuse_foreign, sweep_corpus

T = TypeVar("T")


class Session:
    """A context manager around all the work on one corpus. `go_on` is told how far it is; `say` is told of
    another run's lease that has to be waited for.

    Attributes:
        out: the corpus's folder, absolute.

    """

    def __init__(self, out: Path, go_on: GoOn, say: Callable[[str], None]) -> None:
        self.out = out.absolute()
        self._go_on = go_on
        self._say = say
        self._is_there = True  # until `look` knows better
        self._lease: Lease | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:  # the lease is released last
            # Once the lease is lost, temporary files may be the other run's.
            if self._lease is not None and not self._lease.is_lost:
                with suppress(OSError):  # what cannot be removed now, the next run removes
                    sweep_corpus(self.out)

    def look(self) -> None:
        """See whether a corpus is there. Raises CorpusError where the folder holds something else."""
        self._is_there = self.read(partial(refuse_foreign, self.out))
        self._go_on.has_shards = None if self._is_there else False

    def open(self, begin: Callable[[], Run]) -> Run:
        """Take the lease, then call `begin`, which plans the corpus or finds its plan.

        Raises IncompleteRun where another run holds the lease; UsageError where no corpus was there and the
        folder cannot be written.
        """
        self._lease = self._held.enter_context(held(self.out, self._say, is_there=self._is_there))
        return opening(begin, self.out, is_there=self._is_there)

    def read(self, call: Callable[[], T]) -> T:
        """Return the answer of a call that reads the corpus."""
        return opening(call, self.out, is_there=True)

    def left(self, run: Run) -> list[int]:
        """List the shards that are not committed yet, in order."""
        todo = self.read(run.todo)
        self._go_on.has_shards = len(todo) < len(run.plan.shards)
        return todo

    def check(self) -> None:
        """Raise IncompleteRun where another run has taken the lease, and with it the corpus."""
        self._lease_held.check()

    def progressed(self, images_in_hand: int) -> None:
        """Have the lease say, when it is renewed, how many images are done of shards that are not committed.
        Raises as `check` does.
        """
        self._lease_held.images_in_hand = images_in_hand
        self.check()

    def committed(self) -> None:
        """Note that a shard was committed."""
        self._go_on.has_shards = True

    def finish(self, run: Run) -> Tally:
        """Write `corpus.json`, once every shard is committed; return what the corpus holds."""
        self.check()
        with failing_as(IncompleteRun, self.out):
            return retrying(partial(close.finish_corpus, self.out, run.plan.shards))

    @property
    def _lease_held(self) -> Lease:
        assert self._lease is not None, "open() takes the lease"
        return self._lease

"""Storage that fails, tried again: how often, with which pauses, and what is not waited for.

A disk, a network or a store that fails says nothing about what was asked of it, and mostly gives it a moment
later. What keeps failing leaves something undone: a shard, or the whole run, which the same command goes on
with. What no waiting mends, a place that nobody may write to, is wrong use.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import IncompleteRun, UsageError
from .atomic import failing_as
from .store_errors import as_os_errors

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 4
COMMIT_ATTEMPTS = 6  # a quarter of a minute of pauses: by then the shard has cost its work
FIRST_PAUSE_SECONDS = 0.5  # doubled after each attempt


def retrying(
    call: Callable[[], T], attempts: int = ATTEMPTS, on_retry: Callable[[], None] = lambda: None
) -> T:
    """The call's answer; where storage fails, again after a pause that doubles, so many times in all.

    `on_retry` is called, in this thread, each time that it will be tried again. Each pause is drawn from half
    of it to half as much again: a hundred workers that a storage turned away at once do not come back at
    once. Raises OSError, whatever kind a store's library has of it.
    """
    for attempt in range(attempts - 1):
        try:
            with as_os_errors():
                return call()
        except OSError as error:
            pause = FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
            log.info("trying again in %.1f s: %s", pause, error)
            on_retry()
            time.sleep(pause)
    with as_os_errors():
        return call()


def opening(call: Callable[[], T], out: Path, *, is_there: bool) -> T:
    """The answer of a step in which the corpus `out` is opened.

    Where a corpus is there, storage that fails is tried again, and ends the run as incomplete. Where none is,
    nothing has been begun that could be gone on with: a place that fails then is the wrong one, as is one
    that may not be written. Raises IncompleteRun, UsageError, and what else the call raises.
    """
    if not is_there:
        with failing_as(UsageError, out):
            return call()
    with failing_as(IncompleteRun, out, refused=UsageError):
        return retrying(call)

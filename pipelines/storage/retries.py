"""How storage that fails is tried again: how often, after which pauses, and when not.

A disk, a network or a store that fails says nothing about the file, and mostly works a moment later. If it
keeps failing, a shard or the whole run is left undone, and the same command goes on with it. A place that
nobody may write to is wrong use: no waiting mends that.
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
    """Call until storage does not fail, at most so many times, with pauses that double; returns the answer.

    `on_retry` is called, in this thread, before each new try. Each pause is drawn at random, from half its
    length to half as much again, so that a hundred workers that failed together do not come back together.
    Raises OSError, whatever error the store's library raised.
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
    """Call a step in which the corpus `out` is opened, and return its answer.

    If a corpus is there, storage that fails is tried again, and in the end makes the run incomplete. If none
    is, there is nothing to go on with: a place that fails then is the wrong one, and so is one that may not
    be written to. Raises IncompleteRun, UsageError, and whatever else the call raises.
    """
    if not is_there:
        with failing_as(UsageError, out):
            return call()
    with failing_as(IncompleteRun, out, refused=UsageError):
        return retrying(call)

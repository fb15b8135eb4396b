"""Batches that shrink when memory runs out, and lanes in which a CPU works on several of them at once.

Splitting every operation between the cores leaves them idle in the small ones and makes them wait for each
other after each; so on a CPU the cores are given batches of their own. torch keeps a number of cores for each
thread: a lane that asks for one core leaves its caller's number alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from ...model.failures import is_out_of_memory

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

MOST_LANES = 64
"""Each lane needs a batch's memory, some tens of megabytes."""


def in_batches(total: int, batch: int, work: Callable[[slice], Result], lanes: int = 1) -> Iterator[Result]:
    """Yield work(slice) for consecutive slices of 0…total, in order; `lanes` of them are worked on at once.

    Where memory does not suffice, slices are tried one at a time, then in halves, and later ones stay that
    small. `work` must leave nothing behind when it raises. Raises the out-of-memory error of a slice of one.
    """
    lanes = max(1, min(lanes, -(-total // batch)))
    ahead = 1 if lanes == 1 else 2 * lanes  # so that no lane waits for whoever takes the results
    waiting: deque[tuple[slice, Callable[[], Result]]] = deque()
    start = 0
    with _lanes(lanes, work) as submit:
        while start < total or waiting:
            while start < total and len(waiting) < ahead:
                part = slice(start, min(start + batch, total))
                waiting.append((part, submit(part)))
                start = part.stop
            part, result = waiting.popleft()
            try:
                value = result()
            except (RuntimeError, MemoryError) as error:
                size = part.stop - part.start
                if not is_out_of_memory(error) or (size == 1 and lanes == 1):
                    raise
                if lanes == 1:
                    batch = min(batch, size // 2)
                logger.warning("out of memory; going on with batches of %d, one at a time", batch)
            else:
                yield value
                continue
            # After the handler, when the traceback no longer holds the tensors.
            del result
            waiting.clear()
            start = part.start
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if lanes > 1:
                break
    if start < total:
        yield from in_batches(
            total - start, batch, lambda part: work(slice(start + part.start, start + part.stop))
        )


@contextmanager
def _lanes(lanes: int, work: Callable[[slice], Result]) -> Iterator[Callable[[slice], Callable[[], Result]]]:
    """A function that hands a slice to a lane and returns the means to wait for its result."""
    if lanes == 1:
        yield lambda part: partial(work, part)
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(
        lanes, "lane", initializer=torch.set_num_threads, initargs=(max(1, threads // lanes),)
    ) as pool:
        try:
            yield lambda part: pool.submit(work, part).result
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the default of threads yet to come


def lanes_here() -> int:
    """How many batches to work on at once on a CPU: as many as this thread may use cores."""
    return min(torch.get_num_threads(), MOST_LANES)

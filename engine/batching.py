"""Batches that shrink when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

CPU_MESSAGES = ("not enough memory", "can't allocate memory")
"""What torch's CPU allocator says, as a plain RuntimeError."""


def in_batches(total: int, batch: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """Yield work(slice) for consecutive slices of 0…total.

    A slice for which memory does not suffice is tried again in halves, and later slices stay that small.
    `work` must leave nothing behind when it raises. Raises the out-of-memory error of a slice of one.
    """
    start = 0
    while start < total:
        try:
            result = work(slice(start, min(start + batch, total)))
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
            batch = min(batch, total - start) // 2 or 1
            logger.warning("out of memory; going on with batches of %d", batch)
        else:
            start += batch
            yield result
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # after the handler, when the traceback no longer holds the tensors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or the CPU, in torch or in Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)

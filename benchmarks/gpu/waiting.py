"""What a GPU's host does: operations launched, waits, time under the interpreter lock, stages one by one."""

from __future__ import annotations

import functools
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from maskmill.engine.runtime.accounting import Ledger

CALLS = re.compile(r"cu(da)?[A-Z]")
"""How CUDA's own functions are called; kernels have other names."""
KINDS = {
    "launches": re.compile(r"LaunchKernel|GraphLaunch"),
    "copies": re.compile(r"Memcpy|Memset"),
    "waits": re.compile(r"Synchronize|^cudaMemcpy$"),
}
TICK_SECONDS = 1e-3
SLACK = 3.0
"""A tick is late where it comes this many times later than a late one (the 95th percentile) at rest."""


def launches_and_waits(work: Callable[[], object]) -> dict[str, Any]:
    """Calls of CUDA's by kind during the work: launches, copies and waits, and those of each name."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    calls = Counter({event.key: event.count for event in profile.key_averages()})
    return by_kind(calls)


def by_kind(calls: Mapping[str, int]) -> dict[str, Any]:
    """Sums by kind of the names that a profile has; the profile's own last wait is taken off."""
    names = {name: number for name, number in sorted(calls.items()) if CALLS.match(name)}
    sums = {
        kind: sum(number for name, number in names.items() if pattern.search(name))
        for kind, pattern in KINDS.items()
    }
    return sums | {"waits": max(0, sums["waits"] - 1), "calls": names}


@contextmanager
def waiting_at_stages(device: torch.device) -> Iterator[None]:
    """Within the block each stage of the engine's account waits for the device before and after it.

    So its seconds are those of its own work, where otherwise they show where the host waited. Slower as a
    whole, and for one thread.
    """
    stage = Ledger.stage

    @contextmanager
    @functools.wraps(stage)
    def waited(self: Ledger, name: str) -> Iterator[None]:
        torch.cuda.synchronize(device)
        with stage(self, name):
            yield
            torch.cuda.synchronize(device)

    if device.type != "cuda":
        yield
        return
    Ledger.stage = waited  # type: ignore[method-assign]
    try:
        yield
    finally:
        Ledger.stage = stage  # type: ignore[method-assign]


def kept_waiting(work: Callable[[], object], seconds_at_rest: float = 0.5) -> dict[str, float]:
    """How often another thread of this process could not go on, while the work ran in this one.

    A thread wants to wake every millisecond and notes how late it was. Its share of late ticks is, on a
    machine with a core to spare, the share of time in which the interpreter lock was held.
    """
    at_rest, _ = _lateness(lambda: time.sleep(seconds_at_rest))
    limit = SLACK * max(statistics.quantiles(at_rest, n=20)[-1], 1e-4)
    late, seconds = _lateness(work)
    return {
        "share_late": sum(one > limit for one in late) / len(late),
        "limit_seconds": limit,
        "longest_seconds": max(late),
        "seconds": seconds,
    }


def _lateness(work: Callable[[], object]) -> tuple[list[float], float]:
    """By how much each tick came late during the work, and how long that took."""
    late: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS
            time.sleep(TICK_SECONDS)
            late.append(time.perf_counter() - due)
            if done.is_set() and len(late) > 1:
                return

    ticker = threading.Thread(target=tick, name="ticker")
    ticker.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        ticker.join()
    return late, seconds

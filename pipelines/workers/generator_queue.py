"""Shares a worker's generator among the shards that it has in hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from ...engine.prepared import PreparedImage
from ...engine.records import GeneratedMasks
from .loading import batches_at_once, make_generator
from .metrics import Instrument
from .tasks import Job


class _Busy:
    """Counts how long any batch was at work; batches side by side count once."""

    def __init__(self, tell: Instrument) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._at_work = 0
        self._told = 0.0  # until when

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the block's time, when it ends."""
        with self._lock:
            if not self._at_work:
                self._told = time.perf_counter()
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                now = time.perf_counter()
                self._at_work -= 1
                passed, self._told = now - self._told, now
            if passed > 0:
                self._tell(passed)


class GeneratorQueue:
    """A generator behind a queue: shards overlap in decoding and committing, and the network serves one batch
    at a time, on a GPU two.

    It has threads of its own rather than a lock. They serve who comes first, and on a CPU all of torch's work
    is in one thread, the loading of the weights too: each thread that calls torch gets a team of CPU threads,
    and with more threads than CPUs the teams sleep between steps where they would spin, which takes nearly
    twice the time for an image.

    `tell_busy` is called with the seconds that the network was at work, whenever it stops.
    """

    def __init__(self, job: Job, tell_busy: Instrument) -> None:
        self._threads = ThreadPoolExecutor(batches_at_once(job.config.model), thread_name_prefix="generate")
        self._generator = self._threads.submit(make_generator, job).result()
        self._busy = _Busy(tell_busy)

    def prepare(self, image_HW3: np.ndarray) -> PreparedImage:
        """Do as `MaskGenerator.prepare`, in the thread that calls: it does not need torch."""
        return self._generator.prepare(image_HW3)

    def generate_batch(self, images: Sequence[PreparedImage]) -> list[GeneratedMasks]:
        """Do as `MaskGenerator.generate_batch`, when it is these images' turn."""
        return self._threads.submit(self._generate, images).result()

    def _generate(self, images: Sequence[PreparedImage]) -> list[GeneratedMasks]:
        with self._busy.counted():
            return self._generator.generate_batch(images)

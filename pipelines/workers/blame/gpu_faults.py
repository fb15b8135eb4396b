"""Which GPUs are left out of a run, since work keeps failing on them.

After an error of CUDA that is not about memory (an uncorrectable bit, an illegal access, a GPU that fell off
the bus) a process cannot use its GPU any more: it is lost like one that crashed, and its shards are suspects
(`pipelines.workers.blame.quarantine`). But the GPU may be to blame and not the images. So it counts what
(`pipelines.workers.blame.quarantine`). But the GPU may be to blame and not the images. So failures on a GPU
are counted until an image succeeds on it, once for all the workers that shared it at that moment:
- the first failure accuses what was in hand, as every death does;
- after the second the GPU is in doubt: it proves nothing against an image any more, and its next worker is
  given an image that came through before. That clears the GPU, or is the third failure, and it is left out.
- Where nothing has come through yet there is no such image; then the fourth failure leaves the GPU out, or
  the second of a worker that was only loading its weights.

A GPU is known by its node and its number there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ...errors import GpuFailed
from ..tasks import WorkerPlace, this_place

DOUBTED_AFTER = 2  # failures on a GPU in a row
LEFT_OUT_AFTER = 4  # where no image has come through that could be tried on it
STARTS = 2  # failed while loading, which is nobody's fault but the GPU's

Gpu = tuple[str, tuple[str, ...]]


@dataclass(slots=True)
class _Record:
    failures: int = 0  # in a row
    starting: int = 0  # of them, before there was any work
    last: float = 0.0
    left_out: bool = False


class GpuFaults:
    """What failed on each GPU since something came through on it."""

    def __init__(self) -> None:
        self._records: dict[Gpu, _Record] = {}

    def failed(self, place: WorkerPlace, placed: float, *, starting: bool, can_be_tried: bool) -> bool:
        """Count a failure of a worker that was placed at that moment; whether its GPU is left out by it.

        `can_be_tried`: there is an image that is known to come through.
        """
        record = self._records.setdefault(_gpu(place), _Record())
        if record.left_out or placed < record.last:  # its neighbour's failure was counted already
            return False
        record.failures += 1
        record.starting += starting
        record.last = time.monotonic()
        limit = DOUBTED_AFTER + 1 if can_be_tried else LEFT_OUT_AFTER
        record.left_out = record.failures >= limit or record.starting >= STARTS
        return record.left_out

    def came_through(self, place: WorkerPlace | None) -> None:
        """Clear the worker's GPU."""
        if place is not None and not self.is_left_out(place):
            self._records.pop(_gpu(place), None)

    def in_doubt(self, place: WorkerPlace | None) -> bool:
        """Whether the worker's GPU has to show that it works before it may accuse an image."""
        if place is None or self.is_left_out(place):
            return False
        return self._record(place).failures >= DOUBTED_AFTER

    def is_left_out(self, place: WorkerPlace) -> bool:
        """Whether no new worker is given work on the GPU; a neighbour that still works there goes on."""
        return self._record(place).left_out

    def _record(self, place: WorkerPlace) -> _Record:
        return self._records.get(_gpu(place)) or _Record()


def gpu_failed(error: BaseException) -> GpuFailed | None:
    """What to raise where a GPU failed, for another reason than memory; None for any other error."""
    from ....model.failures import is_device_failure  # loads torch

    if not is_device_failure(error):
        return None
    place = this_place()
    told = str(error).strip().partition("\n")[0]  # torch goes on with advice for debugging
    return GpuFailed(f"{place.host}: its GPU failed, process {place.pid} cannot use it any more: {told}")


def _gpu(place: WorkerPlace) -> Gpu:
    return place.node, place.gpus

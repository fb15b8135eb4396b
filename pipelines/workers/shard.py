"""Makes one shard, from its list of images to its committed file, in ordinary Python: the same under Ray and
without it.

    planned images → read → decode → prepare → generate → rows → one table → commit

Reading, decoding and resizing to the model's input run a few images ahead in threads (all let go of the
interpreter lock), so that the network never waits for a disk, and memory holds a few images, not a shard of
them. What becomes of an image there is one of three outcomes: `Decoded`, `Rejected` or `StorageFailed`.

Each planned image becomes exactly one row. What goes wrong is sorted here, once: an image that cannot be used
is a `rejected` row; storage that fails is tried again with growing pauses, memory that runs out once, and
what still fails is a `ShardFailure`; anything else is a bug and travels up with its traceback.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ...engine.prepared import PreparedImage
from ...engine.records import GeneratedMasks
from ..config.run import RunConfig
from ..decoding.image import DecodedImage, decode_image
from ..errors import InputRejected
from ..format.records import ImageRow, PlannedImage, ShardTask
from ..format.rows import rejected_row, row_from_result, table_from_rows
from ..format.shards import commit_table, shard_metadata
from ..format.tally import Tally
from ..inputs.reader import read_input
from ..prefetch import in_order
from ..storage import retries
from ..storage.retries import COMMIT_ATTEMPTS, retrying
from ..text import one_line
from ..writing.rejects import replace_rows
from .blame.gpu_faults import gpu_failed
from .loading import batches_at_once
from .tasks import Job, ShardFailure, ShardReceipt, this_place

log = logging.getLogger(__name__)


class Generates(Protocol):
    """What a shard needs of `engine.MaskGenerator`."""

    def prepare(self, image_HW3: np.ndarray) -> PreparedImage:
        """Make an RGB uint8 image ready for `generate_batch`, in the calling thread."""

    def generate_batch(self, images: Sequence[PreparedImage]) -> list[GeneratedMasks]:
        """Return the masks of each image, in order."""


def run_shard(
    task: ShardTask, generator: Generates, job: Job, on_progress: Callable[[Tally], None] = lambda _: None
) -> ShardReceipt | ShardFailure:
    """Take all of `shard_steps`; `on_progress` is told what it yields. Returns and raises as it does."""
    steps = shard_steps(task, generator, job)
    while True:
        try:
            tally = next(steps)
        except StopIteration as end:
            outcome: ShardReceipt | ShardFailure = end.value
            return outcome
        on_progress(tally)


def shard_steps(
    task: ShardTask, generator: Generates, job: Job
) -> Generator[Tally, None, ShardReceipt | ShardFailure]:
    """Make every row of the shard and commit them as one file.

    Yields a copy of the counts after each batch of images. Returns a ShardFailure where storage or memory
    kept failing. Raises GpuFailed; whatever else is raised is a bug.
    """
    began, me, retried = time.perf_counter(), this_place().name, Counter[str]()
    for pause in (retries.FIRST_PAUSE_SECONDS, 0):
        try:
            outcome = yield from _attempt(task, generator, job, retried)
            if isinstance(outcome, ShardFailure):
                return replace(outcome, worker=me, retries=retried)
            return replace(outcome, worker=me, seconds=time.perf_counter() - began)
        except (OSError, MemoryError, RuntimeError) as error:
            if fault := gpu_failed(error):
                raise fault from error
            if not is_infrastructure(error):
                raise
            failure = ShardFailure(task.shard, one_line(error), worker=me, retries=retried)
            if isinstance(error, OSError):  # tried again already, where it happened
                return failure
        log.info("shard %d: memory ran out: %s", task.shard, failure.reason)
        time.sleep(pause)  # after the handler, when the traceback no longer holds the images
    return failure


def is_infrastructure(error: BaseException) -> bool:
    """Say whether storage failed or memory ran out, in Python or in torch: no bug, and no image's fault."""
    from ...model.failures import is_out_of_memory  # loads torch

    return isinstance(error, OSError) or is_out_of_memory(error)


def _attempt(
    task: ShardTask,
    generator: Generates,
    job: Job,
    retried: Counter[str],
) -> Generator[Tally, None, ShardReceipt | ShardFailure]:
    rows: list[ImageRow] = []
    tally = Tally(retries=retried)  # what was retried outlives an attempt that fails
    images = _decoded_ahead(task, job, generator, tally)
    batches = _batched(images, job.config.generator.encode_batch)
    for batch, results in _generated(batches, generator, batches_at_once(job.config.model)):
        for row in _rows_of(batch, results, job.config, tally):
            rows.append(row)
            tally.add_row(row)
        yield copy.deepcopy(tally)
    try:
        committed = task.probe or _commit(task, rows, job, tally)
    except OSError as error:
        return ShardFailure(task.shard, one_line(error), output=True)
    return ShardReceipt(task.shard, committed, tally)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as it was read, and ready for the generator."""

    planned: PlannedImage
    image: DecodedImage
    ready: PreparedImage


@dataclass(frozen=True, slots=True)
class Rejected:
    """An image that cannot be used, as the row that says why."""

    row: ImageRow


@dataclass(frozen=True, slots=True)
class StorageFailed:
    """The storage failed to give an image, however often it was asked."""

    error: OSError


Outcome = Decoded | Rejected | StorageFailed
"""What becomes of a planned image before its turn in the network."""


def _decoded_ahead(
    task: ShardTask, job: Job, generator: Generates, tally: Tally
) -> Iterator[Decoded | Rejected]:
    """Yield the shard's images in plan order, decoded by threads, no more than `images_ahead` beyond the one
    in use. Raises OSError where the storage fails.
    """
    ahead = job.config.cluster.images_ahead
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="decode")
    try:
        load = functools.partial(_load, deadly=task.deadly, job=job, generator=generator)
        for future in in_order(pool, load, task.images, ahead):
            match _waited(future, tally):
                case StorageFailed(error):
                    raise error
                case image:
                    yield image
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _waited(future: Future[tuple[Outcome, Tally]], tally: Tally) -> Outcome:
    """Return the outcome, once it is there; what it took and the wait are added to the shard's tally."""
    started = time.perf_counter()
    outcome, spent = future.result()
    tally.add_seconds({"wait": time.perf_counter() - started})
    tally.add(spent)
    return outcome


def _load(
    planned: PlannedImage, deadly: Collection[int], job: Job, generator: Generates
) -> tuple[Outcome, Tally]:
    """Read, decode and prepare one image; returns the outcome, and the seconds and retries that it took."""
    spent = Tally()
    began = decoding = time.perf_counter()
    uri = job.moved.apply(planned.uri)
    data: bytes | None = None
    try:
        if planned.image_id in deadly:
            raise InputRejected("generate", "WorkerDied", "each worker that was given this image alone died")
        data = retrying(lambda: read_input(uri), on_retry=lambda: spent.retries.update(["read"]))
        decoding = time.perf_counter()
        decoded = decode_image(data, job.config.input.max_pixels)
    except InputRejected as error:
        return Rejected(rejected_row(planned, error, data)), spent
    except OSError as error:
        return StorageFailed(error), spent
    finally:
        spent.add_seconds({"read": decoding - began, "decode": time.perf_counter() - decoding})
    return Decoded(planned, decoded, generator.prepare(decoded.pixels_HW3)), spent


def _batched(images: Iterator[Decoded | Rejected], size: int) -> Iterator[list[Decoded | Rejected]]:
    while batch := list(itertools.islice(images, size)):
        yield batch


def _generated(
    batches: Iterator[list[Decoded | Rejected]], generator: Generates, at_once: int
) -> Iterator[tuple[list[Decoded | Rejected], list[GeneratedMasks]]]:
    """Yield batches in order with what was found in them; a batch goes through the network together."""

    def generate(batch: list[Decoded | Rejected]) -> tuple[list[Decoded | Rejected], list[GeneratedMasks]]:
        ready = [image.ready for image in batch if isinstance(image, Decoded)]
        return batch, generator.generate_batch(ready) if ready else []

    if at_once == 1:  # in this thread: `generator_queue.GeneratorQueue` says why
        yield from map(generate, batches)
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="generate") as pool:
        for future in in_order(pool, generate, batches, at_once - 1):
            yield future.result()


def _rows_of(
    batch: list[Decoded | Rejected], results: list[GeneratedMasks], config: RunConfig, tally: Tally
) -> Iterator[ImageRow]:
    """Yield the rows of a batch, in order."""
    found = iter(results)
    for image in batch:
        match image:
            case Rejected(row):
                yield row
            case Decoded(planned, decoded):
                generated = next(found)
                tally.add_seconds(generated.seconds)
                yield row_from_result(planned, decoded, generated, embed=config.embed_images)


def _commit(task: ShardTask, rows: list[ImageRow], job: Job, tally: Tally) -> bool:
    started = time.perf_counter()
    table = table_from_rows(rows)
    built = time.perf_counter()
    tally.add_seconds({"table": built - started})

    def write() -> bool:
        if task.replaces:
            return replace_rows(job.out, task, table, job.run_digest, tally.seconds)
        metadata = shard_metadata(job.run_digest, task.shard, tally.seconds)
        return commit_table(job.out, task.shard, table, metadata)

    committed = retrying(write, COMMIT_ATTEMPTS, lambda: tally.retries.update(["write"]))
    tally.add_seconds({"write": time.perf_counter() - built})
    return committed

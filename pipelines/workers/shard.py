"""One shard, from its list of images to its committed file: ordinary Python, the same under Ray and without
it.

    planned images → read → decode → prepare → generate → rows → one table → commit

Reading, decoding and resizing to the model's input run a few images ahead in threads (all let go of the
interpreter lock), so that the network never waits for a disk, and memory holds a few photographs, not a shard
of them. Each planned image
becomes exactly one row. What goes wrong is sorted here, once: an image that cannot be used is a `rejected`
row; storage that fails is tried again with growing pauses, memory that runs out once, and what still fails is
a `ShardFailure`; anything else is a bug and travels up with its traceback.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
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
    """What `engine.MaskGenerator` offers a shard."""

    def prepare(self, image_HW3: np.ndarray) -> PreparedImage:
        """An RGB uint8 image as `generate_batch` takes it, made ready in the calling thread."""

    def generate_batch(self, images: Sequence[PreparedImage]) -> list[GeneratedMasks]:
        """Results for images, in order."""


def run_shard(
    task: ShardTask, generator: Generates, job: Job, on_progress: Callable[[Tally], None] = lambda _: None
) -> ShardReceipt | ShardFailure:
    """Make every row of the shard and commit them as one file.

    `on_progress` gets a copy of the counts after each batch of images. Returns a ShardFailure where storage
    or memory kept failing. Raises GpuFailed; whatever else is raised is a bug.
    """
    began, me, again = time.perf_counter(), this_place().name, Counter[str]()
    for pause in (retries.FIRST_PAUSE_SECONDS, 0):
        try:
            outcome = _attempt(task, generator, job, on_progress, again)
            if isinstance(outcome, ShardFailure):
                return replace(outcome, worker=me, retries=again)
            return replace(outcome, worker=me, seconds=time.perf_counter() - began)
        except (OSError, MemoryError, RuntimeError) as error:
            if fault := gpu_failed(error):
                raise fault from error
            if not is_infrastructure(error):
                raise
            failure = ShardFailure(task.shard, one_line(error), worker=me, retries=again)
            if isinstance(error, OSError):  # tried again already, where it happened
                return failure
        log.info("shard %d: memory ran out: %s", task.shard, failure.reason)
        time.sleep(pause)  # after the handler, when the traceback no longer holds the images
    return failure


def is_infrastructure(error: BaseException) -> bool:
    """Whether storage failed or memory ran out, in Python or in torch: no bug, and no image's fault."""
    from ...model.failures import is_out_of_memory  # loads torch

    return isinstance(error, OSError) or is_out_of_memory(error)


def _attempt(
    task: ShardTask,
    generator: Generates,
    job: Job,
    on_progress: Callable[[Tally], None],
    retries: Counter[str],
) -> ShardReceipt | ShardFailure:
    rows: list[ImageRow] = []
    tally = Tally(retries=retries)  # which outlive an attempt that fails
    decoded = _decoded_ahead(task, job, generator, tally)
    batches = _batched(decoded, job.config.generator.encode_batch)
    for batch, results in _generated(batches, generator, batches_at_once(job.config.model)):
        for row in _rows_of(batch, results, job.config, tally):
            rows.append(row)
            tally.add_row(row)
        on_progress(copy.deepcopy(tally))
    try:
        committed = task.probe or _commit(task, rows, job, tally)
    except OSError as error:
        return ShardFailure(task.shard, one_line(error), output=True)
    return ShardReceipt(task.shard, committed, tally)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A planned image, read, decoded and ready for the generator, or refused; or storage failed."""

    planned: PlannedImage
    decoded: DecodedImage | None = None
    ready: PreparedImage | None = None
    refused: ImageRow | None = None
    failed: OSError | None = None
    retries: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


def _decoded_ahead(task: ShardTask, job: Job, generator: Generates, tally: Tally) -> Iterator[_Prepared]:
    """The shard's images in plan order, decoded by threads, no more than `images_ahead` beyond the one in
    use.
    """
    ahead = job.config.cluster.images_ahead
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="decode")
    try:
        prepare = functools.partial(_prepare, deadly=task.deadly, job=job, generator=generator)
        for future in in_order(pool, prepare, task.images, ahead):
            yield _waited(future, tally)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _waited(future: Future[_Prepared], tally: Tally) -> _Prepared:
    started = time.perf_counter()
    prepared = future.result()
    waited = time.perf_counter() - started
    tally.add_seconds({"read": prepared.read_seconds, "decode": prepared.decode_seconds, "wait": waited})
    tally.retries["read"] += prepared.retries
    if prepared.failed is not None:
        raise prepared.failed
    return prepared


def _prepare(planned: PlannedImage, deadly: Collection[int], job: Job, generator: Generates) -> _Prepared:
    """Read, decode and prepare one image; what cannot be used becomes its rejected row."""
    began = decoding = time.perf_counter()
    uri = job.moved.apply(planned.uri)
    data: bytes | None = None
    decoded: DecodedImage | None = None
    refused: ImageRow | None = None
    failed: OSError | None = None
    retries: list[None] = []
    try:
        if planned.image_id in deadly:
            raise InputRejected("generate", "WorkerDied", "each worker that was given this image alone died")
        data = retrying(lambda: read_input(uri), on_retry=lambda: retries.append(None))
        decoding = time.perf_counter()
        decoded = decode_image(data, job.config.input.max_pixels)
    except InputRejected as error:
        refused = rejected_row(planned, error, data)
    except OSError as error:
        failed = error
    took = decoding - began, time.perf_counter() - decoding
    ready = None if decoded is None else generator.prepare(decoded.pixels_HW3)
    return _Prepared(planned, decoded, ready, refused, failed, len(retries), *took)


def _batched(images: Iterator[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    while batch := list(itertools.islice(images, size)):
        yield batch


def _generated(
    batches: Iterator[list[_Prepared]], generator: Generates, at_once: int
) -> Iterator[tuple[list[_Prepared], list[GeneratedMasks]]]:
    """Batches in order with what was found in them; those that decoded go through the network together."""

    def generate(batch: list[_Prepared]) -> tuple[list[_Prepared], list[GeneratedMasks]]:
        usable = [prepared.ready for prepared in batch if prepared.ready is not None]
        return batch, generator.generate_batch(usable) if usable else []

    if at_once == 1:  # in this thread: `generator_queue.GeneratorQueue` says why
        yield from map(generate, batches)
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="generate") as pool:
        for future in in_order(pool, generate, batches, at_once - 1):
            yield future.result()


def _rows_of(
    batch: list[_Prepared], results: list[GeneratedMasks], config: RunConfig, tally: Tally
) -> Iterator[ImageRow]:
    """The rows of a batch, in order."""
    found = iter(results)
    for prepared in batch:
        if prepared.decoded is None:
            assert prepared.refused is not None, "an image is decoded or refused"
            yield prepared.refused
            continue
        generated = next(found)
        tally.add_seconds(generated.seconds)
        yield row_from_result(prepared.planned, prepared.decoded, generated, embed=config.embed_images)


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

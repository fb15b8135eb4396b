"""Sets a worker up before its first shard: the corpus in sight, threads, memory, weights."""

from __future__ import annotations

import functools
import socket
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__
from ...engine.runtime.budget import BATCHES_AT_ONCE
from ...model.checkpoints.errors import CheckpointError
from ...model.checkpoints.finding import checkpoint_sha256, find_checkpoint, recommended_thresholds
from ..config.run import ModelConfig, RunConfig
from ..errors import ConfigError, CorpusError, CorpusUnavailable, UsageError
from ..format.run_record import read_run
from ..storage.retries import retrying
from ..text import one_line
from .blame.gpu_faults import gpu_failed
from .memory import check_memory, keep_to_share, with_budget_of_share
from .tasks import Job

if TYPE_CHECKING:
    from ...engine import MaskGenerator


def make_generator(job: Job) -> MaskGenerator:
    """Load the network and set the thread count of this process.

    Raises UsageError where there are no such weights here, or other ones than the run's, where the machine is
    too small for them, and where torch is built for other GPUs; MemoryError where too much of the machine is
    taken; GpuFailed.
    """
    from ...model.failures import NO_CODE  # loads torch

    try:
        return _load(job)
    except RuntimeError as error:
        if NO_CODE in str(error):
            raise UsageError(
                f"{socket.gethostname()}: expected a build of torch with code for the GPU there, got torch "
                f"{version('torch')}: {one_line(error)}"
            ) from error
        if fault := gpu_failed(error):
            raise fault from error
        raise


def _load(job: Job) -> MaskGenerator:
    import torch

    from ...engine import MaskGenerator
    from ...model import load_sam

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    chosen = job.config.model
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[chosen.precision]
    try:
        if job.weights_sha256 not in (None, here := weights_sha256(chosen)):
            raise UsageError(
                f"{socket.gethostname()}: expected the run's weights of {chosen.name}, with sha256 "
                f"{job.weights_sha256}, got others there, with sha256 {here}"
            )
        device, threads = resolve_device(chosen.device), torch.get_num_threads()
        check_memory(job.config, device, threads=threads, neighbours=job.neighbours, gpu_share=job.gpu_share)
        options = job.config.generator
        if device == "cuda":
            keep_to_share(job.gpu_share)
            options = with_budget_of_share(job.config, job.gpu_share)
        sam = load_sam(chosen.name, chosen.checkpoint, device=device, dtype=dtype)
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    if chosen.compile:
        sam.compile_encoder(job.config.generator.encode_batch)
    return MaskGenerator(sam, options)


def check_same_version(job: Job) -> None:
    """Raise UsageError where this process has another maskmill than the run's driver."""
    if job.version != __version__:
        raise UsageError(
            f"{socket.gethostname()}: expected maskmill {job.version}, which started the run, got "
            f"{__version__} there ({Path(__file__).parents[2]}); install the same version on every node"
        )


def check_sees_corpus(job: Job) -> None:
    """Raise UsageError where this machine does not see the run's corpus: its shards would stay here.

    Raises CorpusUnavailable where its storage fails: that says nothing about the machine.
    """
    try:
        same = retrying(lambda: read_run(job.out)).digest == job.run_digest
        reason = "" if same else ": that is another run's"
    except CorpusUnavailable:
        raise
    except CorpusError as error:
        same, reason = False, f": {error}"
    if not same:
        raise UsageError(
            f"{socket.gethostname()}: {job.out} is not this run's corpus there{reason}; every node has to "
            "see the same --out: a shared file system or a store"
        )


def with_thresholds(config: RunConfig) -> RunConfig:
    """Return the configuration with the thresholds recommended for its weights, where it leaves them open.

    Raises CheckpointError where there are no such weights.
    """
    return config.with_thresholds(recommended_thresholds(config.model.name, config.model.checkpoint))


def weights_sha256(model: ModelConfig) -> str:
    """Return the SHA-256, in hex, of the file that this process would load; raises CheckpointError."""
    path = find_checkpoint(model.name, model.checkpoint)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _sha256_of(path, changed)


@functools.cache
def _sha256_of(path: Path, _changed: int) -> str:
    return checkpoint_sha256(path)  # gigabytes: once a process, not again when they are loaded


def resolve_device(device: str) -> str:
    """Return `cuda` or `cpu`; `auto` takes a GPU that torch finds. Raises ConfigError where there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device: expected cpu or auto, got cuda, and torch finds no GPU")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def batches_at_once(model: ModelConfig) -> int:
    """Return how many batches the generator works on side by side: on a GPU two, so that it has one to do
    while the host filters and writes down the other. On a CPU there is nothing to hide.
    """
    return BATCHES_AT_ONCE if resolve_device(model.device) == "cuda" else 1


def limit_threads(threads: int) -> None:
    """Keep what computes in this process to so many threads, so that its neighbours have theirs.

    Ray sets OpenMP's number by the CPUs that an actor reserves; of what does not follow it, these do work of
    their own. (Arrow's threads for files wait, and Numba's start only for loops that are compiled to be
    parallel, which none is here.) Call it before torch works, which takes its second number only once.
    """
    import pyarrow as pa
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    pa.set_cpu_count(threads)

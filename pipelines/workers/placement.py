"""How many workers a run has, what each reserves, so that every one of them fits on some node, and how many
images make a shard, so that every one of them has work.

A worker lives on one node: what counts is never the cluster's sum but how many workers of a size its nodes
hold. Workers that fit nowhere yet are left to an autoscaler to make room for; they take no CPU from the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..config.run import RunConfig
from ..errors import UsageError
from ..machine import usable_cpus
from ..text import counted

CPUS_PER_WORKER = 2  # where there is no GPU and nothing else was asked for

# Where the size of a shard is left open. A worker holds two shards at once; the others level the end of a
# run. A commit of up to 8 images took 2 ms on a local disk, about an eighth of the time that the fastest GPU
# is expected to need for one image: with 4 images to a shard that is 3 %, and it overlaps with work. At most
# a shard holds what takes a CPU, or a GPU, a few minutes, since that is lost where its worker dies.
SHARDS_PER_WORKER = 8
LEAST_IMAGES = 4
MOST_IMAGES_ON_CPU = 64
MOST_IMAGES_ON_GPU = 256
NVIDIA = Path("/proc/driver/nvidia/gpus")  # where Linux lists NVIDIA's GPUs
UNLISTED = (Path("/dev/dxg"), Path("/dev/kfd"))  # GPUs of Windows' Linux, and AMD's, are in no such list
WORKERS_OF_A_CLUSTER = 32  # assumed, since nobody knows how many it has before it is joined


class Node(NamedTuple):
    """What a live node has."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    """How many workers, what each reserves, and how many of them one node may have to hold."""

    workers: int
    threads: int
    gpus: float
    neighbours: int = 1


def place(config: RunConfig, nodes: Sequence[Node], *, grows: bool = True) -> Placement:
    """Fill in what the configuration leaves open from what the nodes have.

    Without a GPU, one worker for every two CPUs of a node; with GPUs, as many as they hold; each with as many
    threads as leave room for all. A GPU that is asked for by `model.device` is reserved even where none is
    there yet: where the cluster `grows`, it may be added. Raises UsageError where no node holds a worker and
    none will be added, or where one may be and nothing says how large its workers are to be.
    """
    least = config.cluster.min_workers
    if config.workers is not None and least > config.workers:
        raise UsageError(f"cluster.min_workers: expected at most workers, {config.workers}, got {least}")
    share = _gpu_share(config, nodes)
    asked = config.threads_per_worker
    if grows and not (config.workers and asked) and not how_many_fit(nodes, asked or 1, share):
        raise UsageError(
            "expected --workers and --cpus-per-worker (workers, threads_per_worker): no node has room for a "
            f"worker{' with a GPU' if share else ''} yet, so their number and size cannot be derived"
        )
    workers = config.workers or _as_many_as_fit(config, nodes, share)
    here = min(workers, how_many_fit(nodes, 1, share))  # the others come with nodes of their own
    most = max((int(node.cpus) for node in nodes if node.gpus >= share), default=1)
    fitting = (threads for threads in range(most, 1, -1) if how_many_fit(nodes, threads, share) >= here)
    threads = asked or next(fitting, 1)
    if not grows and not how_many_fit(nodes, threads, share):
        gpus = f" and {counted(share, 'GPU')}" if share else ""
        raise UsageError(f"expected a node with {counted(threads, 'CPU')}{gpus} for a worker, found none")
    on_one = max((how_many_fit([node], threads, share) for node in nodes), default=1)
    return Placement(workers, threads, share, max(1, min(workers, on_one)))


def fitting_shard_size(config: RunConfig, images: int, nodes: Sequence[Node] | None) -> int:
    """Images to a shard of a collection of `images`, where the configuration leaves it open.

    `nodes` are None for a cluster that is not joined yet: a number of workers is assumed of it unless one is
    given, and GPUs unless `model.device` says otherwise.
    """
    share = _gpu_share(config, nodes or [Node(1, 1)])
    if config.workers is not None:
        workers = max(1, config.workers)
    else:
        workers = _as_many_as_fit(config, nodes, share) if nodes else WORKERS_OF_A_CLUSTER
    fitting = math.ceil(images / (workers * SHARDS_PER_WORKER))
    return min(max(fitting, LEAST_IMAGES), MOST_IMAGES_ON_GPU if share else MOST_IMAGES_ON_CPU)


def this_machine(config: RunConfig) -> Node:
    """What a Ray that is started here will find."""
    gpus = 0 if config.model.device == "cpu" else _gpus()
    return Node(max(usable_cpus(), config.threads_per_worker or 1), gpus)


def _gpus() -> int:
    """GPUs that this process may use; counted without torch, which takes a second to load, where Linux or
    the user tells.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return sum(name.strip() not in ("", "-1") for name in chosen.split(","))
    if NVIDIA.is_dir():
        return len(list(NVIDIA.iterdir()))
    if not any(device.exists() for device in UNLISTED):
        return 0
    import torch

    return torch.cuda.device_count()


def _as_many_as_fit(config: RunConfig, nodes: Sequence[Node], share: float) -> int:
    room = config.threads_per_worker or (1 if share else CPUS_PER_WORKER)
    return max(1, how_many_fit(nodes, room, share))


def how_many_fit(nodes: Sequence[Node], threads: int, gpus: float) -> int:
    """Workers of this size that the nodes hold together."""
    if gpus < 1:  # Ray gives no part of one GPU together with a part of another
        by_gpus = [int(node.gpus) * int(1 / gpus + 1e-6) if gpus else node.cpus for node in nodes]
    else:
        by_gpus = [int(node.gpus / gpus + 1e-6) for node in nodes]
    return sum(int(min(node.cpus // threads, most)) for node, most in zip(nodes, by_gpus, strict=True))


def check_sees_its_gpus(host: str, given: Sequence[str], visible: str | None) -> None:
    """Raise UsageError where a process does not see exactly the GPUs, by their ids, that it was given.

    `visible` is its CUDA_VISIBLE_DEVICES: None lets it see all that there are.
    """
    if visible != ",".join(given):
        raise UsageError(
            f"{host}: a worker was given {'GPU ' + ','.join(given) if given else 'no GPU'}, and sees "
            f"{'all there are' if visible is None else visible or 'none'} (CUDA_VISIBLE_DEVICES): let "
            "only Ray set it there; RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES keeps Ray from doing so"
        )


def _gpu_share(config: RunConfig, nodes: Sequence[Node]) -> float:
    if config.model.device == "cpu":
        return 0.0
    share = config.cluster.gpus_per_worker
    if share is None:
        return 1.0 if config.model.device == "cuda" or any(node.gpus for node in nodes) else 0.0
    if share > 1 and share != int(share):
        raise UsageError(
            f"cluster.gpus_per_worker: expected a fraction of one GPU or a whole number, got {share}"
        )
    return share

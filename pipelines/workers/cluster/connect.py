"""A Ray to run on, a cluster that is there or one of the run's own, and which of its nodes take workers."""

from __future__ import annotations

import logging
import os
import site
import socket
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from ...config.run import RunConfig
from ...errors import UsageError
from ...machine import usable_cpus
from ..placement import Node, Placement, how_many_fit, place
from .own_ray import signals_kept, started

# Ray reads these when it starts. Nothing phones home; the empty CUDA_VISIBLE_DEVICES of a CPU actor stays;
# and workers have the priority of the command that started them (`nice maskmill …`), not Ray's 15 below it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


@contextmanager
def connect(config: RunConfig, address: str | None) -> Iterator[Placement]:
    """A Ray to run on: the cluster at `address` (or `auto`, or RAY_ADDRESS), else one started here and ended
    after.

    A Ray that this process has joined already is used, and left as it is. Raises UsageError where no
    cluster answers, and where a Ray started here has no room for a worker; see `own_ray.started`, too.
    """
    if ray.is_initialized():
        yield _placement(config, grows=True)
        return
    named = "--ray" if address else "RAY_ADDRESS"
    if address := address or os.environ.get("RAY_ADDRESS"):
        try:
            join(address, named)
            yield _placement(config, grows=True)
        finally:
            ray.shutdown()
        return
    # The CPUs that the workers ask for, whether or not the machine has as many.
    cpus = max(usable_cpus(), (config.workers or 1) * (config.threads_per_worker or 1))
    with started(cpus, _OwnPath()):
        yield _placement(config, grows=False)


def join(address: str, named: str = "--ray") -> None:
    """Join a running cluster: `host:port` or `auto`; `named` is where that was said.

    Ray's client, `ray://`, cannot carry the workers' calls. Raises UsageError for it, where no cluster
    answers, and where one turns this process away. The port is tried first, since Ray itself goes on trying
    for a minute or more, and says the same of a wrong token as of no cluster.
    """
    if "://" in address:
        raise UsageError(
            f"{named} {address}: expected auto or HOST:PORT of a cluster that this machine is in; from "
            "outside submit the command as a job (ray job submit)"
        )
    host, _, port = address.rpartition(":")
    hint = ""
    try:
        if host:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            hint = "; something answers there: check that RAY_AUTH_MODE, token and Ray version match"
        with signals_kept():
            ray.init(address=address, job_config=_OwnPath(), log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        line = " ".join(str(error).split())
        raise UsageError(
            f"{named} {address}: expected a running Ray cluster's address: {line}{hint}"
        ) from None


class _OwnPath(JobConfig):
    """Workers find maskmill where this process has it, and nothing in the folder it was started in.

    Ray puts that folder, and the script's, before all others on each worker's path: a `model.py`, `numpy.py`
    or `maskmill.py` of the user's would be imported in place of what is meant. A job with a working directory
    of its own is left without them, so every one is made to look like that here.
    """

    def __init__(self) -> None:
        home = str(Path(__file__).parents[4])
        installed = {*map(sysconfig.get_path, ("purelib", "platlib")), site.getusersitepackages()}
        super().__init__(_py_driver_sys_path=[] if home in installed else [home])

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _placement(config: RunConfig, *, grows: bool) -> Placement:
    """Place the workers on the nodes that are alive; UsageError where one machine has too few GPUs."""
    nodes = live_nodes()
    placement = place(config, nodes, grows=grows)
    room = how_many_fit(nodes, placement.threads, placement.gpus)
    if not grows and placement.gpus and placement.workers > room:
        raise UsageError(
            f"expected workers for the {sum(node.gpus for node in nodes):g} GPU(s) of the cluster, "
            f"got {placement.workers * placement.gpus:g} GPU(s) requested"
        )
    if not room:
        log.warning(
            "no node has room for a worker of %d CPU(s) and %g GPU(s) yet; waiting for one to join",
            placement.threads,
            placement.gpus,
        )
    return placement


def live_nodes() -> list[Node]:
    """What each node that is alive has, whether or not it is in use."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [Node(held.get("CPU", 0.0), held.get("GPU", 0.0)) for held in resources]

"""A Ray that a run starts on this machine: closed to everyone else, small, and removed when the run ends.

Whoever reaches an open Ray runs code as its user. So this one listens on loopback only, and its servers
answer only those who know a token that is drawn for the run. The token exists in this process and in the
environment of what it starts, nowhere else. The sockets and logs lie in a folder that only this user can
enter.
"""

from __future__ import annotations

import logging
import os
import resource
import secrets
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import ray._private.node as ray_node
import ray._private.parameter as ray_parameter
import ray._private.ray_constants as ray_constants
import ray._private.worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from ...errors import BreakerTripped, IncompleteRun, UsageError
from ...machine import threads_left
from ...signals import descendants
from ...text import counted, without_escapes

RAY_THREADS, CPU_THREADS = 170, 40  # 233, 245 and 316 were counted with 1, 2 and 4 workers on 2, 2 and 4 CPUs
COUNTED_CPUS = 4  # of more CPUs nobody knows: they are not asked for
ADDRESS_BYTES = 4_096_000_000  # with 3,072,000,000 Ray ended the process
OBJECT_STORE_BYTES = 100 * 2**20  # nothing but descriptions and receipts passes through it
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # the longest path of a socket
FOLDER, OPEN = "maskmill-", "r"  # Ray opens its folder to everyone; the one around it stays closed
LONGEST_NAME = f"/{FOLDER}12345678/{OPEN}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
LOOPBACK = "127.0.0.1"
KILLED_SECONDS = 5.0  # until the kernel has ended a process that was killed
SHARED_MEMORY = Path("/dev/shm")  # where Linux has it
NOT_STARTED = "Ray did not start on this machine (--workers 0 runs without it)"


@contextmanager
def started(cpus: int, job: JobConfig) -> Iterator[None]:
    """Join this process to a Ray of `cpus` CPUs that is started for it; end that Ray after the block.

    Raises UsageError where no folder can hold its sockets, IncompleteRun where it does not start.
    """
    _check_limits(cpus)
    with _folder() as folder, _token():
        try:
            with _spare():
                _init(folder, cpus, job)
            yield
        finally:
            with _nothing_left():
                ray.shutdown()


def _check_limits(cpus: int) -> None:
    """Raise IncompleteRun where Ray would hang, or end this process, for want of threads or address space."""
    needed, left = RAY_THREADS + CPU_THREADS * min(cpus, COUNTED_CPUS), threads_left()
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if left < needed:
        lacks = (
            f"expected {needed} threads that may be started, for {counted(cpus, 'CPU')}, got {left}: raise "
            "ulimit -u, or the container's limit of processes"
        )
    elif space != resource.RLIM_INFINITY and space < ADDRESS_BYTES:
        lacks = (
            f"expected {ADDRESS_BYTES / 2**30:.1f} GiB of address space, got {space / 2**30:.1f}: "
            "raise ulimit -v"
        )
    else:
        return
    raise IncompleteRun(f"{NOT_STARTED}: {lacks}")


def _init(folder: Path, cpus: int, job: JobConfig) -> None:
    try:
        with signals_kept():
            context: Any = ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                job_config=job,
                log_to_driver=False,
                logging_level=logging.CRITICAL,  # what Ray says is in the error below
                _temp_dir=str(folder / OPEN),
                _plasma_directory=None if SHARED_MEMORY.is_dir() else str(folder),
            )
    except Exception as error:  # of any type: Ray raises Exception itself, too
        said = " ".join(without_escapes(str(error)).split()) or type(error).__name__
        raise IncompleteRun(f"{NOT_STARTED}: {said}") from error
    host = context.address_info["gcs_address"].rpartition(":")[0]
    if host != LOOPBACK:  # another version of Ray may heed `_spare` no longer
        raise IncompleteRun(f"{NOT_STARTED}: expected it to listen on {LOOPBACK} only, and it is at {host}")


@contextmanager
def _nothing_left() -> Iterator[None]:
    """Kill after the block what the raylet started and did not end, where Linux lets a process be held.

    Ray gives the raylet a second to end its workers and agents. On a busy machine that is too short, and an
    agent notices half a minute later that it is alone.
    """
    node = ray_worker._global_node
    ours: list[Any] = node.all_processes.get(ray_constants.PROCESS_TYPE_RAYLET, []) if node else []
    with ExitStack() as opened:
        handles = []
        if sys.platform == "linux":
            for pid in [pid for raylet in ours for pid in descendants(raylet.process.pid)]:
                with suppress(OSError):  # it has ended
                    handles.append(os.pidfd_open(pid))
                    opened.callback(os.close, handles[-1])
        try:
            yield
        finally:
            for handle in handles:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            for handle in handles:
                select.select([handle], [], [], KILLED_SECONDS)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM; Ray puts one in its place that raises SystemExit while Ray starts."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _folder() -> Iterator[Path]:
    """A new folder for sockets and logs. Where Ray did not start, or workers kept dying, it stays, and the
    error names it.
    """
    folder = _new_folder()
    keep = False
    try:
        yield folder
    except IncompleteRun as error:
        keep = isinstance(error, BreakerTripped) or str(error).startswith(NOT_STARTED)
        if keep:
            error.args = (f"{error}; Ray's logs are in {folder}",)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)  # a process that is ending may still write there


def _new_folder() -> Path:
    """A folder of this user's alone in the first place that can be written and leaves room for the names."""
    longest = SOCKET_BYTES - len(LONGEST_NAME)
    ray_tmp, tmp, run = (os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR"))
    reasons = []
    for named in dict.fromkeys(filter(None, [ray_tmp, tmp, "/tmp", run, str(SHARED_MEMORY)])):
        place = Path(named).absolute()
        if len(os.fsencode(place)) > longest:
            reasons.append(f"{place}: its path is too long")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=FOLDER, dir=place))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
    raise UsageError(
        f"Ray needs a folder that can be written, with a path of at most {longest} bytes, for its sockets "
        f"({'; '.join(reasons)}): set RAY_TMPDIR to one, or take --workers 0, which runs without Ray"
    )


@contextmanager
def _token() -> Iterator[None]:
    """Ask for a new token in this process and in those that it starts; what was set before comes back."""
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_K8S_TOKEN_AUTH": "false",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    """Have Ray drop the mode and the token it knows, in this order: a mode without a token ends a process."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _spare() -> Iterator[None]:
    """Have `ray.init` listen on loopback, as it does on macOS, and start nothing that a run does not use.

    That is the autoscaler's monitor, the one that copies logs to the driver, and the server of the dashboard
    that is not included: `ray.init` has no options for them. The agent takes any port, not 52365, which two
    runs would want. A name that another version of Ray lacks is left out.
    """
    with ExitStack() as replaced:
        for owner, name, value in (
            (ray_constants, "ENABLE_RAY_CLUSTER", False),
            (ray_parameter, "RayParams", _sparing),
            (ray_node.Node, "start_api_server", lambda *_given, **_options: None),
        ):
            if hasattr(owner, name):
                replaced.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


_Params = ray_parameter.RayParams


def _sparing(**given: Any) -> Any:
    """The parameters of a node, without what a run does not use."""
    params = _Params(**given)
    vars(params).update(no_monitor=True, include_log_monitor=False, dashboard_agent_listen_port=0)
    return params

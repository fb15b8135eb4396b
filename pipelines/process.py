"""What a command needs of its process before it begins, whatever shell, container or batch system started it.

`guarded_streams` makes standard output and standard error safe to write to: a stream that is closed, full or
cut off costs what it would have shown, never the work. `settle` sees to the rest: the current folder, the
home folder, variables that name caches, and whether threads can be started.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from .errors import IncompleteRun, UsageError
from .machine import usable_cpus

_NO_HOME = "/nonexistent"
_FOLDERS = (
    "MASKMILL_CACHE",
    "NUMBA_CACHE_DIR",
    "MPLCONFIGDIR",
    "RAY_TMPDIR",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
)
_OTHER_THREADS = 16
"""Beside those that compute: Arrow's for files, those that read ahead, the one that renews the lease."""


class GuardedStream:
    """A text stream, with every attribute it has. After its first failure it drops what is written.

    Attributes:
        failure: why it could not be written to; None as long as it could.

    """

    def __init__(self, stream: TextIO) -> None:
        self.failure: OSError | None = None
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text where the stream has failed."""
        with self._failing():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them one by one."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            # What is still buffered would fail again when the interpreter ends, with a traceback.
            with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    r"""Guard both streams in the block and yield standard output's guard; flushed at the end.

    What the encoding of a terminal or a locale lacks is written as `\xNN`.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    output, errors = map(GuardedStream, before)
    sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", errors)
    try:
        yield output
    finally:
        errors.flush()
        sys.stdout, sys.stderr = before


def settle(*, computes: bool) -> None:
    """Make the process's surroundings usable. Raises UsageError where the current folder is gone; for a
    command that `computes`, IncompleteRun where this process may not start the threads that its libraries
    start.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the current folder cannot be used: {error.strerror}; change to one that exists"
        ) from None
    if os.path.expanduser("~") == "~":  # noqa: PTH111  (pathlib raises)
        # Else some libraries raise, and others make a folder that is called `~` in the current one.
        os.environ["HOME"] = _NO_HOME
    for name in _FOLDERS:
        if os.environ.get(name, "").startswith("~"):
            os.environ[name] = os.path.expanduser(os.environ[name])  # noqa: PTH111
    # A thread asks for much address space.
    if computes and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        _check_threads(2 * usable_cpus() + _OTHER_THREADS)


def _open_closed() -> None:
    """Open the null device in place of standard streams that are closed: else the next file that is opened
    gets their number, and what native libraries print goes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))


def _check_threads(count: int) -> None:
    """Start so many threads at once: of native libraries some end the process where they cannot, others crash
    or interrupt it.
    """
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=done.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise IncompleteRun(
            f"this process can start only {len(started)} of the {count} threads that it may need; raise the "
            "limit of processes (ulimit -u, or the container's)"
        ) from None
    finally:
        done.set()
        for thread in started:
            thread.join()

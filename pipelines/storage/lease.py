"""Who is at work on a corpus: a lease in its folder, so that two runs do not do the same work twice.

A lease saves work, never rows: where it is lost or defeated, the first commit of a shard still wins. It runs
out by itself, since a lock would outlive the machine that held it; its holder renews it while it lives. A
holder on this machine that is gone is known to be gone, and its lease is taken over at once. Any other lease
is watched until it expires, but never for less than two renewals, since the clock by which it has expired may
be wrong, and never for longer than a lease lasts. If a renewal is seen meanwhile, the holder is alive. The
watch is timed by this process's own steady clock, so that no wrong clock can take a corpus from its run or
keep it locked.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from ..errors import IncompleteRun
from . import atomic
from .retries import opening
from .store_errors import as_os_errors

LEASE = "lease.json"
SECONDS = 60.0
RENEWALS = 4  # while a lease lasts
WATCH_SECONDS = 0.5  # between two looks at another machine's lease
TRIES = 8  # to take a lease that others take and leave meanwhile

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lease, as its `lease.json` says.

    Attributes:
        token: a random name for one run.
        host: the machine's name, for people.
        machine: the kernel's boot and the process namespace, within which `pid` means one process.
        pid: the process's number.
        started: when the process started, in the kernel's ticks; tells it from a later one with its number.
        since: when it took the lease, UTC, ISO 8601.
        expires: when the lease runs out unless it is renewed.
        images_in_hand: how many images of uncommitted shards were done at the last renewal.

    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    expires: str
    images_in_hand: int = 0

    def __post_init__(self) -> None:
        if type(self.images_in_hand) is not int or self.images_in_hand < 0:
            raise ValueError(f"expected a number of images, got {self.images_in_hand!r}")
        datetime.fromisoformat(self.expires).astimezone(UTC)  # ValueError, TypeError where it is no time

    @property
    def left(self) -> float:
        """Seconds until the lease runs out; at most the time a lease lasts, whatever the clocks say."""
        return min(datetime.fromisoformat(self.expires).timestamp() - time.time(), SECONDS)

    @property
    def is_local(self) -> bool:
        """Whether the holder ran where this process could see it."""
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    @property
    def is_gone(self) -> bool:
        """Whether the holder ran here and has ended; False if that cannot be told."""
        if not self.is_local:
            return False
        now = _started(self.pid)
        return now is None or ("" not in (now, self.started) and now != self.started)

    def renewed(self, images_in_hand: int = 0) -> Holder:
        """The holder with a lease's full time before it."""
        return replace(self, expires=_moment(time.time() + SECONDS), images_in_hand=images_in_hand)

    def __str__(self) -> str:
        return (
            f"{self.host}, process {self.pid}, since {self.since}; its lease runs out at {self.expires}, "
            f"in {max(self.left, 0):.0f} s, unless it is renewed"
        )


class Lease:
    """The lease of a corpus, held by this process and renewed by a thread.

    Attributes:
        images_in_hand: the number to write at the next renewal, for whoever asks how far the run is.

    """

    def __init__(self, out: Path, holder: Holder) -> None:
        self.images_in_hand = 0
        self._out = out
        self._holder = holder
        self._lost_to: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the corpus since, so that this process may not change it any more."""
        return self._lost_to is not None

    def check(self) -> None:
        """Raise IncompleteRun if another run has taken the lease because this process slept past its end."""
        if self.is_lost:
            raise IncompleteRun(f"{self._out}: another run has taken over, this one ends: {self._lost_to}")

    def release(self) -> None:
        """Stop renewing, and remove the lease if it is still this process's."""
        self._ended.set()
        self._thread.join()
        try:
            found = read_lease(self._out)
            if found is not None and found.token == self._holder.token:
                atomic.remove(self._out / LEASE)
        except OSError as error:
            log.warning("%s: cannot be removed; it expires by itself: %s", self._out / LEASE, error)

    def _renew(self) -> None:
        while not self._ended.wait(SECONDS / RENEWALS):
            try:
                found = read_lease(self._out)
                if found is None or found.token != self._holder.token:
                    self._lost_to = str(found or "it has ended already, and its lease with it")
                    return
                _put(self._out, self._holder.renewed(self.images_in_hand))
            except (OSError, MemoryError) as error:
                log.warning("%s: cannot be renewed, trying again: %s", self._out / LEASE, error)


@contextmanager
def held(out: Path, say: Callable[[str], None], *, is_there: bool = False) -> Iterator[Lease]:
    """Hold the lease of the corpus `out` for the block.

    Another machine's lease is watched first (see `_watch`), and `say` is told so. Raises IncompleteRun, which
    names the holder, if that one is at work, and what `opening` raises if `out` cannot be written.
    """
    me = _this_process()
    lease = Lease(out, opening(lambda: _take(out, me, say), out, is_there=is_there))
    try:
        yield lease
    finally:
        lease.release()


def read_lease(out: Path) -> Holder | None:
    """The holder of a corpus's lease; None if there is no lease, or none that can be understood."""
    try:
        with as_os_errors():
            content = (out / LEASE).read_bytes()
        known = {field.name for field in fields(Holder)}  # another version may say more
        return Holder(**{name: value for name, value in json.loads(content).items() if name in known})
    except FileNotFoundError:
        return None
    except (AttributeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        log.warning("%s: damaged and ignored: %s", out / LEASE, error)
        return None


def _take(out: Path, me: Holder, say: Callable[[str], None]) -> Holder:
    for _ in range(TRIES):
        try:
            if atomic.create(out / LEASE, _as_bytes(me.renewed())):
                return me
        except FileNotFoundError:
            if not out.is_dir():
                raise
            continue  # the run that took it first has swept this one's temporary file away
        except OSError as error:
            if error.errno != errno.EBUSY:  # as a store says of two that write one name at once
                raise
            time.sleep(random.uniform(0.1, 1.0))
            continue
        found = read_lease(out)
        if found is not None and found.token == me.token:
            return me  # it was put, and the answer was lost
        if found is not None and not found.is_gone:
            if found.is_local and found.left > 0:
                raise _refusal(out, found)
            _watch(out, found, say)
        if (out / LEASE).exists():
            with suppress(FileNotFoundError):  # swept away, as above
                _put(out, me.renewed())
        if (now := read_lease(out)) is not None and now.token == me.token:
            return me  # of two that take it over at once, the later one; the other one learns of it
    raise IncompleteRun(f"{out / LEASE}: other runs keep taking and releasing it; try again later")


def _watch(out: Path, holder: Holder, say: Callable[[str], None]) -> None:
    """Wait until the lease has run out or is left; IncompleteRun as soon as its holder is seen alive.

    A lease that has run out already by this machine's clock is watched for as long as two renewals take.
    """
    say(f"{out}: waiting for the lease of another run: {holder}")
    end = time.monotonic() + max(holder.left, 2 * SECONDS / RENEWALS)
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(WATCH_SECONDS, left))
        found = read_lease(out)
        if found is None:
            return
        if found != holder:
            raise _refusal(out, found)


def _refusal(out: Path, holder: Holder) -> IncompleteRun:
    return IncompleteRun(
        f"{out}: another run is at work on it: {holder}: let it finish or end it, then run this again"
    )


def _put(out: Path, holder: Holder) -> None:
    atomic.replace(out / LEASE, _as_bytes(holder))


def _as_bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode() + b"\n"


def _this_process() -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
        since=_moment(time.time()),
        expires=_moment(time.time() + SECONDS),
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _machine() -> str:
    """The scope in which a process's number is unique, as Linux tells; elsewhere the host's name must do."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; "" if the system does not tell, None if it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, or it is another user's and hidden, or there is no /proc
        return _untold(pid)
    return None if state in "ZX" else rest[18]


def _untold(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    return ""

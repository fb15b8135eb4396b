"""The machine that a benchmark runs on: what it is, how fast it multiplies, who else is on it, what was held.

Only `matrix_rate` loads torch: a benchmark that measures memory has none of it.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

QUIET_SHARE = 0.05
"""Of the machine's processor time: what others may take before a benchmark's figures are marked."""


def matrix_rate(sides: Sequence[int], seconds: float) -> float:
    """The best rate, in fp32 operations a second, at which torch multiplies square matrices of these sides.

    Each side is tried for so many seconds. The best, not the median: it is what the machine can do. A product
    of small ones is over before another program has its turn.
    """
    import torch

    best = 0.0
    for side in sides:
        a, b = torch.rand(side, side), torch.rand(side, side)
        out = torch.empty(side, side)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            torch.mm(a, b, out=out)
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def short_name(processor: str) -> str:
    """`Intel(R) Xeon(R) CPU @ 2.20GHz` → `intel-xeon`: a processor's name as part of a file's."""
    plain = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor)\b|\b\d+-core\b", " ", processor.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


class Watch:
    """Over a `with` block, the share of all processors' time that went to others than this process.

    The processes that the block starts and waits for count as this one's own. `others` is None where the
    system does not say (it is Linux's /proc/stat that does).
    """

    others: float | None = None

    def __enter__(self) -> Self:
        self._start, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        busy, elapsed = _busy_seconds(), time.monotonic() - self._start
        if self._busy is not None and busy is not None:
            foreign = (busy - self._busy) - (_own_seconds() - self._own)
            self.others = round(max(0.0, foreign) / (elapsed * (os.cpu_count() or 1)), 3)

    @property
    def quiet(self) -> bool | None:
        """Whether the machine was left to this process; None where that is not known."""
        return None if self.others is None else self.others < QUIET_SHARE


def _busy_seconds() -> float | None:
    """Of all processors together, since the machine was started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _io_wait, interrupts, soft, stolen = map(
        int, stat.read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft + stolen) / float(os.sysconf("SC_CLK_TCK"))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def forget_peak() -> bool:
    """Have the kernel count this process's peak of memory from now on; False where it cannot be asked to."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_since() -> int:
    """The most memory that this process has held since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, "Linux counts it"
    return int(found[1]) * 1024


def memory_bytes(name: str) -> int:
    """A line of /proc/meminfo, such as `MemTotal` or `MemAvailable`, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found, "Linux counts it"
    return int(found[1]) * 1024


def peak_of_all(*, children: bool = False) -> int:
    """The most memory that this process, or one of its ended children, has ever held, in bytes."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss * 1024


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Python's version, and those of installed packages."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def processor() -> dict[str, str | int | None]:
    """The processor's name, and how many CPUs there are."""
    return {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}

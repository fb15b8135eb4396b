"""The machine: its CPUs, memory and threads, its containers' limits, and what its hardware is called."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

UNLIMITED = 2**62


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: those it may run on, or the least quota of its groups.

    A part of a CPU counts as one.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", root):
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # no such files, or "max"
                quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
                if quota > 0 and period > 0:
                    cpus = min(cpus, math.ceil(quota / period))
    return cpus


def memory_of_machine(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that this process may have on its machine, and those that are free; huge where unknown.

    Both are the least that the machine and the groups that hold the process leave. Page cache counts as free:
    it goes when it is asked to.
    """
    has = free = UNLIMITED
    meminfo = _numbers(root / "proc/meminfo", ":")
    if {"MemTotal", "MemAvailable"} <= meminfo.keys():
        has, free = 1024 * meminfo["MemTotal"], 1024 * meminfo["MemAvailable"]
    machine = has
    for group in _groups("memory", root):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            at_most, taken = _number(group / limit), _number(group / used)
            if at_most is not None and taken is not None and at_most < machine:
                stat = _numbers(group / "memory.stat", "")
                cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                has, free = min(has, at_most), min(free, max(0, at_most - taken + cached))
    return has, free


def threads_left(root: Path = Path("/")) -> int:
    """Threads that this process and its children may still start; huge where there is no limit."""
    left = UNLIMITED
    for group in _groups("pids", root):
        at_most, taken = _number(group / "pids.max"), _number(group / "pids.current")
        if at_most is not None and taken is not None:
            left = min(left, max(0, at_most - taken))
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    user = os.getuid()
    if limit != resource.RLIM_INFINITY and user != 0:  # the limit does not bind root
        states = (_numbers(path, ":") for path in (root / "proc").glob("[0-9]*/status"))
        taken = sum(state.get("Threads", 0) for state in states if state.get("Uid") == user)
        left = min(left, max(0, limit - taken))
    return left


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process, each with all that hold the group (cgroups(7)).

    A container may see its own group as the root, and be told its path outside: then there is no such folder,
    and the root's files hold its limits.
    """
    mounted = root / "sys/fs/cgroup"
    inner = {mounted: "", mounted / "unified": "", mounted / controller: ""}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2, of a machine that has both perhaps
                inner[mounted] = inner[mounted / "unified"] = path
            elif controller in controllers.split(","):
                inner[mounted / controller] = path
    for top, path in inner.items():
        group = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        while True:
            yield group
            if group == top:
                break
            group = group.parent


def _number(path: Path) -> int | None:
    """The number that a file of the kernel's holds; None where there is no such file, or no limit in it."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _numbers(path: Path, mark: str) -> dict[str, int]:
    """Lines of a name, a mark and a number."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    named = [words for words in lines if len(words) > 1 and words[1].isdecimal()]
    return {words[0].removesuffix(mark): int(words[1]) for words in named}


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor's name, as Linux tells it, its cores, torch's threads, and the GPU's name."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = {
        "processor": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})

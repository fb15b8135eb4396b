"""The machine: its CPUs, its memory, the limits of its container, and what its hardware is called."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: those it may run on, or its container's quota where that is less.

    A part of a CPU counts as one.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cgroup = root / "sys/fs/cgroup"
    for files in (
        [cgroup / "cpu.max"],
        [cgroup / "cpu" / f"cpu.cfs_{what}_us" for what in ("quota", "period")],
    ):
        with contextlib.suppress(OSError, ValueError):  # no such files, or "max"
            quota, period = map(int, " ".join(file.read_text() for file in files).split())
            if quota > 0 and period > 0:
                cpus = min(cpus, math.ceil(quota / period))
    return cpus


def memory_of_machine(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that this process's machine, or container, has, and those that are free; huge where unknown.

    Page cache counts as free: it goes when it is asked to.
    """
    unknown = 2**62
    has = free = unknown
    meminfo = _numbers(root / "proc/meminfo", ":")
    if {"MemTotal", "MemAvailable"} <= meminfo.keys():
        has, free = 1024 * meminfo["MemTotal"], 1024 * meminfo["MemAvailable"]
    for folder, limit, used, prefix in (
        ("sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        at_most, taken = _number(root / folder / limit), _number(root / folder / used)
        if at_most is not None and taken is not None and at_most < has:
            has = at_most
            stat = _numbers(root / folder / "memory.stat", "")
            cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
            free = min(free, max(0, at_most - taken + cached))
    return has, free


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

"""Limits of nested control groups: the least on the way to the root counts."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskmill.pipelines import machine

GIB = 2**30
MEMINFO = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"
UNLIMITED = 2**62


def tree(root, files):
    """The kernel's files, by path; those below sys/fs/cgroup without that part."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name if name.startswith("proc/") else root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def v2(group, taken=0, **limits):
    """The files of a group of version 2."""
    of = {"cpu": "cpu.max", "memory": "memory.max", "pids": "pids.max"}
    used = {f"{group}/memory.current": taken, f"{group}/pids.current": taken}
    return used | {f"{group}/{of[name]}": limit for name, limit in limits.items()}


JOB = "0::/system.slice/slurmstepd.scope/job_7/step_0"
SCOPE = "system.slice/slurmstepd.scope"
V1 = "9:cpuset:/\n4:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n2:pids:/slurm/job_7\n1:name=systemd:/x"
USED_V1 = {f"memory{group}/memory.usage_in_bytes": GIB for group in ("", "/slurm", "/slurm/job_7")}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, (8, 8 * GIB, 4 * GIB, UNLIMITED)),
        ("nothing that is known", {}, (8, 8 * GIB, 4 * GIB, UNLIMITED)),
        # The job's own limits, below a root that has none; the step's say "max".
        (
            JOB,
            v2(f"{SCOPE}/job_7", GIB, cpu="300000 100000", memory=3 * GIB)
            | v2(f"{SCOPE}/job_7/step_0", cpu="max 100000", memory="max", pids="max"),
            (3, 3 * GIB, 2 * GIB, UNLIMITED),
        ),
        # Either level may be the narrow one, and another one the one whose memory is taken.
        (
            JOB,
            v2("system.slice", 3 * GIB, cpu="500000 100000", memory=4 * GIB)
            | v2(f"{SCOPE}/job_7/step_0", 0, cpu="150000 100000", memory=2 * GIB, pids=90),
            (2, 2 * GIB, GIB, 90),
        ),
        (JOB, v2(f"{SCOPE}/job_7", 20, pids=70) | v2(SCOPE, 80, pids=100), (8, 8 * GIB, 4 * GIB, 20)),
        # A neighbour's, and a group inside, are not its own.
        (
            JOB,
            v2(f"{SCOPE}/job_8", cpu="100000 100000", memory=GIB)
            | v2(f"{SCOPE}/job_7/step_0/task_0", cpu="100000 100000", memory=GIB),
            (8, 8 * GIB, 4 * GIB, UNLIMITED),
        ),
        # A container is told its path outside, sees its group as the root.
        ("0::/docker/5e1f", v2(".", GIB, cpu="200000 100000", memory=2 * GIB), (2, 2 * GIB, GIB, UNLIMITED)),
        ("0::/../../kubepods/pod1", v2(".", 0, cpu="100000 100000", memory=GIB), (1, GIB, GIB, UNLIMITED)),
        # Version 1, with a folder for each controller; and both versions on one machine.
        (
            V1,
            USED_V1
            | {
                "cpu/slurm/cpu.cfs_quota_us": 400000,
                "cpu/slurm/cpu.cfs_period_us": 100000,
                "cpu/slurm/job_7/cpu.cfs_quota_us": 250000,
                "cpu/slurm/job_7/cpu.cfs_period_us": 100000,
                "memory/memory.limit_in_bytes": 9223372036854771712,
                "memory/slurm/memory.limit_in_bytes": 3 * GIB,
                "memory/slurm/job_7/memory.limit_in_bytes": 5 * GIB,
                "pids/slurm/pids.max": 50,
                "pids/slurm/pids.current": 8,
            },
            (3, 3 * GIB, 2 * GIB, 42),
        ),
        (
            f"{V1}\n{JOB}",
            v2(f"unified/{SCOPE}/job_7", cpu="100000 100000") | {"pids/slurm/job_7/pids.max": "max"},
            (1, 8 * GIB, 4 * GIB, UNLIMITED),
        ),
    ],
)
def test_the_least_limit_on_the_way_to_the_root_counts(tmp_path, monkeypatch, groups, files, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    monkeypatch.setattr(machine.os, "getuid", lambda: 0)
    root = tree(tmp_path, files | {"proc/self/cgroup": groups})
    found = (machine.usable_cpus(root), *machine.memory_of_machine(root), machine.threads_left(root))
    assert found == expected


def test_the_users_other_threads_count_against_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "getuid", lambda: 1000)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _which: (100, 200))
    states = {"1": (0, 9), "20": (1000, 30), "21": (1000, 5), "self": (1000, 30)}
    for name, (user, threads) in states.items():
        state = tmp_path / "proc" / name / "status"
        state.parent.mkdir(parents=True)
        state.write_text(f"Name:\tx\nUid:\t{user}\t{user}\t{user}\t{user}\nThreads:\t{threads}\n")
    assert machine.threads_left(tmp_path) == 65


SAYS = """
from maskmill.pipelines.machine import memory_of_machine, threads_left, usable_cpus
print(usable_cpus(), *memory_of_machine(), threads_left())
"""


@contextlib.contextmanager
def nested_groups():
    """A group in a group, for CPUs, memory and threads each, or one for all; skips where that is not allowed.

    The limits are those of the outer one.
    """
    top = Path("/sys/fs/cgroup")
    name = f"maskmill-{os.getpid()}"
    limits = {
        "cpu": [("cpu.cfs_period_us", 100000), ("cpu.cfs_quota_us", 100000)],
        "memory": [("memory.limit_in_bytes", GIB)],
        "pids": [("pids.max", 300)],
    }
    tops = {top / controller: values for controller, values in limits.items()}
    if (top / "cgroup.controllers").exists():
        tops = {top: [("cpu.max", "100000 100000"), ("memory.max", GIB), ("pids.max", 300)]}
    made = []
    try:
        try:
            for group, values in tops.items():
                for folder in (group / name, group / name / "inner"):
                    folder.mkdir()
                    made.append(folder)
                for file, value in values:
                    (group / name / file).write_text(str(value))
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield made[1::2]
    finally:
        for folder in reversed(made):
            folder.rmdir()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_a_process_in_a_real_nested_group_sees_its_limits():
    with nested_groups() as inner:
        joins = "; ".join(f"echo 0 > {group}/cgroup.procs" for group in inner)
        shell = ["sh", "-ec", f'{joins}; exec "$@"', "sh", sys.executable, "-c", SAYS]
        done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cpus, memory, free, threads = map(int, done.stdout.split())
    assert (cpus, memory) == (1, GIB)
    assert 0 < free <= GIB
    assert 250 < threads < 300

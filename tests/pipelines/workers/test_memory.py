"""A worker's threads and memory: what a machine's files say, what is refused, what a run really takes."""

import re
import subprocess
import sys

import pytest

from maskmill.pipelines import machine
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import UsageError
from maskmill.pipelines.workers import memory
from tests.support.commands import words

GIB = 2**30
MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (2**62, 2**62)),
        ({"proc/meminfo": "nothing: that\nis: known kB\n"}, (2**62, 2**62)),
        ({"proc/meminfo": MEMINFO}, (8 * GIB, 4 * GIB)),
        # A container without a limit, and one whose limit is above what the machine has.
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, (8 * GIB, 4 * GIB)),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
            },
            (8 * GIB, 4 * GIB),
        ),
        # Two gibibytes, of which one and a half are taken, one of them by files that may go.
        (
            {
                "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{3 * GIB // 2}\n",
                "sys/fs/cgroup/memory.stat": f"anon 7\ninactive_file {GIB - 9}\nactive_file 9\n",
            },
            (2 * GIB, 3 * GIB // 2),
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            },
            (2 * GIB, 0),
        ),
    ],
)
def test_what_the_machine_has_is_read_from_the_kernels_files(tmp_path, files, expected):
    if files and "proc/meminfo" not in files:
        files = {"proc/meminfo": MEMINFO, **files}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.memory_of_machine(tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "nothing that is known\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_containers_quota_counts_as_its_cpus(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert machine.usable_cpus(tmp_path) == expected


def test_this_machine_has_memory():
    has, free = machine.memory_of_machine()
    assert 0 < free <= has


def test_a_machine_too_small_for_the_model_is_wrong_use(photos, tiny_settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "memory_of_machine", lambda: (GIB // 2, GIB // 2))
    arguments = words(photos, tmp_path / "corpus", tiny_settings, "--workers", "0")
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskmill: ")]
    assert re.search(
        r"1 worker on this machine: expected 0\.\d+ GiB for each \(process 0\.50, weights 0\.\d+, "
        r"encoding 0\.\d+, prompts 0\.\d+\), there is 0\.50 GiB for each; take a smaller model\.name",
        line,
    )
    assert not [*(tmp_path / "corpus" / "shards").glob("*")]

    monkeypatch.undo()
    assert main(arguments) == 0


def test_memory_that_others_hold_leaves_the_run_incomplete(
    photos, tiny_settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(memory, "memory_of_machine", lambda: (64 * GIB, GIB // 4))
    assert main(words(photos, tmp_path / "corpus", tiny_settings, "--workers", "0")) == 4
    assert "no shard was begun: " in (said := capsys.readouterr().err)
    assert "0.25 GiB is free now; end what takes the rest" in said


def test_neighbours_share_the_machine(monkeypatch):
    config = load_config(None, ["model.name=vit_h"])
    total = sum(memory.needed_on_host(config, 1, on_gpu=False).values())
    monkeypatch.setattr(memory, "memory_of_machine", lambda: (4 * total, 4 * total))
    memory.check_memory(config, "cpu", threads=1, neighbours=4)
    with pytest.raises(UsageError, match=r"5 workers on this machine"):
        memory.check_memory(config, "cpu", threads=1, neighbours=5)


def test_a_share_of_a_gpu_holds_the_model_and_the_budget(monkeypatch):
    import torch

    config = load_config(None, ["model.name=vit_h", "model.precision=bf16"])
    needed = memory.needed_on_gpu(config)
    assert needed["weights"] == pytest.approx(2 * 641e6, rel=0.01)  # the published number of parameters
    assert needed["generator.device_budget_bytes"] == config.generator.device_budget_bytes
    total = sum(needed.values())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 * total, 2 * total))
    memory.check_memory(config, "cuda", threads=1, gpu_share=0.5)
    with pytest.raises(UsageError, match=r"a worker on 0\.25 of its GPU: .*device_budget_bytes 8\.00\)"):
        memory.check_memory(config, "cuda", threads=1, gpu_share=0.25)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (total - 1, 2 * total))
    with pytest.raises(MemoryError, match="is free now"):
        memory.check_memory(config, "cuda", threads=1)


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.workers.tasks import Job
from maskmill.pipelines.workers.loading import make_generator
settings = sys.argv[1:]
config = load_config(None, settings)
import torch
torch.set_num_threads(2)
generator = make_generator(Job(Path("nowhere"), config, ""))
generator.generate_batch([np.random.default_rng(0).integers(0, 255, (300, 450, 3), np.uint8)])
from maskmill.pipelines.workers.memory import needed_on_host
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(peak, sum(needed_on_host(config, 2, on_gpu=False).values()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from the kernel's files")
def test_what_is_expected_covers_what_a_process_takes():
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "generator.pred_iou_thresh=0.3"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, expected = map(int, done.stdout.split())
    assert expected / 3 < peak < expected

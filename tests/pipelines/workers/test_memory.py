"""A worker's threads and memory: what a machine's files say, what is refused, what a run really takes."""

import re
import subprocess
import sys

import pytest
import torch

import maskmill.model
from maskmill.pipelines import machine
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import UsageError
from maskmill.pipelines.workers import memory
from maskmill.pipelines.workers.loading import make_generator
from maskmill.pipelines.workers.tasks import Job
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
    assert "0.25 GiB is free now; stop the processes that use the rest" in said


def test_neighbours_share_the_machine(monkeypatch):
    config = load_config(None, ["model.name=vit_h"])
    total = sum(memory.needed_on_host(config, 1, on_gpu=False).values())
    monkeypatch.setattr(memory, "memory_of_machine", lambda: (4 * total, 4 * total))
    memory.check_memory(config, "cpu", threads=1, neighbours=4)
    with pytest.raises(UsageError, match=r"5 workers on this machine"):
        memory.check_memory(config, "cpu", threads=1, neighbours=5)


def card_of(monkeypatch, free, total):
    """A GPU with so much memory; the fractions that processes are kept to."""
    kept = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_device: (free, total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", kept.append)
    return kept


def test_a_share_of_a_gpu_holds_the_model_and_both_batches(monkeypatch):
    config = load_config(
        None, ["model.name=vit_h", "model.precision=bf16", f"generator.device_budget_bytes={8 * GIB}"]
    )
    needed = memory.needed_on_gpu(config, 80 * GIB)
    assert needed["weights"] == pytest.approx(2 * 641e6, rel=0.01)  # the published number of parameters
    assert needed["2 × generator.device_budget_bytes"] == 16 * GIB
    one = load_config(None, ["model.name=vit_h", "model.precision=bf16", "generator.encode_batch=2"])
    encoding = memory.needed_on_gpu(one, GIB)["encoding 2 batches"]
    assert encoding == 2 * needed["encoding 2 batches"] == 4 * 70 * 70 * 1280 * 64 * 2
    total = sum(needed.values())
    card_of(monkeypatch, 2 * total, 2 * total)
    memory.check_memory(config, "cuda", threads=1, gpu_share=0.5)
    with pytest.raises(UsageError, match=r"a worker on 0\.05 of its GPU: .*device_budget_bytes 0\.50\)"):
        memory.check_memory(config, "cuda", threads=1, gpu_share=0.05)
    card_of(monkeypatch, total - memory.CUDA_BYTES - 1, 2 * total)
    with pytest.raises(MemoryError, match="is free now"):
        memory.check_memory(config, "cuda", threads=1)


@pytest.mark.parametrize(
    ("gib", "share", "settings", "least", "most"),
    [
        (8, 1, [], 2, 3.5),  # nano
        (24, 1, ["model.name=vit_h"], 8, 10),
        (80, 1, ["model.name=vit_h", "generator.encode_batch=4"], 28, 32),
        (80, 0.25, ["model.name=vit_h"], 6, 8),
        (141, 1, ["model.name=vit_h", "generator.encode_batch=4"], 32, 32),  # no more is of use
        (8, 1, [f"generator.device_budget_bytes={GIB}"], 1, 1),  # as it was told
    ],
)
def test_the_budget_goes_by_the_card(monkeypatch, gib, share, settings, least, most):
    config = load_config(None, ["model.precision=bf16", *settings])
    card_of(monkeypatch, gib * GIB, gib * GIB)
    budget = memory.with_budget_of_share(config, share).device_budget_bytes
    assert least * GIB <= budget <= most * GIB
    memory.check_memory(config, "cuda", threads=1, gpu_share=share)  # and what is taken is there
    assert sum(memory.needed_on_gpu(config, int(gib * share * GIB)).values()) <= gib * share * GIB


def test_the_budget_leaves_others_what_they_hold_if_it_is_not_most_of_it(monkeypatch):
    config = load_config(None, ["model.precision=bf16"])
    card_of(monkeypatch, 8 * GIB, 8 * GIB)
    alone = memory.with_budget_of_share(config, 1).device_budget_bytes
    card_of(monkeypatch, 6 * GIB, 8 * GIB)
    assert memory.with_budget_of_share(config, 1).device_budget_bytes < alone - GIB // 2
    memory.check_memory(config, "cuda", threads=1)
    card_of(monkeypatch, 3 * GIB, 8 * GIB)
    with pytest.raises(MemoryError, match="is free now"):
        memory.check_memory(config, "cuda", threads=1)


def test_a_budget_for_a_larger_card_takes_what_there_is(monkeypatch):
    """A corpus keeps the number that it was begun with, perhaps elsewhere."""
    config = load_config(None, [f"generator.device_budget_bytes={8 * GIB}"])
    card_of(monkeypatch, 15 * GIB, 15 * GIB)
    assert 6 * GIB < memory.with_budget_of_share(config, 1).device_budget_bytes < 7.5 * GIB
    memory.check_memory(config, "cuda", threads=1)


def test_what_cuda_takes_for_this_process_is_counted_once(monkeypatch):
    config = load_config(None, [f"generator.device_budget_bytes={GIB}"])
    needed = sum(memory.needed_on_gpu(config, 80 * GIB).values())
    card_of(monkeypatch, needed - memory.CUDA_BYTES, 80 * GIB)
    memory.check_memory(config, "cuda", threads=1)


def test_a_card_that_is_too_small_is_told_so_whatever_the_budget(monkeypatch):
    config = load_config(None, ["model.name=vit_h"])
    card_of(monkeypatch, 2 * GIB, 2 * GIB)
    with pytest.raises(UsageError, match=r"2 × generator\.device_budget_bytes 0\.50\), there is 2\.00 GiB"):
        memory.check_memory(config, "cuda", threads=1)


def test_a_worker_with_a_part_of_a_gpu_can_allocate_no_more(monkeypatch):
    kept = card_of(monkeypatch, 8 * GIB, 8 * GIB)
    memory.keep_to_share(0.25)
    assert kept == [pytest.approx(0.25 - 0.5 / 8)]  # CUDA's own memory is not torch's
    memory.keep_to_share(1.0)
    memory.keep_to_share(2.0)
    assert len(kept) == 1


def test_a_worker_on_a_gpu_keeps_within_its_part(tmp_path, tiny_settings, monkeypatch):
    """To the point where a GPU would be needed."""
    kept = card_of(monkeypatch, 8 * GIB, 8 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load, sams = maskmill.model.load_sam, []

    def load_here(name, checkpoint, *, device, dtype):
        assert device == "cuda"
        sams.append(load(name, checkpoint, dtype=dtype))
        return sams[0]

    monkeypatch.setattr(maskmill.model, "load_sam", load_here)
    config = load_config(None, [*tiny_settings, "model.device=cuda"])
    generator = make_generator(Job(tmp_path, config, "", threads=1, gpu_share=0.5))
    assert len(kept) == 1
    assert generator.config.device_budget_bytes == memory.budget_on_gpu(config, 4 * GIB)


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

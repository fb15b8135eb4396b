"""The whole GPU benchmark, in one command: parity first, then ViT-H's speed, what the host does, memory.

    python benchmarks/bench_gpu.py --released                # on a GPU: six minutes at most
    python benchmarks/bench_gpu.py --device cpu --small      # the same program, tried out without one

It has not been run on a GPU. Ray, pycocotools, universal_pathlib, typer and rich need not be there, nor an
installed maskmill: benchmarks/README.md says how to bring what is missing to a machine without a network.

Parity is the bundled weights' on drawn scenes: fp32 on the device against the CPU, half precision against
fp32. Speed is that of ViT-H with noise for weights; its masks are drawn, and then exchanged for smooth shapes
(`benchmarks/gpu/bank.py`), for the released generator (`--released`, PyPI `segment-anything`) too. After each
part the JSON is written to a file in --out, in $OUT or in benchmarks/results; it is the last line printed.

Exit code 0, 1 where a part failed (the others are there), 2 for a wrong argument or where torch finds no GPU,
3 where the time was over in the midst of a part.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import attention, parity, waiting
from benchmarks.gpu.report import Report, version_of
from benchmarks.gpu.scenes import scenes
from benchmarks.gpu.speed import SMALL, Bench, Workload
from benchmarks.support.arguments import OneLineParser
from benchmarks.support.click import click
from maskmill import __version__
from maskmill.model.networks.sam import Sam
from maskmill.pipelines.machine import hardware

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    *("torch", "numba", "numpy", "pyarrow", "Pillow", "opencv-python-headless", "triton"),
    *("pydantic", "safetensors", "segment-anything", "ray", "pycocotools"),
)
MOST_SECONDS = 360.0
PATIENCE = 20
"""How many times longer a CPU may take for the whole of it."""

TimeLeft = Callable[[], float]


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: expected a GPU, and torch finds none; try --device cpu --small", file=sys.stderr)
        return 2
    device = torch.device(given.device)
    about = {
        "device": given.device,
        "small": given.small,
        "hardware": hardware(device),
        "versions": {"python": platform.python_version(), "maskmill": __version__}
        | {name: version_of(name) for name in PACKAGES},
    }
    path = given.out / file_name(about["hardware"].get("gpu", "cpu"), datetime.now(UTC))
    slower = 1 if given.small or given.device == "cuda" else PATIENCE
    report = Report(path, about, most_seconds=slower * MOST_SECONDS)
    check_parity(report, device, given.small, slower)
    with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
        measure_speed(report, device, given, slower, Path(folder))
    report.part("attention", 20 * slower, lambda _: {"calls": attention_table(device, given.small)})
    print(f"\n{path}")
    return report.close()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="bench_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny network and few images, to try it out")
    parser.add_argument("--released", action="store_true", help="time the released generator, too")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT") or RESULTS)
    given = parser.parse_args(arguments)
    given.out = Path(given.out)
    return given


def check_parity(report: Report, device: torch.device, small: bool, slower: int) -> None:
    """Whether the masks are right, before how fast they come."""
    images = scenes(2, 192, 256) if small else scenes(24, 384, 512)
    config = parity.lenient(5 if small else 20)
    report.part("parity_fp32", 80 * slower, lambda _: parity.fp32(device, images, config))
    report.part("parity_half", 50 * slower, lambda _: parity.half(device, images, config))


def measure_speed(
    report: Report, device: torch.device, given: argparse.Namespace, slower: int, folder: Path
) -> None:
    """Throughput, and what it is made of, on one network."""
    made: list[Bench] = []

    def prepare(_: TimeLeft) -> dict[str, Any]:
        workload = Workload.chosen(device, given.small)
        made.append(Bench(device, workload, folder))
        report.result["config"] = made[0].config.model_dump(mode="json")
        return {"network": asdict(workload.network), "size": list(workload.size)}

    if not report.part("prepare", 40 * slower, prepare):
        return
    (bench,) = made

    def throughput(time_left: TimeLeft) -> dict[str, Any]:
        found = bench.throughput(time_left)
        report.result |= {name: found[name] for name in ("images_per_s", "masks_per_s")}
        return found

    def released(time_left: TimeLeft) -> dict[str, Any]:
        from benchmarks.gpu.beside_released import released_speed

        found = released_speed(bench, time_left)
        report.result["speedup"] = found["speedup"]
        return found

    report.part("throughput", 90 * slower, throughput)
    report.part("memory", 5, lambda _: bench.memory())
    if given.released:
        report.part("released", 60 * slower, released)
    batch = bench.batch()
    report.part("stages", 15 * slower, lambda _: stage_times(bench))
    report.part("launches_and_waits", 25 * slower, lambda _: host_calls(bench))
    report.part(
        "lock", 15 * slower, lambda _: waiting.kept_waiting(lambda: bench.generator.generate_batch(batch))
    )
    report.part("click", 10 * slower, lambda _: click(bench.sam, 10 if given.small else 50))


def stage_times(bench: Bench) -> dict[str, Any]:
    """Seconds an image of each stage, where each waits for the device."""
    batch = bench.batch()
    with waiting.waiting_at_stages(bench.device):
        results = bench.generator.generate_batch(batch)
    names = results[0].seconds
    return {name: sum(result.seconds[name] for result in results) / len(results) for name in names}


def host_calls(bench: Bench) -> dict[str, Any]:
    """What one batch asks of CUDA; nulls on a CPU."""
    batch = bench.batch()
    if bench.device.type != "cuda":
        return {"images": len(batch), "launches": None, "copies": None, "waits": None, "calls": None}
    return {"images": len(batch)} | waiting.launches_and_waits(lambda: bench.generator.generate_batch(batch))


def attention_table(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """The kernel that each kind of attention gets, in ViT-H's shapes and the fast precision."""
    config = SMALL if small else attention.two_blocks("vit_h")
    sam = Sam(config).eval().to(device).in_precision(torch.bfloat16)
    return attention.table_of(attention.of_network(config, sam, 4 if small else 64), device)


def file_name(device: str, now: datetime) -> str:
    """`NVIDIA H200` on a day → `gpu-nvidia-h200-2026-03-04.json`."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"gpu-{name}-{now:%Y-%m-%d}.json"


if __name__ == "__main__":
    sys.exit(main())

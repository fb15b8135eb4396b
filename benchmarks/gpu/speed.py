"""ViT-H's speed from JPEG files to a committed shard, with noise for weights and a bank's masks.

The path is a run's own (`pipelines.workers.shard`): images decoded ahead in threads, and on a GPU two batches
in flight.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskmill.engine import MaskGenerator
from maskmill.model import MODELS, SamConfig
from maskmill.pipelines.config.run import RunConfig, load_config
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.format.records import PlannedImage, ShardTask
from maskmill.pipelines.machine import peak_rss_bytes
from maskmill.pipelines.workers.shard import run_shard
from maskmill.pipelines.workers.tasks import Job, ShardReceipt

from .bank import Bank, BankSam
from .scenes import Pixels, save_scenes

SMALL = SamConfig(
    img_size=128,
    embed_dim=32,
    depth=2,
    num_heads=2,
    window_size=4,
    global_attn_indexes=(1,),
    out_chans=32,
    decoder_mlp_dim=64,
    decoder_num_heads=2,
    iou_head_hidden_dim=32,
)
"""In ViT-H's place where only the program is tried out."""


@dataclass(frozen=True)
class Workload:
    """How much is timed: images of a pass, passes at most, different photographs, their (height, width)."""

    network: SamConfig
    images: int
    passes: int
    photographs: int
    size: tuple[int, int]
    options: tuple[str, ...] = ()

    @classmethod
    def chosen(cls, device: torch.device, small: bool) -> Workload:
        """128 images on a GPU; on a CPU, where each takes minutes, one; a few tiny ones to try it out."""
        if small:
            grid = ("generator.points_per_side=8", "generator.encode_batch=2")
            return cls(SMALL, 6, 2, 3, (90, 135), grid)
        if device.type == "cuda":
            return cls(MODELS["vit_h"], 128, 3, 8, (1500, 2250))
        return cls(MODELS["vit_h"], 1, 1, 1, (1500, 2250), ("model.precision=fp32",))


class Bench:
    """The network, placed, its generator, and the photographs as files."""

    def __init__(self, device: torch.device, workload: Workload, folder: Path) -> None:
        self.device, self.workload, self.folder = device, workload, folder
        settings = [f"model.device={device.type}", *workload.options]
        self.config: RunConfig = load_config("sam_vit_h", settings)
        dtype = torch.bfloat16 if self.config.model.precision == "bf16" else torch.float32
        self.sam = noise(workload.network, device)
        self.sam.in_precision(dtype)
        self.sam.bank = Bank.drawn(workload.network, workload.size, device, decoder_dtype(self.sam))
        self.generator = MaskGenerator(self.sam, self.config.generator)
        self.files = save_scenes(folder / "photographs", workload.photographs, workload.size)
        self._shards = 0

    def pixels(self, number: int) -> list[Pixels]:
        """Photographs, decoded."""
        most = self.config.input.max_pixels
        files = [self.files[n % len(self.files)] for n in range(number)]
        return [decode_image(path.read_bytes(), most).pixels_HW3 for path in files]

    def shard(self, images: int) -> ShardReceipt:
        """Run so many images as one shard of a corpus, to its commit."""
        planned = tuple(
            PlannedImage(n, f"{n}.jpg", str(self.files[n % len(self.files)]), self._shards, n)
            for n in range(images)
        )
        job = Job(self.folder / "corpus", self.config, "bench")
        receipt = run_shard(ShardTask(self._shards, planned), self.generator, job)
        self._shards += 1
        if not isinstance(receipt, ShardReceipt):
            raise RuntimeError(receipt.reason)
        if receipt.tally.rejects:
            raise RuntimeError(f"refused: {receipt.tally.examples}")
        return receipt

    def throughput(self, time_left: Callable[[], float]) -> dict[str, Any]:
        """Images a second of the median pass, after a first one that compiles and allocates."""
        workload = self.workload
        start = time.perf_counter()
        warm = min(workload.images, 4 * self.config.generator.encode_batch)
        if workload.passes > 1:
            self.shard(warm)
        warm_up = time.perf_counter() - start
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        passes: list[ShardReceipt] = []
        while len(passes) < workload.passes and (not passes or time_left() > 1.5 * passes[-1].seconds):
            passes.append(self.shard(workload.images))
        middle = sorted(passes, key=lambda receipt: receipt.seconds)[len(passes) // 2]
        tally = middle.tally
        return {
            "images": tally.images,
            "passes": [receipt.seconds for receipt in passes],
            "warm_up_seconds": warm_up,
            "seconds": middle.seconds,
            "images_per_s": tally.images / middle.seconds,
            "masks_per_s": tally.masks / middle.seconds,
            "masks_an_image": tally.masks / tally.images,
            "drawn_an_image": (tally.candidates - tally.drops["predicted_iou"]) / tally.images,
            "drops": dict(tally.drops),
            "stages": {name: spent / tally.images for name, spent in tally.seconds.items()},
        }

    def memory(self) -> dict[str, Any]:
        """The most that was held since the throughput was taken; of the GPU None where there is none."""
        gpu = self.device.type == "cuda"
        return {
            "peak_rss_bytes": peak_rss_bytes(),
            "peak_gpu_bytes": torch.cuda.max_memory_allocated(self.device) if gpu else None,
            "peak_gpu_reserved_bytes": torch.cuda.max_memory_reserved(self.device) if gpu else None,
            "weights_bytes": sum(x.nbytes for x in self.sam.parameters()),
        }

    def batch(self) -> list[Pixels]:
        """As many photographs as are encoded together."""
        return self.pixels(min(self.workload.images, self.config.generator.encode_batch))

    def seconds_of(self, images: Sequence[Pixels], repeat: int) -> float:
        """Of arrays to masks, in this thread alone: the median, an image."""
        taken = []
        for _ in range(repeat):
            start = time.perf_counter()
            self.generator.generate_batch(images)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken) / len(images)


@torch.no_grad()
def noise(config: SamConfig, device: torch.device) -> BankSam:
    """Seeded noise for weights, made where it is used: billions of numbers take a CPU a minute."""
    torch.manual_seed(0)
    with torch.device(device):
        sam = BankSam(config).eval()
    for parameter in sam.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=math.prod(parameter.shape[1:]) ** -0.5)
    return sam


def decoder_dtype(sam: BankSam) -> torch.dtype:
    """What masks are drawn in."""
    return next(sam.mask_decoder.parameters()).dtype

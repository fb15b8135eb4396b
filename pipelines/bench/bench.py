"""`maskmill bench`: how fast this machine makes masks, and how fast the released generator does.

    photographs → run_shard() into a corpus that is thrown away, several times → the median run
                → the same arrays through both generators, by turns → ratio, and whether the masks agree

What is timed is the path of a real run: read, decode, generate, write. Against the released generator (PyPI
`segment-anything`) both sides get the same arrays, weights, options and threads, and end with COCO RLE; it
runs in fp32 whatever our precision is, and a mask of ours in bf16 counts as the same from an IoU of 0.95 on.

Where the published weights are not at hand, noise shows the speed of their shapes: `random_sam`.
"""

from __future__ import annotations

import copy
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from ...engine import MaskGenerator
from ...engine.geometry import resize_to_input
from ...model import MODELS, Sam, load_sam
from ..config.run import RunConfig
from ..decoding.image import decode_image
from ..errors import ConfigError, UsageError
from ..format.plan import PlannedImage, make_plan
from ..inputs.listing import list_inputs
from ..inputs.reader import read_input
from ..workers.shard import make_generator, resolve_device, run_shard
from ..workers.tasks import Job, ShardReceipt, ShardTask, Tally

DEFAULT_SIZE = (1500, 2250)
"""Height and width of the photograph that is taken where none is given."""

PACKAGES = ("maskmill", "torch", "numba", "numpy", "opencv-python", "pycocotools", "Pillow", "pyarrow")


@dataclass(frozen=True, slots=True)
class Timed:
    """One pass over the photographs: seconds of the clock, and what was done."""

    seconds: float
    tally: Tally


def bench(
    inputs: Sequence[str],
    config: RunConfig,
    *,
    size: tuple[int, int] | None = None,
    repeat: int = 3,
    threads: int | None = None,
    released: bool = False,
    random_weights: bool = False,
) -> dict[str, Any]:
    """Time the photographs of `inputs` (none: scikit-image's `coffee`, at `DEFAULT_SIZE`); plain JSON values.

    `size` is the (height, width) that they are brought to first. Raises UsageError where nothing is found, an
    image is refused or a package is missing; ConfigError for options that the released generator lacks.
    """
    if released:
        check_comparable(config)
    size = size or (None if inputs else DEFAULT_SIZE)
    with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
        photographs = _photographs(inputs, config, size, Path(folder))
        job = Job(Path(folder) / "corpus", config, "bench", threads or config.threads_per_worker)
        if random_weights:
            noise = random_sam(config.model.name, _pixels(photographs[0], config))
            if job.threads is not None:
                torch.set_num_threads(job.threads)
            generator = MaskGenerator(_placed(noise, config), config.generator)
        else:
            generator = make_generator(job)
        warm_up = _pass(0, photographs, generator, job)  # whatever is compiled, loaded or tried out first
        passes = [_pass(number, photographs, generator, job) for number in range(1, repeat + 1)]
        middle = sorted(passes, key=lambda timed: timed.seconds)[len(passes) // 2]
        tally = middle.tally
        result: dict[str, Any] = {
            "images": tally.images,
            "masks": tally.masks,
            "seconds": middle.seconds,
            "images_per_s": tally.images / middle.seconds,
            "masks_per_s": tally.masks / middle.seconds,
            "stages": dict(tally.seconds),
            "drops": dict(tally.drops),
            "peak_rss_bytes": peak_rss_bytes(),
            "warm_up_seconds": warm_up.seconds - middle.seconds,
        }
        if generator.sam.device.type == "cuda":
            result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(generator.sam.device)
        if released:
            exact = noise if random_weights else load_sam(config.model.name, config.model.checkpoint)
            result |= _against_released(photographs, generator, exact, config, repeat)
    versions = (*PACKAGES, "segment-anything") if released else PACKAGES
    return result | {
        "config": config.model_dump(mode="json")
        | {"size": size and list(size), "repeat": repeat, "random_weights": random_weights},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in versions},
        "hardware": hardware(generator.sam.device),
    }


def check_comparable(config: RunConfig) -> None:
    """Raise what `bench` raises where the released generator cannot do the same."""
    if config.generator.drop_small_masks or config.generator.max_mask_area_fraction is not None:
        raise ConfigError(
            "--against released: it has no drop_small_masks and no max_mask_area_fraction; "
            "set them to false and null"
        )
    if config.model.name == "vit_t":
        raise ConfigError("--against released: it has no TinyViT encoder; choose another model.name")
    try:
        metadata.version("segment-anything")
    except metadata.PackageNotFoundError:
        raise UsageError("--against released: pip install 'maskmill[bench]'") from None


def _photographs(
    inputs: Sequence[str], config: RunConfig, size: tuple[int, int] | None, folder: Path
) -> list[PlannedImage]:
    """The photographs of one shard; where they have to be resized, as JPEG files in `folder`."""
    if not inputs:
        inputs = [str(_sample(folder, size or DEFAULT_SIZE))]
        size = None
    planned = _planned(inputs, config)
    if size is None:
        return planned
    resized = folder / "resized"
    resized.mkdir()
    for image in planned:
        _save(Image.fromarray(_pixels(image, config)), resized / f"{image.image_id}.jpg", size)
    return _planned([str(resized)], config)


def _planned(inputs: Sequence[str], config: RunConfig) -> list[PlannedImage]:
    table = list_inputs(inputs, config.input.extensions, config.input.image_column)
    rows = make_plan(table, max(1, len(table))).to_pylist()
    return [PlannedImage(**row, row=number) for number, row in enumerate(rows)]


def _sample(folder: Path, size: tuple[int, int]) -> Path:
    try:
        from skimage import data
    except ImportError:
        raise UsageError(
            "expected --images INPUT, or pip install 'maskmill[bench]' for a photograph"
        ) from None
    path = folder / "coffee.jpg"
    _save(Image.fromarray(data.coffee()), path, size)
    return path


def _save(image: Image.Image, path: Path, size: tuple[int, int]) -> None:
    image.resize(size[::-1], Image.Resampling.BICUBIC).save(path, quality=95)


def _pixels(image: PlannedImage, config: RunConfig) -> npt.NDArray[np.uint8]:
    return decode_image(read_input(image.uri), config.input.max_pixels).pixels_HW3


def _pass(shard: int, photographs: list[PlannedImage], generator: MaskGenerator, job: Job) -> Timed:
    """Run the photographs as one shard of a corpus, to its commit."""
    start = time.perf_counter()
    receipt = run_shard(ShardTask(shard, tuple(photographs)), generator, job)
    seconds = time.perf_counter() - start
    if not isinstance(receipt, ShardReceipt):
        raise UsageError(f"the photographs could not be run: {receipt.reason}")
    if receipt.tally.rejects:
        raise UsageError(f"cannot be timed, refused: {next(iter(receipt.tally.examples.values()))}")
    return Timed(seconds, receipt.tally)


def _against_released(
    photographs: list[PlannedImage], generator: MaskGenerator, exact: Sam, config: RunConfig, repeat: int
) -> dict[str, Any]:
    """Both generators over the same arrays: seconds of each, their ratio, and how many masks agree.

    `exact` are the weights in fp32, for the released one.
    """
    from .released import Agreement, compare, released_generator

    theirs = released_generator(exact.config, exact.state_dict(), **released_options(config))
    theirs.predictor.model.to(generator.sam.device)
    min_iou = 0.99 if config.model.precision == "fp32" else 0.95
    ours_s, theirs_s = 0.0, 0.0
    agreement = Agreement.none()
    for image in photographs:
        pixels = _pixels(image, config)
        with torch.inference_mode():
            theirs.predictor.set_image(pixels[:64, :64])  # warm-up: a whole image would double a long wait
            start = time.perf_counter()
            records = theirs.generate(pixels)
            theirs_s += time.perf_counter() - start
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            masks = generator.generate(pixels)
            times.append(time.perf_counter() - start)
        ours_s += statistics.median(times)
        agreement += compare(masks, records, min_iou)
    return {
        "generator_seconds": ours_s,
        "released_seconds": theirs_s,
        "speedup": theirs_s / ours_s,
        "matched": agreement.share,
        "released_masks": agreement.theirs,
    }


def sample_pixels(
    inputs: Sequence[str], config: RunConfig, size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """The first photograph that `bench` would time."""
    with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
        return _pixels(_photographs(inputs, config, size, Path(folder))[0], config)


def of_noise(config: RunConfig, pixels_HW3: npt.NDArray[np.uint8]) -> Sam:
    """The network of noise that `bench` times where the first photograph is this one."""
    return _placed(random_sam(config.model.name, pixels_HW3), config)


def _placed(noise: Sam, config: RunConfig) -> Sam:
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    sam = copy.deepcopy(noise).to(resolve_device(config.model.device)).in_precision(dtype)
    if config.model.compile:
        sam.compile_encoder()
    return sam


@torch.no_grad()
def random_sam(name: str, pixels_HW3: npt.NDArray[np.uint8]) -> Sam:
    """A network of seeded noise, in fp32, that leaves masks to work on.

    On this photograph its predicted IoUs spread about 0.5 by 0.1, and its logits about 0 by 10: as much
    passes as the thresholds let through.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = Sam(MODELS[name]).eval()
        for parameter in sam.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if len(parameter) == 1 else parameter[0].numel() ** -0.5)
        resized = torch.from_numpy(resize_to_input(pixels_HW3, sam.config.img_size))
        encoded = sam.encode([resized.permute(2, 0, 1)])
        points_1P12 = torch.rand(1, 32, 1, 2) * torch.tensor(resized.shape[1::-1])
    decoded = sam.attend(encoded, points_1P12, torch.ones(1, 32, 1, dtype=torch.int64))
    logits = sam.draw(decoded, torch.arange(32), torch.ones(32, dtype=torch.int64))
    for head in sam.mask_decoder.output_hypernetworks_mlps:
        linear = _last_linear(head)
        linear.weight.mul_(10 / logits.std())
        linear.bias.mul_(10 / logits.std())
    linear, iou_PM = _last_linear(sam.mask_decoder.iou_prediction_head), decoded.iou_BPM[0]
    linear.weight.mul_(0.1 / iou_PM.std(0)[:, None])
    linear.bias.copy_(0.5 + (linear.bias - iou_PM.mean(0)) * 0.1 / iou_PM.std(0))
    return sam


def _last_linear(head: nn.Module) -> nn.Linear:
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]


def released_options(config: RunConfig) -> dict[str, Any]:
    """The released generator's arguments for the same masks."""
    names = (
        "points_per_side",
        "pred_iou_thresh",
        "stability_score_thresh",
        "stability_score_offset",
        "box_nms_thresh",
        "crop_n_layers",
        "crop_nms_thresh",
        "crop_overlap_ratio",
        "crop_n_points_downscale_factor",
        "min_mask_region_area",
    )
    return {name: getattr(config.generator, name) for name in names} | {"output_mode": "coco_rle"}


def parse_size(text: str) -> tuple[int, int]:
    """`1500x2250` → (1500, 2250): height and width. Raises UsageError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", text.strip().lower())
    if not match:
        raise UsageError(f"--size: expected HEIGHTxWIDTH in pixels, for example 1500x2250, got {text!r}")
    return int(match[1]), int(match[2])


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor's name, as Linux tells it, its cores, torch's threads, and the GPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = {
        "processor": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})

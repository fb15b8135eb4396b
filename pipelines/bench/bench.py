"""`maskmill bench`: how fast this machine makes masks, and how fast the released generator does.

    photographs → run_shard() into a corpus that is thrown away, several times → the median run
                → the same arrays through both generators, by turns → ratio, and whether the masks agree

What is timed is the path of a real run: read, decode, generate, write. Against the released generator (PyPI
`segment-anything`) both sides get the same arrays, weights, options and threads, and end with COCO RLE; it
runs in fp32 whatever our precision is, and a mask of ours in bf16 counts as the same from an IoU of 0.95 on.

Where the published weights are not at hand, noise shows the speed of their shapes: `random_sam`.
"""

from __future__ import annotations

import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.table import Table

from ... import __version__
from ...engine import MaskGenerator
from ...model import Sam, load_sam
from ...model.config import THRESHOLDS
from ..config.run import RunConfig
from ..decoding.image import decode_image
from ..errors import ConfigError, UsageError
from ..extras import pip_install
from ..format.plan import make_plan
from ..format.records import PlannedImage, ShardTask
from ..format.tally import Tally
from ..inputs.listing import list_inputs
from ..inputs.reader import read_input
from ..machine import hardware, peak_rss_bytes
from ..workers.loading import make_generator, with_thresholds
from ..workers.shard import run_shard
from ..workers.tasks import Job, ShardReceipt
from .random_weights import placed, random_sam

DEFAULT_SIZE = (1500, 2250)
"""Height and width of the photograph that is taken where none is given."""

PACKAGES = ("torch", "numba", "numpy", "pycocotools", "Pillow", "pyarrow")


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
    image is rejected or a package is missing; ConfigError for options that the released generator lacks.
    """
    if released:
        check_comparable(config)
    noise_thresholds = THRESHOLDS[config.model.name]
    config = config.with_thresholds(noise_thresholds) if random_weights else with_thresholds(config)
    size = size or (None if inputs else DEFAULT_SIZE)
    with tempfile.TemporaryDirectory(prefix="maskmill-bench-") as folder:
        photographs = _photographs(inputs, config, size, Path(folder))
        job = Job(Path(folder) / "corpus", config, "bench", threads or config.threads_per_worker)
        if random_weights:
            noise = random_sam(config.model.name, _pixels(photographs[0], config))
            if job.threads is not None:
                torch.set_num_threads(job.threads)
            generator = MaskGenerator(placed(noise, config), config.generator)
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
        "versions": {"python": platform.python_version(), "maskmill": __version__}
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
    if config.generator.min_mask_region_area:
        from ..opencv import cv2  # noqa: F401  (its clean-up computes with it)
    try:
        metadata.version("segment-anything")
    except metadata.PackageNotFoundError:
        raise UsageError(f"--against released needs the released generator: {pip_install('bench')}") from None


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
            f"expected --images INPUT, or one of scikit-image's: {pip_install('bench')}"
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
        raise UsageError(f"the images could not be run: {receipt.reason}")
    if receipt.tally.rejects:
        raise UsageError(f"cannot be timed, rejected: {next(iter(receipt.tally.examples.values()))}")
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


def bench_tables(result: Mapping[str, Any]) -> Iterable[Table]:
    """What was measured, for a person."""
    stages = Table("stage", "seconds per image", title="image to Parquet", title_justify="left")
    stages.columns[1].justify = "right"
    for stage, seconds in result["stages"].items():
        stages.add_row(stage, f"{seconds / result['images']:.4f}")
    stages.add_section()
    stages.add_row("elapsed", f"{result['seconds'] / result['images']:.4f}")
    stages.add_row("images/s", f"{result['images_per_s']:.3f}")
    stages.add_row("masks/s", f"{result['masks_per_s']:.1f}")
    stages.add_row("peak memory, GiB", f"{result['peak_rss_bytes'] / 2**30:.2f}")
    yield stages
    if "speedup" in result:
        sides = Table("array to RLE", "seconds", "masks", title_justify="left")
        sides.add_row("maskmill", f"{result['generator_seconds']:.2f}", str(result["masks"]))
        sides.add_row("released", f"{result['released_seconds']:.2f}", str(result["released_masks"]))
        sides.add_row("ratio", f"{result['speedup']:.1f}×", f"{result['matched']:.1%} matched")
        yield sides

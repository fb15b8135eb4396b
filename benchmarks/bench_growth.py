"""How the time an image takes grows: with the grid of points, with its pixels, and with its masks.

    python -m benchmarks.bench_growth

One photograph (scikit-image's `coffee`, or --image), the bundled weights and their preset, from the array to
run-length codes, a point of each curve at a time. Beside each stands the floor: the matrix products of the
network, counted from its shapes (`benchmarks/support/flops.py`), at the best rate at which this machine
multiplies matrices. Prints a table for people and JSON on the last line; writes the JSON to
benchmarks/results/ and the plot to docs/growth.png. Takes about a minute on two CPUs that are otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least
from benchmarks.support.flops import decoder_flops, encoder_flops, published_decoder_flops
from benchmarks.support.growth_steps import Plan, Step, full_plan, quick_plan
from benchmarks.support.machine import Watch, forget_peak, matrix_rate, peak_since, short_name, versions
from benchmarks.support.photograph import read_photograph
from maskmill.engine import MaskGenerator
from maskmill.engine.records import GeneratedMasks
from maskmill.model import SamConfig, load_sam
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.machine import hardware

ROOT = Path(__file__).parents[1]
MODEL = "nano"
NETWORK = ("encode", "prompt", "draw")
"""The stages that the floor counts; the others, from `resize` to `rle`, touch pixels and masks."""

PACKAGES = ("maskmill", "torch", "numpy", "numba", "opencv-python", "pycocotools", "Pillow")
OPTIONS = ("points_per_side", "pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
ONE_GRID = {"crop_n_layers": 0, "min_mask_region_area": 100}
"""What the preset is changed to throughout: one grid, and the clean-up that the preset does without."""


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, metavar="FILE", help="another photograph")
    parser.add_argument("--repeat", type=at_least(1), default=3, help="runs a point; the median counts")
    parser.add_argument("--threads", type=at_least(1), help="of the CPU; torch's own choice where not given")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="for the JSON; benchmarks/results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="for the plot; docs/growth.png")
    parser.add_argument(
        "--quick", action="store_true", help="tiny, to see that it runs; writes only where told to"
    )
    given = parser.parse_args()
    try:
        photograph = read_photograph(given.image)
        from benchmarks.support.growth_plot import plot
    except ImportError as error:
        parser.error(f"expected {error.name}: pip install '.[bench]'")
    except OSError as error:
        parser.error(f"--image: expected a photograph, got {given.image}: {error}")
    if given.threads:
        torch.set_num_threads(given.threads)
    result = measure(photograph, quick_plan() if given.quick else full_plan(given.repeat))
    result["config"]["image"] = given.image.name if given.image else "skimage.data.coffee"
    show(result)
    results = given.results or (None if given.quick else ROOT / "benchmarks" / "results")
    picture = given.plot or (None if given.quick else ROOT / "docs" / "growth.png")
    if results:
        results.mkdir(parents=True, exist_ok=True)
        name = f"growth-{short_name(result['hardware']['processor'])}.json"
        (results / name).write_text(json.dumps(result, indent=1) + "\n")
    if picture:
        plot(result, picture)
    print(json.dumps(result))


def measure(photograph: Image.Image, plan: Plan) -> dict[str, Any]:
    """All points of the plan, and what they were measured on."""
    sam = load_sam(MODEL)
    preset = load_config(MODEL).generator.model_copy(update=ONE_GRID)
    with Watch() as watch:
        rate = matrix_rate(plan.matrix_sides, plan.matrix_seconds)
        MaskGenerator(sam, preset.model_copy(update={"points_per_side": 4})).generate(
            resized(photograph, (120, 180))  # compiles what is compiled on first use
        )
        steps = []
        for step in track(plan.steps, "measuring", console=Console(stderr=True)):
            config = preset.model_copy(update=dict(step.options))
            pixels = resized(photograph, step.size)
            steps.append(measure_step(step, MaskGenerator(sam, config), pixels, plan.repeat, rate))
    return {
        "steps": steps,
        "matrix_flops_per_s": rate,
        "quiet": watch.quiet,
        "others_share": watch.others,
        "config": {"model": MODEL, "generator": preset.model_dump(mode="json"), "repeat": plan.repeat},
        "versions": versions(PACKAGES),
        "hardware": hardware(sam.device),
    }


def resized(photograph: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(photograph.resize(size[::-1], Image.Resampling.BICUBIC))


def measure_step(
    step: Step, generator: MaskGenerator, pixels_HW3: npt.NDArray[np.uint8], repeat: int, rate: float
) -> dict[str, Any]:
    """The median run of a point, its stages, and the floor of its network."""
    knows_peak = forget_peak()
    with counted_drawing(generator) as drawn:
        runs = [timed(generator, pixels_HW3) for _ in range(repeat)]
    middle = statistics.median_low([seconds for seconds, _ in runs])
    result = next(result for seconds, result in runs if seconds == middle)
    config = generator.config
    prompts, drawn_prompts = config.points_per_side**2, sum(drawn) // repeat
    network = sum(result.seconds[stage] for stage in NETWORK)
    return {
        "curve": step.curve,
        "height": step.size[0],
        "width": step.size[1],
        "megapixels": step.size[0] * step.size[1] / 1e6,
        **{name: getattr(config, name) for name in OPTIONS},
        "seconds": middle,
        "fastest": min(seconds for seconds, _ in runs),
        "network_seconds": network,
        "pixel_seconds": middle - network,
        "stages": result.seconds,
        "masks": len(result.masks),
        "candidates": result.candidates,
        "drawn_masks": result.candidates - result.drops["predicted_iou"],
        "drawn_prompts": drawn_prompts,
        "peak_rss_bytes": peak_since() if knows_peak else None,
        **floors(generator.sam.config, prompts, drawn_prompts, rate),
    }


def timed(generator: MaskGenerator, pixels_HW3: npt.NDArray[np.uint8]) -> tuple[float, GeneratedMasks]:
    start = time.perf_counter()
    (result,) = generator.generate_batch([pixels_HW3])
    return time.perf_counter() - start, result


@contextmanager
def counted_drawing(generator: MaskGenerator) -> Iterator[list[int]]:
    """In the block, how many prompts each call of `Sam.draw` was about."""
    sam, calls = generator.sam, []
    draw = sam.draw

    def noted(decoded: Any, prompt_K: torch.Tensor, token_K: torch.Tensor) -> torch.Tensor:
        calls.append(len(prompt_K.unique()))
        return draw(decoded, prompt_K, token_K)

    sam.draw = noted  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del sam.draw


def floors(config: SamConfig, prompts: int, drawn: int, rate: float) -> dict[str, float]:
    """Seconds that the network's matrix products alone take at this rate: ours, and the published form's."""
    encoder = encoder_flops(config) / rate
    decoder = decoder_flops(config).total(prompts, drawn) / rate
    published = published_decoder_flops(config).total(prompts, prompts) / rate
    return {
        "encoder_floor_seconds": encoder,
        "floor_seconds": encoder + decoder,
        "published_floor_seconds": encoder + published,
    }


def show(result: Mapping[str, Any]) -> None:
    busy = "" if result["quiet"] else ", other programs at work"
    rate, machine = result["matrix_flops_per_s"] / 1e9, result["hardware"]
    table = Table(title=f"{machine['processor']}, threads: {machine['threads']}, {rate:.0f} GFLOP/s{busy}")
    for heading in ("", "points", "Mpx", "masks", "drawn", "s", "network", "floor", "pixels", "MiB"):
        table.add_column(heading, justify="right" if heading else "left")
    for step in result["steps"]:
        peak = step["peak_rss_bytes"]
        table.add_row(
            step["curve"],
            f"{step['points_per_side']}²",
            f"{step['megapixels']:.2f}",
            str(step["masks"]),
            str(step["drawn_masks"]),
            f"{step['seconds']:.2f}",
            f"{step['network_seconds']:.2f}",
            f"{step['floor_seconds']:.2f}",
            f"{step['pixel_seconds']:.2f}",
            f"{peak / 2**20:.0f}" if peak else "",
        )
    Console(file=sys.stdout, width=100).print(table)


if __name__ == "__main__":
    main()

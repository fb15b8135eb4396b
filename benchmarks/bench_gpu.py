"""The whole GPU benchmark, in one command: photographs to Parquet, the released generator, and a click.

    python benchmarks/bench_gpu.py --images photos/

It has not been run on a GPU: it was written, and tested as far as that goes, where there was none.

ViT-H with weights of noise in bf16, a grid of 32×32, photographs brought to 1500×2250. Speed depends on
shapes and on how many masks are drawn and kept, not on what they show, so thresholds are searched first by
which about `--masks` masks an image survive, after about three times as many were drawn. Two things are not
like trained weights. Noise gives every prompt nearly the same mask, of which NMS would leave one: so NMS is
turned off (a threshold of 1), for both generators. And such a mask is scattered over half of the image, so
that painting and coding it costs more than a real one. The released generator suppresses by the stand-in of
`maskmill.pipelines.bench.released`, a box at a time.

Prints the speed, and writes benchmarks/results/GPU-DATE.json: its JSON (hardware, versions,
configuration, time of the warm-up, seconds of each stage) with the single click's under `point`. Exit code 2
and one line where torch finds no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from maskmill.engine import GeneratedMasks, MaskGenerator
from maskmill.pipelines.bench.bench import DEFAULT_SIZE, bench, parse_size, sample_pixels
from maskmill.pipelines.bench.random_weights import of_noise
from maskmill.pipelines.config.run import RunConfig, load_config
from maskmill.pipelines.errors import UsageError

HERE = Path(__file__).parent

DRAWN_A_MASK = 3
"""Candidates that pass the predicted IoU for each mask that is to survive."""

HALVINGS = 12
"""Steps of the search: thresholds to three digits."""


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if not torch.cuda.is_available():
        print("bench_gpu: expected a GPU, and torch finds none", file=sys.stderr)
        return 2
    try:
        config, size = load_config("sam_vit_h", given.set), parse_size(given.size)
        config = with_thresholds(config, given.images, size, given.masks)
        released = not given.without_released
        result = bench(
            given.images, config, size=size, repeat=given.repeat, released=released, random_weights=True
        )
    except UsageError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 2
    result["point"] = click(config.model.precision)
    path = write(result, HERE / "results", torch.cuda.get_device_name(), datetime.now(UTC))
    print(f"{result['images_per_s']:.1f} images/s, {result['masks'] / result['images']:.0f} masks an image")
    if "speedup" in result:
        print(
            f"{result['speedup']:.1f} times the released generator, {result['matched']:.1%} of masks matched"
        )
    print(f"warm-up {result['warm_up_seconds']:.1f} s, a click {1000 * result['point']['seconds']:.2f} ms")
    print(path)
    print(json.dumps(result))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", action="append", default=[], help="as of maskmill bench; a sample else")
    parser.add_argument(
        "--size", default="{}x{}".format(*DEFAULT_SIZE), help="HEIGHTxWIDTH they are brought to"
    )
    parser.add_argument("--masks", type=int, default=100, help="that survive an image")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--without-released", action="store_true", help="it takes minutes an image")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as of maskmill")
    return parser.parse_args(arguments)


def with_thresholds(config: RunConfig, images: list[str], size: tuple[int, int], masks: int) -> RunConfig:
    """The configuration with thresholds by which about that many masks survive on the first photograph."""
    pixels_HW3 = sample_pixels(images, config, size)
    sam = of_noise(config, pixels_HW3)

    def generated(**thresholds: float) -> tuple[RunConfig, GeneratedMasks]:
        options = config.generator.model_copy(update={"box_nms_thresh": 1.0, **thresholds})
        (result,) = MaskGenerator(sam, options).generate_batch([pixels_HW3])
        return config.model_copy(update={"generator": options}), result

    def confident(threshold: float) -> bool:
        _, result = generated(pred_iou_thresh=threshold, stability_score_thresh=0.0)
        return result.candidates - result.drops["predicted_iou"] >= DRAWN_A_MASK * masks

    iou = greatest(confident)
    stability = greatest(
        lambda threshold: (
            len(generated(pred_iou_thresh=iou, stability_score_thresh=threshold)[1].masks) >= masks
        )
    )
    return generated(pred_iou_thresh=iou, stability_score_thresh=stability)[0]


def greatest(enough: Callable[[float], bool]) -> float:
    """The greatest threshold in 0…1, nearly, that leaves enough; 0 where none does."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def click(precision: str) -> dict[str, Any]:
    """One point on an encoded image, by `bench_point.py` in a process of its own."""
    command = [sys.executable, str(HERE / "bench_point.py")]
    command += ["--model", "vit_h", "--device", "cuda", "--precision", precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    timed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return timed


def write(result: dict[str, Any], folder: Path, gpu: str, now: datetime) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    path = folder / f"{name}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())

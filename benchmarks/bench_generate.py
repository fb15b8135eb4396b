"""One photograph, two generators, one run: ours beside the released one, with the same weights.

    python benchmarks/bench_generate.py --size 1500x2250 --points-per-side 32

    python benchmarks/bench_generate.py --model vit_b --random --precision bf16
    python benchmarks/bench_generate.py --size 8165x12247 --skip-released      # peak memory

Both go from an RGB array to COCO RLE records with the same options and the same number of threads. Prints a
table for people and one line of JSON, the last. Thresholds are the nano preset's unless given: how long the
released generator takes depends on how many masks pass, so say which you used. In bf16 a mask counts as
matched from an IoU of 0.95 on, in fp32 from 0.99.

`--random` takes seeded noise for weights, where the published ones are not at hand: the predicted IoUs are
then scaled to spread about 0.5 by 0.1 and the logits to a deviation of 10, so that the thresholds leave some.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine import GeneratorConfig, MaskGenerator
from engine.geometry import resize_to_input
from model import MODELS, Sam, load_sam
from pipelines.config import load_config
from pipelines.released import compare, released_generator

SHARED_OPTIONS = (
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
PACKAGES = ("torch", "numpy", "segment-anything", "opencv-python", "pycocotools", "Pillow")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photo", type=Path, help="a photograph (default: scikit-image's coffee)")
    parser.add_argument("--size", default="1500x2250", help="height x width that it is resized to")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--random", action="store_true", help="noise for weights; --model names the shapes")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours")
    parser.add_argument("--config", default="nano", help="preset whose generator options are used")
    parser.add_argument("--points-per-side", type=int)
    parser.add_argument("--pred-iou-thresh", type=float)
    parser.add_argument("--stability-score-thresh", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of ours; the median counts")
    parser.add_argument("--skip-released", action="store_true")
    return parser.parse_args()


def photograph(path: Path | None, size: str) -> np.ndarray:
    height, width = (int(side) for side in size.lower().split("x"))
    if path is None:
        from skimage import data

        image = Image.fromarray(data.coffee())
    else:
        image = Image.open(path).convert("RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def generator_config(given: argparse.Namespace) -> GeneratorConfig:
    names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    preset = load_config(given.config).generator.model_dump()
    config = GeneratorConfig(**preset | changes)
    if config.drop_small_masks or config.max_mask_area_fraction is not None:
        raise SystemExit(f"--config {given.config}: the released generator lacks options that it sets")
    return config


@torch.no_grad()
def random_sam(name: str, image: np.ndarray) -> Sam:
    """A network of noise whose predicted IoUs and logits are spread as said above, on this photograph."""
    torch.manual_seed(0)
    sam = Sam(MODELS[name]).eval()
    for parameter in sam.parameters():
        if parameter.ndim > 1 and len(parameter) > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif parameter.ndim > 1:
            parameter.normal_(std=0.5)
    resized = resize_to_input(image, sam.config.img_size)
    encoded = sam.encode([torch.from_numpy(resized).permute(2, 0, 1)])
    points_1P12 = torch.rand(1, 32, 1, 2) * torch.tensor(resized.shape[1::-1])
    decoded = sam.attend(encoded, points_1P12, torch.ones(1, 32, 1, dtype=torch.int64))
    logits = sam.draw(decoded, torch.arange(32), torch.ones(32, dtype=torch.int64))
    for head in sam.mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].weight *= 10 / logits.std()
        head.layers[-1].bias *= 10 / logits.std()
    last, iou_PM = sam.mask_decoder.iou_prediction_head.layers[-1], decoded.iou_BPM[0]
    last.weight *= 0.1 / iou_PM.std(0)[:, None]
    last.bias.copy_(0.5 + (last.bias - iou_PM.mean(0)) * 0.1 / iou_PM.std(0))
    return sam


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    image, config = photograph(given.photo, given.size), generator_config(given)
    sam = random_sam(given.model, image) if given.random else load_sam(given.model, given.checkpoint)
    weights = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    half = given.precision == "bf16"
    ours = MaskGenerator(sam.to(torch.bfloat16 if half else torch.float32), config)
    ours.generate(image)  # warm-up
    runs = []
    for _ in range(given.repeat):
        start = time.perf_counter()
        [generated] = ours.generate_batch([image])
        runs.append((time.perf_counter() - start, generated))
    seconds, generated = sorted(runs, key=lambda run: run[0])[len(runs) // 2]

    result: dict[str, Any] = {
        "images_per_s": 1 / seconds,
        "masks_per_s": len(generated.masks) / seconds,
        "seconds": seconds,
        "masks": len(generated.masks),
        "stages": generated.seconds,
        "drops": generated.drops,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if not given.skip_released:
        options = {name: getattr(config, name) for name in SHARED_OPTIONS}
        theirs = released_generator(sam.config, weights, output_mode="coco_rle", **options)
        with torch.inference_mode():
            theirs.predictor.set_image(image[:64, :64])  # warm-up: a whole image would double a long wait
            start = time.perf_counter()
            released_records = theirs.generate(image)
            released_seconds = time.perf_counter() - start
        agreement = compare(generated.masks, released_records, min_iou=0.95 if half else 0.99)
        result |= {
            "released_seconds": released_seconds,
            "released_masks": len(released_records),
            "speedup": released_seconds / seconds,
            "matched": agreement.share,
        }
    result |= {
        "config": {
            "model": given.model,
            "precision": given.precision,
            "random": given.random,
            "size": given.size,
            "generator": config.model_dump(mode="json"),
        },
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "hardware": {"processor": processor(), "cpus": os.cpu_count(), "threads": given.threads},
    }
    show(result)
    print(json.dumps(result))


def processor() -> str:
    """The CPU's name, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(result: dict[str, Any]) -> None:
    table = Table(title=" ".join(result["config"][key] for key in ("model", "precision", "size")))
    for heading in ("", "seconds an image", "masks"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("maskmill", f"{result['seconds']:.2f}", str(result["masks"]))
    for stage, seconds in result["stages"].items():
        table.add_row(f"  {stage}", f"{seconds:.2f}")
    table.add_row("peak memory, GiB", f"{result['peak_rss_bytes'] / 2**30:.1f}", "")
    if "speedup" in result:
        table.add_row("released", f"{result['released_seconds']:.2f}", str(result["released_masks"]))
        table.add_row("ratio", f"{result['speedup']:.1f}×", f"{result['matched']:.1%} matched")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()

"""The encoder's part of a training step on the CPU, with attention in parts and with PyTorch's own.

    python -m benchmarks.bench_training --size 512 --images 4

Forward and backward of noise, in turns within one run; medians. Prints a line for people and one of JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from unittest import mock

import torch

from benchmarks.support.arguments import OneLineParser, at_least
from benchmarks.support.machine import Watch, versions
from maskmill.model import MODELS
from maskmill.model.networks import image_encoder
from maskmill.model.networks.attention import fused, in_parts
from maskmill.model.networks.image_encoder import ImageEncoderViT
from maskmill.pipelines.machine import hardware


def main(arguments: list[str] | None = None) -> None:
    """Time both and print the ratio."""
    parser = OneLineParser(prog="bench_training.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="nano", choices=[n for n in MODELS if MODELS[n].encoder == "vit"])
    parser.add_argument("--size", type=at_least(64), default=512, help="pixels; whole patches of 16")
    parser.add_argument("--images", type=at_least(1), default=4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--repeat", type=at_least(1), default=10)
    given = parser.parse_args(arguments)
    if given.size % 16:
        parser.error(f"argument --size: expected a multiple of 16, got {given.size}")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    encoder = ImageEncoderViT(MODELS[given.model])
    pixels = torch.randn(given.images, 3, given.size, given.size)

    def step(attention: Callable[..., torch.Tensor]) -> float:
        start = time.perf_counter()
        with mock.patch.object(image_encoder, "attend", attention):
            with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
                loss = encoder(pixels).float().square().mean()
            loss.backward()
        return time.perf_counter() - start

    ways = {"in_parts": in_parts, "fused": fused}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with Watch() as watch:
        for _ in range(given.repeat + 1):
            for name, attention in ways.items():
                seconds[name].append(step(attention))
    middle = {name: median(times[1:]) for name, times in seconds.items()}
    ratio = middle["fused"] / middle["in_parts"]
    both = f"{middle['in_parts']:.3f} s a step in parts, {middle['fused']:.3f} s fused"
    print(f"{both}: {ratio:.2f} times as fast")
    result = {**vars(given), **middle, "ratio": ratio, "quiet": watch.quiet}
    print(json.dumps(result | {"versions": versions(("torch",)), "hardware": hardware(torch.device("cpu"))}))


if __name__ == "__main__":
    main()

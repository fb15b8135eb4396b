"""The released generator (PyPI `segment-anything`) on the same photographs, with the same bank's masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn

from .bank import Bank, answering
from .speed import Bench

TIMED = 8
"""Images at most; each takes seconds."""


@contextmanager
def torchs_convolutions() -> Iterator[None]:
    """Let cuDNN's convolutions take TF32 in the block, as they do if nobody says otherwise."""
    before, cudnn.allow_tf32 = cudnn.allow_tf32, True
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def released_speed(bench: Bench, time_left: Callable[[], float]) -> dict[str, Any]:
    """Seconds an image from array to run lengths, after an image that is not timed, beside ours.

    It runs in fp32 as released, by torch's defaults (convolutions in TF32), with the same options and noise.
    Its codes stay uncompressed, since compressing needs pycocotools: some milliseconds less work for it. Its
    NMS is a loop on the CPU in place of torchvision's: some milliseconds more. Raises ModuleNotFoundError
    without the package.
    """
    from maskmill.pipelines.bench.released import released_generator

    config = bench.generator.config
    state = {name: value.float() for name, value in bench.sam.state_dict().items()}
    theirs = released_generator(
        bench.workload.network,
        state,
        points_per_side=config.points_per_side,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        stability_score_offset=config.stability_score_offset,
        box_nms_thresh=config.box_nms_thresh,
        output_mode="uncompressed_rle",
    )
    network = theirs.predictor.model.to(bench.device)
    images = bench.pixels(min(TIMED, bench.workload.images))
    bank = Bank.drawn(bench.workload.network, bench.workload.size, bench.device, torch.float32)
    seconds: list[float] = []
    with torch.inference_mode(), answering(network, bank), torchs_convolutions():
        records = theirs.generate(images[0])  # warms up
        for pixels in images:
            start = time.perf_counter()
            theirs.generate(pixels)
            seconds.append(time.perf_counter() - start)
            if time_left() < 2 * seconds[-1]:
                break
    theirs_s, ours_s = sum(seconds) / len(seconds), bench.seconds_of(bench.batch(), 3)
    (ours,) = bench.generator.generate_batch(images[:1])
    return {
        "images": len(seconds),
        "seconds_an_image": theirs_s,
        "images_per_s": 1 / theirs_s,
        "masks": len(records),
        "our_masks": len(ours.masks),
        "our_generator_seconds_an_image": ours_s,
        "speedup": theirs_s / ours_s,
    }

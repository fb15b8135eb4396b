"""Samples as detectors take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .samples import Sample


def for_detection(samples: Sequence[Sample]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """A batch as torchvision's detectors take it: images as 3×H×W float32 from 0 to 1, and a target for each.

    Images keep their sizes, so they are lists; the first is empty where samples have no image. A target has
    `boxes` (XYXY), `labels` (all 1: a mask has no class), `area` float32, `iscrowd` (all 0), `image_id`,
    `masks` uint8 where samples have them, and `position` where they come from a stream. Raises ValueError for
    batches of a stream with a `batch_size`.
    """
    if any("count" in sample for sample in samples):
        raise ValueError("expected samples, got batches: leave batch_size to the loader")
    images = [sample["image"].float() / 255 for sample in samples if "image" in sample]
    targets = []
    for sample in samples:
        count = len(sample["boxes"])
        target = {
            "boxes": sample["boxes"],
            "labels": torch.ones(count, dtype=torch.int64),
            "area": sample["area"].float(),
            "iscrowd": torch.zeros(count, dtype=torch.int64),
            "image_id": sample["image_id"],
        }
        if "masks" in sample:
            target["masks"] = sample["masks"].view(torch.uint8)
        if "position" in sample:
            target["position"] = sample["position"]
        targets.append(target)
    return images, targets

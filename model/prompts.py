"""Simulated prompts for training (paper, appendix A, "Training algorithm").

All functions draw from the given `torch.Generator`, so that a step's prompts can be drawn again.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_POINTS = 4


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes of masks, …×H×W → …×4 XYXY in pixel indices, inclusive; an empty mask gives zeros."""
    spans = []
    for occupied in (masks.amax(-2) > 0, masks.amax(-1) > 0):  # columns, then rows
        first = occupied.int().argmax(-1)
        last = occupied.shape[-1] - 1 - occupied.flip(-1).int().argmax(-1)
        nothing = ~occupied.any(-1)
        spans.append((first.masked_fill(nothing, 0), last.masked_fill(nothing, 0)))
    (x0, x1), (y0, y1) = spans
    return torch.stack([x0, y0, x1, y1], -1).float()


def noisy_boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Tight boxes with noise: standard deviation 10 % of the side, at most 20 pixels; …×H×W → …×4 XYXY."""
    boxes = tight_boxes(masks).cpu()
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat_interleave(2, -1)[..., [0, 2, 1, 3]]
    noise = torch.randn(boxes.shape, generator=generator) * 0.1 * sides
    return boxes + noise.clamp(-20, 20)


def points_in_and_around(masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two to MAX_POINTS points a mask: the first inside, the others inside or in the box around it.

    …×H×W → (x, y) …×N×2 and labels …×N, 1 inside and 0 outside.
    """
    height, width = masks.shape[-2:]
    flat = masks.flatten(-2).cpu() > 0
    leading = flat.shape[:-1]
    count = int(torch.randint(2, MAX_POINTS + 1, (), generator=generator))
    # The largest of uniform draws over the mask's pixels is a uniform draw of one of them.
    ranks = torch.rand(*leading, height * width, generator=generator)
    inside = (ranks * flat).topk(count, dim=-1).indices
    inside_xy = torch.stack([inside % width, inside // width], -1).float()

    boxes = tight_boxes(masks).cpu()
    corner, opposite = boxes[..., None, :2], boxes[..., None, 2:]
    grown = 0.2 * (opposite - corner) + 4
    anywhere = torch.rand(*leading, count, 2, generator=generator)
    around_xy = corner - grown + anywhere * (opposite - corner + 2 * grown)
    around_xy = around_xy.round().clamp(min=0).minimum(torch.tensor([width - 1.0, height - 1.0]))

    take_inside = torch.rand(*leading, count, generator=generator) < 0.5
    take_inside[..., 0] = True
    points = torch.where(take_inside[..., None], inside_xy, around_xy)
    index = (points[..., 1] * width + points[..., 0]).long()
    return points, flat.gather(-1, index).long()


def holding(masks_BQHW: Tensor, points_BP2: Tensor) -> Tensor:
    """Which of its image's masks, of shares in [0, 1], hold the middle of each point's pixel: B×P×Q, bool."""
    width = masks_BQHW.shape[-1]
    place_BP = points_BP2[..., 1].long() * width + points_BP2[..., 0].long()
    index_BQP = place_BP[:, None].expand(-1, masks_BQHW.shape[1], -1)
    return (masks_BQHW.flatten(2).gather(2, index_BQP) >= 0.5).transpose(1, 2)

"""Simulated prompts for training (paper, appendix A, "Training algorithm").

Whatever is drawn comes from the caller, as a `torch.Generator` or as numbers that were drawn already, so
that a step's prompts can be drawn again. `Draws` keeps a generator for each image: what is drawn for one
depends on the seed, the step and the image's place in the step, and neither on how many others are
worked on beside it nor by which process.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MAX_POINTS = 4


class Draws:
    """The random numbers of one step of training, for some of its images."""

    def __init__(self, seed: int, step: int, places: range) -> None:
        self.of_step = _generator(seed, step)
        self.of_images = [_generator(seed, step, 1 + place) for place in places]  # 0 would be the step's own

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), B×shape."""
        return self.each(lambda _, generator: torch.rand(shape, generator=generator))

    def each(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """What `draw` makes of each image's index and generator, stacked."""
        return torch.stack([draw(index, generator) for index, generator in enumerate(self.of_images)])


def _generator(*seeds: int) -> torch.Generator:
    (state,) = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


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


def noisy_boxes(masks: Tensor, generator: torch.Generator, most: float = 20.0) -> Tensor:
    """Tight boxes, …×H×W → …×4 XYXY, with noise: of 10 % of the side (1 sd), at most `most` pixels."""
    boxes = tight_boxes(masks).cpu()
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat_interleave(2, -1)[..., [0, 2, 1, 3]]
    noise = torch.randn(boxes.shape, generator=generator) * 0.1 * sides
    return boxes + noise.clamp(-most, most)


def points_in_and_around(masks: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` points a mask: the first inside, the others inside or in the box around it.

    …×H×W → (x, y) …×N×2 and labels …×N, 1 inside and 0 outside.
    """
    height, width = masks.shape[-2:]
    flat = masks.flatten(-2).cpu() > 0
    leading = flat.shape[:-1]
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


def uniform_pixels(regions: Tensor, drawn: Tensor) -> Tensor:
    """A pixel of each region, each equally likely: …×H×W, bool, → (x, y) …×2.

    `drawn` are numbers in [0, 1), one a region. An empty region gives its last pixel.
    """
    in_rows = regions.sum(-1)
    rank = (drawn.to(in_rows.device, torch.float64) * in_rows.sum(-1)).long()[..., None]
    before_rows = in_rows.cumsum(-1)
    row = (before_rows <= rank).sum(-1, keepdim=True).clamp(max=regions.shape[-2] - 1)
    rank = rank - (before_rows - in_rows).gather(-1, row)
    pixels = regions.gather(-2, row[..., None].expand(*row.shape, regions.shape[-1])).squeeze(-2)
    column = (pixels.cumsum(-1) <= rank).sum(-1, keepdim=True).clamp(max=regions.shape[-1] - 1)
    return torch.cat([column, row], -1).float()


def corrections(drawn: Tensor, masks: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """A click where the drawn mask is wrong, each such pixel equally likely: (x, y) …×2 and labels ….

    Both masks are …×H×W; `chance` are numbers in [0, 1), one a mask. The label is 1 where the mask was missed
    and 0 where it was spilled. Where nothing is wrong, the click is somewhere in the mask.
    """
    masks = masks > 0
    wrong = drawn != masks
    wrong = torch.where(wrong.flatten(-2).any(-1)[..., None, None], wrong, masks)
    points = uniform_pixels(wrong, chance)
    place = (points[..., 1] * masks.shape[-1] + points[..., 0]).long()
    return points, masks.flatten(-2).gather(-1, place[..., None])[..., 0].long()


def holding(masks_BQHW: Tensor, points_BP2: Tensor) -> Tensor:
    """Which of its image's masks, of shares in [0, 1], hold the middle of each point's pixel: B×P×Q, bool."""
    width = masks_BQHW.shape[-1]
    place_BP = points_BP2[..., 1].long() * width + points_BP2[..., 0].long()
    index_BQP = place_BP[:, None].expand(-1, masks_BQHW.shape[1], -1)
    return (masks_BQHW.flatten(2).gather(2, index_BQP) >= 0.5).transpose(1, 2)

"""How well a model finds masks that people drew, asked by clicks and boxes.

One click: the point farthest from the mask's edge (the maximum of its distance transform), as in the paper's
section 7.1. `oracle` takes the best of the three masks, `chosen` the one with the highest predicted IoU. The
floor to beat is `disc`: the best of three discs about the click, which know places but no objects.

Further clicks go where the answer so far is most wrong: the point of the missing or of the surplus part that
is farthest from its edge, as foreground or as background. They are given together, without the mask drawn so
far or, as an interaction trains it, with its logits as a mask prompt; from the second click on the answer is
the single mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...model.networks.sam import EncodedImages, Sam
from ...model.training.simulated_prompts import tight_boxes
from ..labelled.image import LabelledImage
from ..opencv import cv2
from .click_points import centre, correction

DISC_RADII = (8 / 256, 20 / 256, 50 / 256)
"""Of the photograph's longer side."""

CLICKS = (3, 5)
"""After how many clicks the answer is scored, besides the first."""


@dataclass(frozen=True)
class Evaluation:
    """Mean scores over masks, of everything and of each source.

    `predictions_N2`: predicted and true IoU of each of the masks that a click was answered with.
    """

    scores: dict[str, float]
    by_source: dict[str, dict[str, float]]
    predictions_N2: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    def __or__(self, other: Evaluation) -> Evaluation:
        """The scores of both."""
        sources = sorted({*self.by_source, *other.by_source})
        both = {name: self.by_source.get(name, {}) | other.by_source.get(name, {}) for name in sources}
        predictions_N2 = np.concatenate([self.predictions_N2, other.predictions_N2])
        return Evaluation(self.scores | other.scores, both, predictions_N2)


def evaluate(
    sam: Sam,
    images: Sequence[LabelledImage],
    *,
    size: int | None = None,
    masks_per_image: int = 10,
    mask_prompts: bool = False,
) -> Evaluation:
    """Score up to `masks_per_image` masks of each image, encoded at `size` pixels (default: the model's)."""
    predictions = [np.zeros((0, 2))]
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for index, image in enumerate(images):
        count = min(masks_per_image, len(image.rles))
        chosen = np.random.default_rng(index).choice(len(image.rles), count, replace=False)
        pixels = image.pixels()  # first: they tell what size the masks may be
        masks = image.masks(chosen)
        masks = masks[masks.any((1, 2))]
        if len(masks):
            side = size or sam.config.img_size
            found, pairs_N2 = score_image(sam, pixels, masks, side, mask_prompts)
            rows[image.source] += found
            predictions.append(pairs_N2)
    everything = [row for source in rows.values() for row in source]
    by_source = {source: _mean(found) for source, found in sorted(rows.items())}
    return Evaluation(_mean(everything), by_source, np.concatenate(predictions))


@torch.inference_mode()
def score_image(
    sam: Sam,
    pixels_HWC: NDArray[np.uint8],
    masks_PHW: NDArray[np.uint8],
    size: int,
    mask_prompts: bool = False,
) -> tuple[list[dict[str, float]], NDArray[np.float64]]:
    """The scores of each mask of one image; predicted and true IoU of the three masks of each click, N×2."""
    height, width = masks_PHW.shape[1:]
    encoded, shape = encode_square(sam, pixels_HWC, size)
    true_PHW = torch.from_numpy(masks_PHW).bool()
    clicks_P2 = np.stack([centre(mask) for mask in masks_PHW])
    to_input = sam.config.img_size / max(height, width)
    points = torch.from_numpy((clicks_P2 + 0.5) * to_input - 0.5)[None, :, None].to(sam.device, torch.float32)
    labels = torch.ones(points.shape[:3], dtype=torch.long, device=sam.device)
    boxes = (tight_boxes(true_PHW.int()) * to_input)[None].to(sam.device)

    by_point = sam.attend(encoded, points, labels)
    by_box = sam.attend(encoded, boxes_BP4=boxes)
    prompts = torch.arange(len(masks_PHW))
    three = sam.draw(by_point, prompts.repeat_interleave(3), torch.tensor([1, 2, 3]).repeat(len(prompts)))
    single = sam.draw(by_box, prompts, torch.zeros_like(prompts))
    three_P3HW = to_photograph(three, shape, (height, width)).unflatten(0, (-1, 3))
    iou_P3 = _iou(three_P3HW, true_PHW[:, None])
    iou_box_P = _iou(to_photograph(single, shape, (height, width)), true_PHW)
    disc_P = torch.stack(
        [
            _iou(_discs(click, height, width), true_HW).amax()
            for click, true_HW in zip(clicks_P2, true_PHW, strict=True)
        ]
    )

    predicted_P3 = by_point.iou_BPM[0, :, 1:].float().cpu()
    chosen_P = predicted_P3.argmax(1)
    columns = {
        "miou_1click_oracle": iou_P3.amax(1),
        "miou_1click_chosen": iou_P3[prompts, chosen_P],
        "miou_box": iou_box_P,
        "iou_calibration_mae": (predicted_P3 - iou_P3).abs().mean(1),
        "disc": disc_P,
    }
    drawn_PHW, logits_Phw = three_P3HW[prompts, chosen_P], three.unflatten(0, (-1, 3))[prompts, chosen_P]
    for count in range(2, max(CLICKS) + 1):
        found = [correction(drawn, true) for drawn, true in zip(drawn_PHW.numpy(), masks_PHW, strict=True)]
        next_P2 = (torch.from_numpy(np.stack([point for point, _ in found])) + 0.5) * to_input - 0.5
        points = torch.cat([points, next_P2[None, :, None].to(points)], dim=2)
        labels = torch.cat([labels, torch.tensor([[[label] for _, label in found]]).to(labels)], dim=2)
        last_answer = logits_Phw[None, :, None] if mask_prompts else None
        decoded = sam.attend(encoded, points, labels, masks_BP1HW=last_answer)
        logits_Phw = sam.draw(decoded, prompts, torch.zeros_like(prompts))
        drawn_PHW = to_photograph(logits_Phw, shape, (height, width))
        if count in CLICKS:
            columns[f"miou_{count}click"] = _iou(drawn_PHW, true_PHW)
    pairs_N2 = torch.stack([predicted_P3.flatten(), iou_P3.flatten()], 1).double().numpy()
    return [{name: float(column[p]) for name, column in columns.items()} for p in prompts], pairs_N2


def encode_square(
    sam: Sam, pixels_HWC: NDArray[np.uint8], size: int
) -> tuple[EncodedImages, tuple[int, int]]:
    """Encode a photograph brought to `size` pixels and padded; gives its (height, width) there, too."""
    height, width = pixels_HWC.shape[:2]
    scale = size / max(height, width)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    resized = torch.from_numpy(cv2.resize(pixels_HWC, shape[::-1], interpolation=cv2.INTER_AREA))
    padding = (0, size - shape[1], 0, size - shape[0])
    return sam.encode_padded(F.pad(sam.normalise(resized.permute(2, 0, 1)), padding)[None]), shape


def to_photograph(logits_KHW: Tensor, input_shape: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Masks at the photograph's size from logits of the padded square; a float mask at a time in memory."""

    def one(logits_HW: Tensor) -> Tensor:
        square = F.interpolate(logits_HW.float()[None, None].cpu(), (max(input_shape),) * 2, mode="bilinear")
        cropped = square[..., : input_shape[0], : input_shape[1]]
        return F.interpolate(cropped, shape, mode="bilinear")[0, 0] > 0

    return torch.stack([one(logits_HW) for logits_HW in logits_KHW])


def _discs(click: NDArray[np.float64], height: int, width: int) -> Tensor:
    """3×H×W discs of the three radii about (x, y)."""
    y, x = np.ogrid[:height, :width]
    squared_HW = (x - click[0]) ** 2 + (y - click[1]) ** 2
    radii = np.array(DISC_RADII)[:, None, None] * max(height, width)
    return torch.from_numpy(squared_HW <= radii**2)


def _iou(masks: Tensor, true: Tensor) -> Tensor:
    return _pixels(masks & true) / _pixels(masks | true).clamp(min=1)


def _pixels(masks: Tensor) -> Tensor:
    """How many each mask has. (PyTorch's sum would make eight bytes of each pixel first.)"""
    return torch.as_tensor(np.count_nonzero(masks.numpy(), axis=(-2, -1)))


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    if not rows:
        return {}
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

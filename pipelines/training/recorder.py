"""Pictures of what a model answers, for TensorBoard: the prompt, the mask that was meant, the mask given."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ...model.networks.sam import Sam
from ..evaluation.click_points import centre
from ..evaluation.interactive import encode_square, to_photograph
from ..labelled.load import LabelledImage

MEANT, GIVEN, CLICK = (40, 220, 90), (250, 90, 40), (255, 235, 60)
LONGEST_SIDE = 384


@torch.inference_mode()
def prompts_and_masks(sam: Sam, image: LabelledImage, size: int) -> NDArray[np.uint8]:
    """The photograph twice, side by side, RGB: with its largest mask, and with the most confident answer.

    The prompt is a click in the mask's middle, shown in both. The photograph is encoded at `size` pixels.
    """
    pixels_HW3 = image.pixels()
    mask_HW = image.masks([int(image.areas().argmax())])[0]
    height, width = mask_HW.shape
    encoded, shape = encode_square(sam, pixels_HW3, size)
    click = centre(mask_HW)
    place = (torch.from_numpy(click) + 0.5) * sam.config.img_size / max(height, width) - 0.5
    points = place.to(sam.device, torch.float32).view(1, 1, 1, 2)
    answer = sam.attend(encoded, points, torch.ones(1, 1, 1, dtype=torch.long, device=sam.device))
    best = 1 + int(answer.iou_BPM[0, 0, 1:].argmax())
    logits = sam.draw(answer, torch.tensor([0]), torch.tensor([best]))
    given_HW = to_photograph(logits, shape, (height, width))[0].numpy()
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    sides = [_drawn(pixels_HW3, mask_HW > 0, MEANT, click), _drawn(pixels_HW3, given_HW, GIVEN, click)]
    shown = max(1, round(2 * width * scale)), max(1, round(height * scale))
    both = cv2.resize(np.hstack(sides), shown, interpolation=cv2.INTER_AREA)
    return np.asarray(both, np.uint8)


def _drawn(
    pixels_HW3: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_],
    colour: tuple[int, int, int],
    click: NDArray[np.float64],
) -> NDArray[np.uint8]:
    picture = pixels_HW3.copy()
    picture[mask_HW] = (picture[mask_HW] * 0.5 + np.array(colour) * 0.5).astype(np.uint8)
    radius = max(3, max(mask_HW.shape) // 80)
    x, y = (round(float(value)) for value in click)
    cv2.circle(picture, (x, y), radius, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), max(2, radius - 2), CLICK, -1, cv2.LINE_AA)
    return picture

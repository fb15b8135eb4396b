"""An image before its turn: looked at and brought to the model's size, in any thread and without torch.

A generator's own threads are few, and on a GPU what they do by themselves keeps it waiting. So threads that
decode do this too. Of an image that is to be seen in crops the whole is prepared only: the crops of deeper
layers, resized, would take more memory than the image.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import resize_to_input


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image, H×W×3 uint8 RGB; the whole of it at the model's input size; and the seconds that took."""

    image_HW3: npt.NDArray[np.uint8]
    input_hw3: npt.NDArray[np.uint8]
    seconds: float


def prepare(image_HW3: npt.NDArray[np.uint8], img_size: int) -> PreparedImage:
    """Prepare an image for a model of that input size; raises ValueError for what is no image."""
    started = time.perf_counter()
    input_hw3 = resize_to_input(checked_image(image_HW3), img_size)
    return PreparedImage(image_HW3, input_hw3, time.perf_counter() - started)


def checked_image(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image as it came; raises ValueError unless it is H×W×3 uint8 with at least one pixel."""
    if not isinstance(image_HW3, np.ndarray):
        raise ValueError(f"expected a numpy array H×W×3 uint8 (RGB), got {type(image_HW3).__name__}")
    shape, dtype = image_HW3.shape, image_HW3.dtype
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(
            f"expected an image H×W×3 uint8 (RGB) with H, W ≥ 1, got shape {shape}, dtype {dtype}"
        )
    return image_HW3

"""From an image to the model's square and back: sizes, points and boxes.

The model sees an image whose longer side is `img_size`. The resize is the released one, Pillow's bilinear on
8-bit pixels, so that the same weights see the same numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from .grid import Crop

CROP_EDGE_PIXELS = 20
"""A box that ends this close to a crop's edge is taken to be cut off by it."""


def input_size(height: int, width: int, img_size: int) -> tuple[int, int]:
    """(height, width) after resizing the longer side to `img_size`; rounds half up, at least one pixel."""
    scale = img_size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_to_input(image_HW3: npt.NDArray[np.uint8], img_size: int) -> npt.NDArray[np.uint8]:
    """The RGB image at the model's input size, h×w×3 uint8, without the padding."""
    height, width = input_size(image_HW3.shape[0], image_HW3.shape[1], img_size)
    picture = Image.fromarray(np.ascontiguousarray(image_HW3))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def points_to_input(
    points_N2: npt.NDArray[np.float64], size: tuple[int, int], img_size: int
) -> npt.NDArray[np.float32]:
    """Points (x, y) in pixels of an image of `size` (height, width) → pixels of the model's input.

    float32, as the network computes: the released code carries float64 up to the positional encoding.
    """
    height, width = size
    input_height, input_width = input_size(height, width, img_size)
    scaled_N2 = points_N2 * np.array([input_width / width, input_height / height])
    return np.asarray(scaled_N2, np.float32)


def near_crop_edge(
    boxes_N4: npt.NDArray[np.int64], crop: Crop, image_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Which boxes (XYXY, image pixels) end near an edge of the crop that is not near an edge of the image."""
    height, width = image_size
    near_crop = np.abs(boxes_N4 - np.array([crop.x0, crop.y0, crop.x1, crop.y1])) <= CROP_EDGE_PIXELS
    near_image = np.abs(boxes_N4 - np.array([0, 0, width, height])) <= CROP_EDGE_PIXELS
    return np.asarray((near_crop & ~near_image).any(axis=1))


def inclusive_to_xywh(box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """XYXY with both ends inside → XYWH as COCO counts it."""
    x0, y0, x1, y1 = box
    return (float(x0), float(y0), float(x1 - x0 + 1), float(y1 - y0 + 1))

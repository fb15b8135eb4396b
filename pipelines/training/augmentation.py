"""How a square of an image and its masks are transformed before they are learnt from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..opencv import cv2


def warp_mask(mask_HW: NDArray[np.uint8], affine: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """The square of side `size` that `affine` cuts out of a mask, with zeros outside the image."""
    return np.asarray(cv2.warpAffine(mask_HW, affine, (size, size), flags=cv2.INTER_NEAREST), np.uint8)


def warp_picture(pixels_HWC: NDArray[np.uint8], affine: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """The square of side `size` that `affine` cuts out of an image, whose edge pixels go on outside it.

    Pixels are averaged where the image gets smaller, as they are where a model is used.
    """
    scale_2 = np.linalg.norm(affine[:, :2], axis=0)
    given_2 = np.array(pixels_HWC.shape[1::-1])
    small_2 = np.maximum(1, np.rint(given_2 * np.minimum(scale_2, 1))).astype(int)
    small = cv2.resize(pixels_HWC, small_2.tolist(), interpolation=cv2.INTER_AREA)
    apart_2 = given_2 / small_2  # pixel x of the small one has its middle at (x + ½) · apart − ½
    from_small = affine.copy()
    from_small[:, :2] *= apart_2
    from_small[:, 2] += affine[:, :2] @ (apart_2 / 2 - 0.5)
    warped = cv2.warpAffine(
        small, from_small, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.uint8)


def colour_jitter(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image with a random gain and offset for each channel: brightness, contrast and a colour cast."""
    gain = np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.05, 3))
    offset = rng.normal(0, 10) + rng.normal(0, 4, 3)
    ramp = np.arange(256)[:, None] * gain + offset
    table = np.clip(ramp, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table.reshape(1, 256, 3)), dtype=np.uint8)


def point_inside(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """A pixel of the mask as (x, y), each equally likely."""
    places = np.flatnonzero(mask)
    y, x = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    return np.array([x, y], np.float32)

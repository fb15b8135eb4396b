"""Feature maps of another network, which the encoder may imitate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError
from ..labelled.image import LabelledImage

PATCH = 16
"""The side of a cell of the encoder's output in pixels, in every size of the model."""

TEACHER_STRIDE = 16
"""The side of a cell of a teacher's map in pixels."""


class TeacherFeatures:
    """Feature maps of another network, one for each image, for the encoder to imitate.

    They come from a safetensors file: `{source}/{image_id}` → C×h×w, a cell for each `TEACHER_STRIDE` pixels
    of the image as it lies in the folder.
    """

    def __init__(self, path: Path, images: Sequence[LabelledImage]) -> None:
        """Raises ConfigError if it is no such file, or has no map of as many channels for each image."""
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"teacher_features: {path}: not a safetensors file: {error}") from error
        missing = [image.name for image in images if image.name not in shapes]
        if missing:
            raise ConfigError(f"teacher_features: {path}: no map of {missing[0]} ({len(missing)} missing)")
        channels = {shapes[image.name][0] if len(shapes[image.name]) == 3 else None for image in images}
        if len(channels) != 1 or None in channels:
            raise ConfigError(f"teacher_features: {path}: expected C×h×w maps of one C throughout")
        self.channels: int = shapes[images[0].name][0]

    def warped(self, image: LabelledImage, affine: NDArray[np.float64], size: int) -> NDArray[np.float32]:
        """The image's map as the square of side `size` that `affine` cuts sees it: C×s×s, NaN outside."""
        with safe_open(self.path, "pt") as file:
            features = file.get_tensor(image.name).float()
        side = size // PATCH
        centres = (np.arange(side) + 0.5) * PATCH - 0.5
        square_HW2 = np.stack(np.meshgrid(centres, centres), axis=-1)
        there_HW2 = (square_HW2 - affine[:, 2]) / [affine[0, 0], affine[1, 1]]
        reach = np.array(features.shape[:0:-1]) * TEACHER_STRIDE
        grid = torch.from_numpy((there_HW2 + 0.5) / reach * 2 - 1).float()
        sampled = F.grid_sample(features[None], grid[None], padding_mode="border", align_corners=False)[0]
        sampled[:, (grid.abs() > 1).any(-1)] = torch.nan
        return sampled.numpy()

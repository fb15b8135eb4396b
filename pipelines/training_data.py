"""Photographs with masks, as training and evaluation want them.

The layout: `images/{source}/{id}.jpg` and `{source}.parquet` with one row an image: `image_id`, `file_name`
(relative to the folder), `height`, `width`, `source` and `masks`, a list of COCO RLE {size, counts}.

A batch is a pure function of (seed, step): training that resumes at step n sees what it would have seen.
Validation images are set aside by the hash of their id: every run and every machine sets the same ones aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from pipelines.errors import ConfigError

VALIDATION_SHARE = 12
"""One image in so many is for validation."""

PATCH = 16
"""Pixels of a cell of the encoder's output, in every size of the model."""

MAX_OBJECTS = 64
"""Masks of an image that a click's predicted IoU is held against."""

TEACHER_STRIDE = 16
"""Pixels of a cell of a teacher's map."""

COLUMNS = ["image_id", "file_name", "source", "masks"]
"""What is read of a table."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One photograph and its masks, still compressed."""

    image_id: str
    path: Path
    source: str
    rles: tuple[dict[str, object], ...]

    @property
    def name(self) -> str:
        """Source and id: unique in a folder."""
        return f"{self.source}/{self.image_id}"

    @property
    def validates(self) -> bool:
        """Whether this image is set aside."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3. Raises ConfigError for a file that OpenCV cannot read."""
        image = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        if image is None:
            raise ConfigError(f"{self.path}: not an image, or missing; its row is in {self.source}.parquet")
        return np.ascontiguousarray(image[:, :, ::-1])

    def masks(self, chosen: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The chosen masks, N×H×W of 0 and 1."""
        return np.stack([mask_utils.decode(self.rles[index]) for index in chosen])

    def areas(self) -> NDArray[np.float64]:
        """Pixels of every mask. (One by one: pycocotools 2.0.11 fails on more than 255 at once.)"""
        return np.array([float(mask_utils.area(rle)) for rle in self.rles])


def read_labelled(folder: Path) -> list[LabelledImage]:
    """Every image of the folder that has a mask. Raises ConfigError for none, and for a bad table."""
    found: list[LabelledImage] = []
    for table in sorted(folder.glob("*.parquet")):
        try:
            found += _read_table(table, folder)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{table}: masks are to be a list of {{size, counts}}, text: {error}"
            ) from error
    if not found:
        raise ConfigError(f"{folder}: no labelled images; expected {{source}}.parquet files beside images/")
    return found


def _read_table(table: Path, folder: Path) -> Iterator[LabelledImage]:
    try:
        rows = pq.read_table(table)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{table}: cannot be read as Parquet: {error}") from error
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise ConfigError(f"{table}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    for row in rows.select(COLUMNS).to_pylist():
        rles = tuple({"size": m["size"], "counts": m["counts"].encode()} for m in row["masks"])
        if rles:
            yield LabelledImage(str(row["image_id"]), folder / row["file_name"], row["source"], rles)


@dataclass(frozen=True, slots=True)
class Batch:
    """B squares with P masks each. `points_BP2` are (x, y) in pixels of the square, inside their mask."""

    pixels_BCHW: Tensor  # uint8 RGB; padding is marked in valid_BHW
    valid_BHW: Tensor  # bool
    masks_BPHW: Tensor  # uint8, at full resolution
    points_BP2: Tensor  # float32
    objects_BQhw: Tensor  # float16: all the image's masks, shares of four pixels' side; empty ones at the end
    teacher_BCHW: Tensor  # float32, a cell a patch; no channels without a teacher; NaN where it says nothing


class TeacherFeatures:
    """Feature maps of another network, one an image, for the encoder to imitate.

    A safetensors file: `{source}/{image_id}` → C×h×w, a cell `TEACHER_STRIDE` pixels of the image as it lies
    in the folder.
    """

    def __init__(self, path: Path, images: Sequence[LabelledImage]) -> None:
        """Raises ConfigError: not such a file, or an image that has no map of the same channels."""
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


class TrainingBatches(Dataset[Batch]):
    """Batch number `step` of a stage, for a PyTorch loader."""

    def __init__(
        self,
        images: Sequence[LabelledImage],
        *,
        seed: int,
        steps: range,
        size: int,
        images_per_step: int,
        masks_per_image: int,
        zoom: tuple[float, float],
        area_power: float,
        source_weights: Mapping[str, float],
        teacher: TeacherFeatures | None = None,
    ) -> None:
        self.images = images
        self.seed = seed
        self.steps = steps
        self.size = size
        self.images_per_step = images_per_step
        self.masks_per_image = masks_per_image
        self.zoom = zoom
        self.area_power = area_power
        self.teacher = teacher
        weights = np.array([source_weights.get(image.source, 1.0) for image in images])
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        step = self.steps[index]
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.choice(len(self.images), self.images_per_step, replace=False, p=self.chances)
        squares = [self._square(self.images[i], rng) for i in chosen]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*squares, strict=True)))

    def _square(self, image: LabelledImage, rng: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
        """A jittered square of the image, in the order of `Batch`."""
        pixels = image.pixels()
        weights = image.areas() ** self.area_power
        count = min(len(weights), max(2 * self.masks_per_image, MAX_OBJECTS))
        drawn = rng.choice(len(weights), count, replace=False, p=weights / weights.sum())
        affine = self._jitter(pixels.shape[0], pixels.shape[1], rng)
        square = (self.size, self.size)

        warped = cv2.warpAffine(_colour_jitter(pixels, rng), affine, square, flags=cv2.INTER_LINEAR)
        valid = cv2.warpAffine(np.ones(pixels.shape[:2], np.uint8), affine, square, flags=cv2.INTER_NEAREST)
        masks = [cv2.warpAffine(m, affine, square, flags=cv2.INTER_NEAREST) for m in image.masks(drawn)]
        visible = [np.asarray(m, np.uint8) for m in masks if np.count_nonzero(m) >= 16]
        visible = visible or [np.asarray(valid, np.uint8)]
        chosen = [visible[i % len(visible)] for i in range(self.masks_per_image)]
        points = np.stack([_point_inside(mask, rng) for mask in chosen])
        objects = np.zeros((MAX_OBJECTS, self.size // 4, self.size // 4), np.float16)
        for index, mask in enumerate(visible[:MAX_OBJECTS]):
            objects[index] = cv2.resize(mask * 255, objects.shape[1:], interpolation=cv2.INTER_AREA) / 255
        features = np.empty((0, 0, 0), np.float32)
        if self.teacher is not None:
            features = self.teacher.warped(image, affine, self.size)
        return warped.transpose(2, 0, 1), valid.astype(bool), np.stack(chosen), points, objects, features

    def _jitter(self, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Large-scale jitter, a flip, and the crop; a photograph smaller than the square sits top left."""
        longest = self.size * np.exp(rng.uniform(*np.log(self.zoom)))
        scale = longest / max(height, width)
        stretch = np.exp(rng.uniform(-0.15, 0.15))
        scale_x, scale_y = scale * stretch, scale / stretch
        room = [max(0.0, side - self.size) for side in (width * scale_x, height * scale_y)]
        left, top = (rng.uniform(0, r) for r in room)
        affine = np.array([[scale_x, 0, -left], [0, scale_y, -top]])
        if rng.random() < 0.5:
            affine[0] = [-scale_x, 0, scale_x * (width - 1) - left]
        return affine


def _colour_jitter(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gain and offset for each channel: brightness, contrast and a colour cast."""
    gain = np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.05, 3))
    offset = rng.normal(0, 10) + rng.normal(0, 4, 3)
    ramp = np.arange(256)[:, None] * gain + offset
    table = np.clip(ramp, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table.reshape(1, 256, 3)), dtype=np.uint8)


def _point_inside(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """A pixel of the mask, (x, y), each equally likely."""
    places = np.flatnonzero(mask)
    y, x = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    return np.array([x, y], np.float32)

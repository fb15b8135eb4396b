"""What a training step learns from: jittered squares of images, with masks and clicks.

A batch is a pure function of (seed, step), and each of its squares of (seed, step, place in the batch). So
training that resumes at step n sees what it would have seen, and each of several processes makes only its own
squares.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import MaskmillError
from ..evaluation.click_points import centre
from ..labelled.image import LabelledImage
from ..opencv import cv2
from .augmentation import colour_jitter, point_inside, warp_mask, warp_picture
from .config import StageConfig, TrainConfig
from .distributed import Processes
from .teacher import PATCH, TeacherFeatures

log = logging.getLogger("maskmill.train")

T = TypeVar("T")

MAX_OBJECTS = 64
"""The most masks of an image with which a click's predicted IoU is compared."""

PASTED = (1, 8)
"""The fewest and the most objects pasted onto a square."""

PASTED_SIZE = (0.06, 0.6)
"""The smallest and the largest longer side of a pasted object, in sides of the square."""

PASTED_AREA = (0.002, 0.3)
"""The smallest and the largest share of its image that an object to be pasted covers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B squares with P masks each. `points_BP2` are (x, y) in pixels of the square, inside their mask."""

    pixels_BCHW: Tensor  # uint8 RGB; padding is marked in valid_BHW
    valid_BHW: Tensor  # bool
    masks_BPHW: Tensor  # uint8, at full resolution
    points_BP2: Tensor  # float32
    centred_BP: Tensor  # bool: the point was put in the middle of its mask
    objects_BQhw: Tensor  # float16: all the image's masks at a quarter of the size; empty ones at the end
    teacher_BCHW: Tensor  # float32, a cell for each patch; no channels without a teacher; NaN if unknown

    def __len__(self) -> int:
        return len(self.pixels_BCHW)

    def split(self, parts: int) -> list[Batch]:
        """Split it into equal parts, in order; B is a multiple of their number."""
        size = len(self) // parts
        columns = [getattr(self, field.name).split(size) for field in fields(self)]
        return [Batch(*part) for part in zip(*columns, strict=True)]


@dataclass(eq=False)
class TrainingBatches(Dataset[Batch]):
    """Batch number `step` of a stage, for a PyTorch loader; this process's part where several share it.

    Attributes:
        config: the run's options, of which the seed, the weights of sources and the shares count here.
        steps: the steps to make batches for, counted from 0 over all stages.
        places: the positions in each batch that this process fills.
        chances: how likely each image is to be drawn; they add up to 1.

    """

    images: Sequence[LabelledImage]
    config: TrainConfig
    stage: StageConfig
    steps: range
    teacher: TeacherFeatures | None = None
    processes: Processes = field(default_factory=Processes)
    places: range = field(init=False)
    chances: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        share = self.stage.images // self.processes.count
        self.places = range(self.processes.rank * share, (self.processes.rank + 1) * share)
        weights = np.array([self.config.source_weights.get(image.source, 1.0) for image in self.images])
        weights /= weights.max()  # a sum of the largest numbers would be infinite
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        seed, step = self.config.seed, self.steps[index]
        rng = np.random.default_rng((seed, step))
        chosen = rng.choice(len(self.images), self.stage.images, replace=False, p=self.chances)
        squares = [
            # from 1 on: numpy takes (seed, step, 0) for (seed, step), which chose the images
            self._square(self.images[chosen[place]], np.random.default_rng((seed, step, 1 + place)))
            for place in self.places
        ]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*squares, strict=True)))

    def _square(self, image: LabelledImage, rng: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
        """A jittered square of the image, in the order of `Batch`."""
        pixels, size = image.pixels(), self.stage.size
        weights = image.areas() ** self.stage.area_power
        count = min(len(weights), max(2 * self.stage.masks, MAX_OBJECTS))
        drawn = rng.choice(len(weights), count, replace=False, p=weights / weights.sum())
        affine = np.eye(2, 3) * (size / max(pixels.shape[:2]))
        if self.stage.augment:
            affine = self._jitter(pixels.shape[0], pixels.shape[1], rng)
            pixels = colour_jitter(pixels, rng)

        valid = warp_mask(np.ones(pixels.shape[:2], np.uint8), affine, size)
        warped = warp_picture(pixels, affine, size) * valid[:, :, None]
        masks = [warp_mask(mask, affine, size) for mask in image.masks(drawn)]
        pasted: list[NDArray[np.uint8]] = []
        if rng.random() < self.config.paste_share:
            warped, pasted = self._pasted(warped, valid, rng)
        covered = np.any([np.zeros_like(valid), *pasted], axis=0)
        visible = [m for m in [*pasted, *(m * ~covered for m in masks)] if np.count_nonzero(m) >= 16]
        visible = visible or [valid]
        if rng.random() < self.config.grey_share:
            warped[:] = cv2.cvtColor(warped, cv2.COLOR_RGB2GRAY)[:, :, None]
        chosen = [visible[i % len(visible)] for i in range(self.stage.masks)]
        centred = rng.random(len(chosen)) < self.config.centre_share
        points = np.stack(
            [
                centre(mask).astype(np.float32) if middle else point_inside(mask, rng)
                for mask, middle in zip(chosen, centred, strict=True)
            ]
        )
        objects = np.zeros((MAX_OBJECTS, size // 4, size // 4), np.float16)
        for index, mask in enumerate(visible[:MAX_OBJECTS]):
            objects[index] = cv2.resize(mask * 255, objects.shape[1:], interpolation=cv2.INTER_AREA) / 255
        features = np.empty((0, 0, 0), np.float32)
        if self.teacher is not None:
            features = self.teacher.warped(image, affine, size)
            cells = covered.reshape(features.shape[1], PATCH, features.shape[2], PATCH)
            features[:, cells.any((1, 3))] = np.nan
        return (
            warped.transpose(2, 0, 1),
            valid.astype(bool),
            np.stack(chosen),
            points,
            centred,
            objects,
            features,
        )

    def _pasted(
        self, square_HWC: NDArray[np.uint8], valid_HW: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
        """The square with another image's objects pasted on it (arXiv 2012.07177), and what is seen of each.

        So few images make many scenes, and the edge of a pasted object is known exactly.
        """
        donor = self.images[rng.choice(len(self.images), p=self.chances)]
        pixels = colour_jitter(donor.pixels(), rng)
        shares = donor.areas() / (pixels.shape[0] * pixels.shape[1])
        fit = np.flatnonzero((shares > PASTED_AREA[0]) & (shares < PASTED_AREA[1]))
        count = min(len(fit), int(rng.integers(PASTED[0], PASTED[1] + 1)))
        seen: list[NDArray[np.uint8]] = []
        for index in rng.choice(fit, count, replace=False):
            (mask,) = donor.masks([index])
            affine = self._placed(mask, rng)
            moved = warp_mask(mask, affine, self.stage.size) * valid_HW
            texture = warp_picture(pixels, affine, self.stage.size).astype(np.float32)
            opacity = cv2.GaussianBlur(moved.astype(np.float32), (0, 0), rng.uniform(0.3, 1.2)) * valid_HW
            square_HWC = np.rint(square_HWC + (texture - square_HWC) * opacity[:, :, None]).astype(np.uint8)
            seen = [*(np.where(moved, np.uint8(0), below) for below in seen), moved]
        return square_HWC, seen

    def _placed(self, mask_HW: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float64]:
        """The transform that turns an object and brings it to a random size and place in the square."""
        left, top, width, height = cv2.boundingRect(mask_HW)
        middle = (left + width / 2, top + height / 2)
        scale = self.stage.size * np.exp(rng.uniform(*np.log(PASTED_SIZE))) / max(width, height)
        affine = np.asarray(cv2.getRotationMatrix2D(middle, rng.uniform(-30, 30), scale), np.float64)
        affine[0] *= rng.choice([-1, 1])
        affine[:, 2] += rng.uniform(0, self.stage.size, 2) - affine @ [*middle, 1]
        return affine

    def _jitter(self, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """The transform of large-scale jitter, flip and crop; one that is too small sits top left."""
        longest = self.stage.size * np.exp(rng.uniform(*np.log(self.stage.zoom)))
        scale = longest / max(height, width)
        stretch = np.exp(rng.uniform(-0.15, 0.15))
        scale_x, scale_y = scale * stretch, scale / stretch
        room = [max(0.0, side - self.stage.size) for side in (width * scale_x, height * scale_y)]
        left, top = (rng.uniform(0, r) for r in room)
        affine = np.array([[scale_x, 0, -left], [0, scale_y, -top]])
        if rng.random() < 0.5:
            affine[0] = [-scale_x, 0, scale_x * (width - 1) - left]
        return affine


def read_ahead(dataset: Dataset[T], workers: int) -> Iterator[T]:
    """Yield the dataset's items in order, which `workers` processes read ahead.

    Without workers, or without shared memory for their locks, this process reads them. Raises the workers'
    MaskmillErrors as they were raised there, without PyTorch's traceback in the message.
    """
    try:
        multiprocessing.Lock()
    except OSError as error:
        log.warning("no shared memory (%s): this process makes the batches itself", error.strerror)
        workers = 0
    for item in DataLoader(_Packed(dataset), batch_size=None, num_workers=workers):
        if isinstance(item, MaskmillError):
            raise item
        yield item


class _Parcel:
    """An item that a worker process has pickled; the queue delivers the item itself."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return pickle.loads, (self._pickled,)


class _Packed(Dataset[T | MaskmillError | _Parcel]):
    """The items of a dataset, or the errors that reading them raises; a worker process sends them in parcels.

    Their tensors stay in shared memory, which spares copies, or travel in the parcel if there is no room for
    them. PyTorch would learn of that too late, in a thread, and wait for ever.
    """

    def __init__(self, dataset: Dataset[T]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> T | MaskmillError | _Parcel:
        item: T | MaskmillError
        try:
            item = self.dataset[index]
        except MaskmillError as error:
            item = error
        if get_worker_info() is None:
            return item
        try:
            return _Parcel(bytes(ForkingPickler.dumps(item)))
        except (RuntimeError, OSError):
            return _Parcel(pickle.dumps(item))

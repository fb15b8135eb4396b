"""A photograph with its masks, wherever both came from.

Validation images are set aside by the hash of source and id: every run and every machine picks the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from ...engine.codes import single
from ...engine.records import Rle
from ..errors import ConfigError

VALIDATION_SHARE = 12
"""One image in so many is for validation."""

MAX_SIDE = 1 << 17
"""Pixels that a file may claim for a side of an image: pycocotools crashes at far larger ones."""


class Photograph(Protocol):
    """Where pixels come from."""

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3. Raises ConfigError, with the photograph's name, where there are none."""


@dataclass(frozen=True, slots=True)
class PhotographFile:
    """A file that OpenCV reads; `named_in` is the file that says it should be there."""

    path: Path
    named_in: str

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3. Raises ConfigError for a file that OpenCV cannot read."""
        from ..opencv import cv2  # masks are read without it

        try:
            image = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        except cv2.error:  # a header that claims more pixels than OpenCV takes
            image = None
        if image is None:
            raise ConfigError(
                f"{self.path}: not an image that OpenCV reads, or missing; it is named in {self.named_in}"
            )
        return np.ascontiguousarray(image[:, :, ::-1])


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One photograph and its masks, still compressed, each as pycocotools takes it: checked, of one size."""

    image_id: str
    photograph: Photograph
    source: str
    rles: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """Source and id: no two images of a folder have the same (`read_labelled`)."""
        return f"{self.source}/{self.image_id}"

    @property
    def digest(self) -> int:
        """64 bits of the hash of its name."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")

    @property
    def validates(self) -> bool:
        """Whether this image is set aside."""
        return self.digest % VALIDATION_SHARE == 0

    def pixels(self) -> NDArray[np.uint8]:
        """RGB, H×W×3. Raises ConfigError where they cannot be had, or are not of the masks' size."""
        pixels = self.photograph.pixels()
        height, width = self.rles[0]["size"]
        if pixels.shape[:2] != (height, width):
            raise ConfigError(
                f"{self.name}: the image has {pixels.shape[0]}×{pixels.shape[1]} pixels (h × w), "
                f"its masks are for {height}×{width}"
            )
        return pixels

    def masks(self, chosen: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The chosen masks, N×H×W of 0 and 1."""
        return np.stack([mask_utils.decode(self.rles[index]) for index in chosen])

    def areas(self) -> NDArray[np.float64]:
        """Pixels of every mask. (One by one: pycocotools 2.0.11 fails on more than 255 at once.)"""
        return np.array([float(mask_utils.area(rle)) for rle in self.rles])

    def up_to(self, share: float) -> LabelledImage | None:
        """The same photograph without masks that cover more than `share` of it; None if it has no other."""
        height, width = self.rles[0]["size"]
        if share >= 1:
            return self
        small_enough = self.areas() <= share * height * width
        if small_enough.all():
            return self
        return replace(self, rles=tuple(compress(self.rles, small_enough))) if small_enough.any() else None


def checked_rle(size: Sequence[int], counts: str, expected: tuple[int, int] | None) -> dict[str, Any] | None:
    """A mask as pycocotools takes it, or None for one without a pixel.

    Raises ValueError for a malformed code (which pycocotools would read past its end) and for one of another
    size than `expected`, (height, width).
    """
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise ValueError(f"the size is {size!r}, not [height, width]")
    height, width = size
    if expected is not None and (height, width) != expected:
        raise ValueError(f"the mask is for {height}×{width}, its image is {expected[0]}×{expected[1]}")
    if not isinstance(counts, str):
        raise ValueError("expected counts as text, COCO's compressed run lengths")
    runs = single.run_lengths(Rle((height, width), counts))
    return {"size": [height, width], "counts": counts.encode()} if runs[1::2].any() else None

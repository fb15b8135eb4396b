"""Drawn photographs: some dozens of overlapping objects over a ground, shaded, textured, with soft edges.

Nothing has to be carried to a machine for them, and the bundled network finds masks in them by the dozen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]

OBJECTS = 40
GRAIN = 6.0
"""Standard deviation of the pixels' noise, which gives a JPEG file a photograph's size."""


def scene(seed: int, height: int, width: int) -> Pixels:
    """One drawn photograph, H×W×3 uint8; the same for the same seed and size."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(_ramp(rng, height, width))
    for _ in range(OBJECTS):
        size = min(height, width) * np.exp(rng.uniform(np.log(0.03), np.log(0.3)))
        reach = 2 + int(1.3 * size)  # of its bumps, and of the blur
        outline = Image.new("L", (2 * reach, 2 * reach))
        ImageDraw.Draw(outline).polygon(_corners(rng, reach, size), fill=255)
        outline = outline.filter(ImageFilter.GaussianBlur(1))
        x, y = (int(place) - reach for place in rng.uniform(0, (width, height)))
        picture.paste(Image.fromarray(_ramp(rng, 2 * reach, 2 * reach)), (x, y), outline)
    pixels = np.asarray(picture) + rng.normal(0, GRAIN, (height, width, 3))
    return np.asarray(pixels.clip(0, 255), np.uint8)


def scenes(number: int, height: int, width: int) -> list[Pixels]:
    """Different ones of a size."""
    return [scene(seed, height, width) for seed in range(number)]


def save_scenes(folder: Path, number: int, size: tuple[int, int]) -> list[Path]:
    """Different ones as JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.jpg" for seed in range(number)]
    for seed, path in enumerate(paths):
        Image.fromarray(scene(seed, *size)).save(path, quality=92)
    return paths


def _ramp(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A colour that changes a little from corner to corner."""
    corners_223 = rng.uniform(20, 235, 3) + rng.uniform(-25, 25, (2, 2, 3))
    small = Image.fromarray(np.asarray(corners_223.clip(0, 255), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def _corners(rng: np.random.Generator, middle: float, size: float) -> list[tuple[float, float]]:
    """A closed line about (middle, middle): an ellipse with bumps, or a few corners."""
    number = int(rng.choice([3, 4, 5, 64, 64, 64]))
    angle = np.linspace(0, 2 * np.pi, number, endpoint=False) + rng.uniform(0, 2 * np.pi)
    radius = size * (1 + 0.3 * rng.random() * np.sin(angle * rng.integers(2, 5) + rng.uniform(0, 6)))
    squeeze = rng.uniform(0.4, 1)
    x, y = middle + radius * np.cos(angle), middle + squeeze * radius * np.sin(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))

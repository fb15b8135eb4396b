"""The photograph that benchmarks look at."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def read_photograph(path: Path | None, size: tuple[int, int] | None = None) -> Image.Image:
    """The photograph at `path` as it is; else scikit-image's `coffee`, at `size` (height, width) if given."""
    if path is not None:
        return Image.open(path).convert("RGB")
    from skimage import data

    coffee = Image.fromarray(data.coffee())
    return coffee if size is None else coffee.resize(size[::-1], Image.Resampling.BICUBIC)

"""The points of `bench_growth.py`'s three curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIZE = (1500, 2250)


@dataclass(frozen=True, slots=True)
class Step:
    """One point of a curve: the photograph's size and what the preset's options are changed to."""

    curve: str
    size: tuple[int, int]
    options: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """The curves, and how much care is taken over each point."""

    steps: Sequence[Step]
    repeat: int
    matrix_sides: Sequence[int]
    matrix_seconds: float


def full_plan(repeat: int) -> Plan:
    """Images last, in rising order: what memory a large one leaves with the allocator counts for no other."""
    points = [Step("points", SIZE, {"points_per_side": side}) for side in (8, 16, 32, 64)]
    return Plan(
        [*points, *masks_curve(SIZE, 16), *pixels_curve((0.25, 1, 3.375, 12, 50), 16)],
        repeat,
        matrix_sides=(512, 1024, 2048, 4096),
        matrix_seconds=3,
    )


def quick_plan() -> Plan:
    """The same curves, as small as they get."""
    size = (200, 300)
    points = [Step("points", size, {"points_per_side": side}) for side in (3, 6)]
    steps = [*points, *masks_curve(size, 4), *pixels_curve((0.06, 0.1), 4)]
    return Plan(steps, repeat=1, matrix_sides=(256,), matrix_seconds=0.05)


def masks_curve(size: tuple[int, int], points: int) -> list[Step]:
    """From strict thresholds to none at all, and to no suppression of duplicates either."""
    thresholds = ((0.6, 0.8, 0.7), (0.45, 0.7, 0.7), (0.25, 0.5, 0.7), (0.0, 0.0, 0.7), (0.0, 0.0, 1.0))
    names = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
    return [
        Step("masks", size, {"points_per_side": points, **dict(zip(names, values, strict=True))})
        for values in thresholds
    ]


def pixels_curve(megapixels: Sequence[float], points: int) -> list[Step]:
    """Photographs of 2:3."""
    heights = [round(math.sqrt(size * 1e6 * 2 / 3)) for size in megapixels]
    return [Step("pixels", (h, round(h * 3 / 2)), {"points_per_side": points}) for h in heights]

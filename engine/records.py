"""What the engine hands out: fixed fields, checked at construction, no heavy imports.

The field names of a mask are SA-1B's own, so that a record dumped as JSON is what an SA-1B reader expects.
"""

from __future__ import annotations

from dataclasses import dataclass

DROP_REASONS: tuple[str, ...] = (
    "predicted_iou",
    "stability",
    "crop_edge",
    "empty",
    "too_large",
    "nms",
    "crop_nms",
    "clean_up",
)
"""Why a candidate is not in the result, in the order of the filters; the first that fails counts."""


@dataclass(frozen=True, slots=True)
class Rle:
    """A mask as COCO's compressed run lengths: `size` is (height, width), runs go down the columns."""

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True)
class MaskRecord:
    """One mask of one image. All coordinates are pixels of the whole image, x before y."""

    segmentation: Rle
    area: int
    bbox: tuple[float, float, float, float]
    """XYWH, exact: width = x_max − x_min + 1."""
    predicted_iou: float
    stability_score: float
    crop_box: tuple[float, float, float, float]
    """XYWH of the crop in which the mask was found."""
    point_coords: tuple[tuple[float, float], ...]
    """The (x, y) of the prompt."""


@dataclass(frozen=True, slots=True)
class GeneratedMasks:
    """One image's masks and the account of every candidate that is not among them.

    `drops` has every reason of `DROP_REASONS`, in order; `seconds` goes from stage to time spent.
    Raises ValueError where candidates ≠ masks + drops.
    """

    masks: list[MaskRecord]
    candidates: int
    drops: dict[str, int]
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        if tuple(self.drops) != DROP_REASONS:
            raise ValueError(f"drops must have the keys {DROP_REASONS} in order, got {tuple(self.drops)}")
        accounted = len(self.masks) + sum(self.drops.values())
        if self.candidates != accounted:
            raise ValueError(
                f"{self.candidates} candidates, but {len(self.masks)} masks and drops {self.drops} "
                f"account for {accounted}"
            )

"""The options of the generator.

The defaults are the released generator's, but for the two thresholds, which are the model's own: those that
were chosen for ViT-H leave a smaller model without masks.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..model.config import Thresholds


class GeneratorConfig(BaseModel):
    """Options of `MaskGenerator`. Frozen, no unknown names; a threshold of 0 turns its filter off."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    points_per_side: int = Field(
        default=32, ge=1, description="Points along each side of the image's point grid."
    )
    points_per_batch: int = Field(
        default=8,
        ge=1,
        description="Points decoded together in each lane of a CPU; a GPU goes by device_budget_bytes.",
    )
    encode_batch: int = Field(
        default=1, ge=1, description="Images or crops encoded together; more than 1 pays off on a GPU only."
    )
    pred_iou_thresh: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Keep masks whose predicted IoU is above this, tested before drawing; null: the model's.",
    )
    stability_score_thresh: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Keep masks whose stability score is at least this; null: the model's.",
    )
    stability_score_offset: float = Field(
        default=1.0,
        ge=0,
        description="Distance of the stability score's two logit thresholds from the mask's threshold.",
    )
    box_nms_thresh: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Within a crop, of two masks whose boxes have an IoU above this, keep the better one.",
    )
    crop_n_layers: int = Field(
        default=0,
        ge=0,
        le=6,
        description="Layers of crops besides the whole image; layer i has 2^i × 2^i crops.",
    )
    crop_nms_thresh: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Like box_nms_thresh, between crops; the mask of the smaller crop is kept.",
    )
    crop_overlap_ratio: float = Field(
        default=512 / 1500,
        ge=0,
        lt=1,
        description="Overlap of layer 1's crops, as a share of the shorter side.",
    )
    crop_n_points_downscale_factor: int = Field(
        default=1, ge=1, description="Layer i has points_per_side / factor^i points along a side."
    )
    min_mask_region_area: int = Field(
        default=0,
        ge=0,
        description="Fill holes and remove islands with fewer pixels; 0 turns this off.",
    )
    drop_small_masks: bool = Field(
        default=False,
        description="Drop masks whose largest part is smaller than min_mask_region_area.",
    )
    max_mask_area_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Drop masks that cover at least this share of the image; null keeps them.",
    )
    device_budget_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        description="GPU memory for the prompts and masks of each of two batches at work; null: by the card.",
    )

    @model_validator(mode="after")
    def _grid_in_every_layer(self) -> Self:
        if self.points_per_side_in_layer(self.crop_n_layers) < 1:
            raise ValueError(
                f"points_per_side {self.points_per_side} leaves no point in crop layer {self.crop_n_layers} "
                f"with crop_n_points_downscale_factor {self.crop_n_points_downscale_factor}"
            )
        return self

    def with_thresholds(self, thresholds: Thresholds) -> Self:
        """The same with a model's thresholds where none are given."""
        known = {name: value for name, value in asdict(thresholds).items() if getattr(self, name) is None}
        return self.model_copy(update=known)

    def points_per_side_in_layer(self, layer: int) -> int:
        """Prompts along one side of a crop's grid."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)

"""The options of `maskmill train`, and which of them decide the steps.

A run may be stopped and go on, but only as the same run: a schedule or a learning rate that changes halfway
gives weights that no configuration describes. What `TrainConfig.deciding` returns has to stay.

The defaults are the paper's (appendix A, "Training recipe") as far as it gives them.
"""

from __future__ import annotations

import math
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from ...model.training.interaction import Interaction
from ..config.loading import Section
from ..storage.paths import scheme_of

_DECIDES_NO_STEP = {
    "data",  # a folder may move
    "photographs",
    "moved",
    "out",
    "device",
    "loader_workers",
    "checkpoint_every",
    "evaluate_every",
    "validation_images",
}


def _on_this_machine(path: Any) -> Any:
    if isinstance(path, str) and scheme_of(path):
        raise ValueError(f"expected a path on this machine, got {path}: training reads and writes no store")
    return path


LocalPath = Annotated[Path, BeforeValidator(_on_this_machine)]


class StageConfig(Section):
    """One part of the schedule."""

    steps: int = Field(ge=1, description="Optimiser steps.")
    size: int = Field(
        ge=64, multiple_of=16, description="Side of the training squares, in pixels; whole patches."
    )
    images: int = Field(default=6, ge=1, description="Images per step, over all processes.")
    masks: int = Field(default=16, ge=1, description="Masks per image and step.")
    zoom: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.1, 2.0),
        description="Range of the jittered image's longer side, in sides of the square.",
    )
    augment: bool = Field(
        default=True,
        description="false: no jitter, flips or changes of colour; the image's longer side fills the square.",
    )
    train: Literal["all", "encoder", "decoder"] = Field(
        default="all",
        description="encoder: the image encoder alone, on the auxiliary losses; decoder: the mask decoder "
        "and the prompt encoder, with the image encoder frozen.",
    )
    focal_weight: float | None = Field(
        default=None, ge=0, description="Replaces the run's value; a low one makes the masks more decided."
    )
    iou_target: Literal["prompt", "point"] | None = Field(
        default=None, description="Replaces the run's value."
    )
    area_power: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Masks are drawn with a probability in proportion to their area to this power.",
    )

    @field_validator("zoom")
    @classmethod
    def _ordered(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if zoom[0] > zoom[1]:
            raise ValueError("expected the smaller number first")
        return zoom


class TrainConfig(Section):
    """Everything `maskmill train` can be told."""

    data: LocalPath = Field(
        description="Labelled images: a folder of tables, a COCO JSON, a folder of SA-1B, or a corpus."
    )
    photographs: LocalPath | None = Field(
        default=None, description="Folder of a COCO JSON's images; null: the JSON's folder."
    )
    moved: dict[str, str] = Field(
        default={},
        description="Where a corpus's images have moved since its run, as OLD: NEW (as in --moved).",
    )
    out: LocalPath = Field(description="Folder for checkpoints, TensorBoard logs and weights.")
    model: Literal["nano", "vit_b", "vit_l", "vit_h"] = Field(
        default="nano", description="Size of the network."
    )
    stages: tuple[StageConfig, ...] = Field(min_length=1, description="The schedule, in order.")
    source_weights: dict[str, NonNegativeFloat] = Field(
        default={},
        description="Relative weight with which a source's images are drawn; 0: never; not named: 1.",
    )
    largest_mask: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Masks that cover a larger share of their image are left out. (A square that shows no "
        "mask is itself the mask that is prompted for.)",
    )
    paste_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of squares with objects of another image pasted on."
    )
    grey_share: float = Field(default=0.0, ge=0, le=1, description="Share of squares without colour.")
    centre_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of first clicks in the middle of their mask; the rest are anywhere in it.",
    )
    learning_rate: float = Field(
        default=8e-4, gt=0, description="Peak of the schedule, after a linear warm-up."
    )
    warmup_steps: int = Field(default=250, ge=1, description="Steps of linear warm-up.")
    schedule: Literal["steps", "cosine"] = Field(
        default="steps",
        description="How the learning rate falls: to a tenth at each of drop_at, or along a cosine to 1 %.",
    )
    drop_at: tuple[float, ...] = Field(
        default=(2 / 3, 0.963), description="With steps: when the rate falls, as shares of all steps."
    )
    layer_decay: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Learning rate of each encoder block, as a share of the next block's.",
    )
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        description="Weight decay of parameters with two or more axes, so not of biases and norms.",
    )
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of AdamW's mean of squared gradients.")
    drop_path: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="Probability that an image skips the last block's attention or its MLP; smaller for "
        "earlier blocks.",
    )
    accumulate: int = Field(
        default=1, ge=1, description="Parts into which a process splits its share of a step, to save memory."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon takes the transformers' matrices and leaves the rest to AdamW.",
    )
    clip_norm: float = Field(default=1.0, gt=0, description="Maximum norm of the gradient.")
    focal_weight: float = Field(
        default=20.0, ge=0, description="Weight of the focal loss, where the dice loss has 1."
    )
    iou_target: Literal["prompt", "point"] = Field(
        default="prompt",
        description="point: the predicted IoU of a click is trained on the best IoU with any of the image's "
        "masks that contain the click, unless it is in the middle of its mask.",
    )
    iou_weight: float = Field(default=1.0, ge=0, description="Weight of the predicted IoU's squared error.")
    contrast_weight: float = Field(default=0.0, ge=0, description="Weight of the encoder's auxiliary loss.")
    teacher_features: LocalPath | None = Field(
        default=None,
        description="Feature maps for the encoder to imitate (examples/teacher_features.py); null: none.",
    )
    teacher_weight: float = Field(
        default=1.0, ge=0, description="Weight of the loss that imitates teacher_features."
    )
    prompts: Literal["interaction", "simple"] = Field(
        default="interaction",
        description="interaction: rounds of clicks and mask prompts; simple: one prompt, one kind per step.",
    )
    clicks: int = Field(default=8, ge=0, description="Rounds of an interaction that add a click on an error.")
    refine: bool = Field(
        default=True, description="Two more rounds, without a new click (if clicks is 0: one)."
    )
    single_mask_for_boxes: bool = Field(
        default=False, description="In an interaction, the single-mask token answers boxes, too."
    )
    recompute: bool = Field(
        default=False, description="Recompute rounds in the backward pass, to save memory."
    )
    box_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of masks whose first prompt is a box; with simple prompts, share of steps.",
    )
    points_share: float = Field(
        default=0.15, ge=0, le=1, description="With simple prompts: share of steps with several points."
    )
    ema_decay: float = Field(default=0.998, ge=0, lt=1, description="Decay of the averaged weights per step.")
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="bf16 runs matrix products in bfloat16."
    )
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    initial: LocalPath | None = Field(
        default=None,
        description="Weights to start from, which set the shapes, too; null starts from random ones.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Decides initial weights, batches and prompts.")
    loader_workers: int = Field(default=1, ge=0, description="Processes that prepare batches.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between checkpoints.")
    evaluate_every: int = Field(
        default=400, ge=1, description="Steps between evaluations on the validation images."
    )
    validation_images: int = Field(
        default=60, ge=1, description="Validation images that each evaluation uses."
    )

    @model_validator(mode="after")
    def _whole_parts(self) -> TrainConfig:
        for number, stage in enumerate(self.stages):
            if stage.images % self.accumulate:
                raise ValueError(
                    f"stages.{number}.images: expected a multiple of accumulate {self.accumulate}"
                )
            if stage.train == "encoder" and not self.contrast_weight and self.teacher_features is None:
                raise ValueError(
                    f"stages.{number}.train: the encoder alone learns from contrast_weight or "
                    f"teacher_features, and neither is given"
                )
        return self

    @property
    def total_steps(self) -> int:
        """The number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> StageConfig:
        """The stage of a step, counted from 1."""
        ends = accumulate(stage.steps for stage in self.stages)
        return next(stage for stage, end in zip(self.stages, ends, strict=True) if step <= end)

    def deciding(self) -> dict[str, Any]:
        """The options that decide the steps, as plain JSON: a run goes on only if they are the same."""
        return self.model_dump(mode="json", exclude=_DECIDES_NO_STEP)

    @property
    def interaction(self) -> Interaction:
        """The rounds of prompts for each mask, if `prompts` is an interaction."""
        return Interaction(
            self.clicks, self.refine, self.box_share, self.single_mask_for_boxes, self.recompute
        )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "steps":
            return self.learning_rate * 0.1 ** sum(step >= share * self.total_steps for share in self.drop_at)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

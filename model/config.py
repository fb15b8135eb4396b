"""The sizes of the model: what distinguishes `vit_h` from `nano` is in this file and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class SamConfig:
    """Shapes of one Segment Anything model (arXiv 2304.02643, appendix A). The defaults are ViT-B's.

    Lengths are in pixels of the model's input (`img_size`, `patch_size`), in image cells (`window_size`,
    a cell being one patch) or in channels (the rest). `out_chans` is the width of the image embedding and
    of the mask decoder. `tiny_vit` is MobileSAM's encoder, whose inner shapes are fixed: only `img_size`
    and `out_chans` describe it.
    """

    img_size: int = 1024
    patch_size: int = 16
    encoder: Literal["vit", "tiny_vit"] = "vit"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    out_chans: int = 256
    mask_in_chans: int = 16
    decoder_mlp_dim: int = 2048
    decoder_num_heads: int = 8
    iou_head_hidden_dim: int = 256

    def __post_init__(self) -> None:
        """Raise ValueError for shapes that no network has; they may come from a file."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} {value!r} is not a positive whole number")
        if type(self.mlp_ratio) not in (int, float) or not 0 < self.mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio {self.mlp_ratio!r} is not a positive number")
        if self.encoder not in ("vit", "tiny_vit"):
            raise ValueError(f"encoder {self.encoder!r} is not vit or tiny_vit")
        indexes: object = self.global_attn_indexes
        if not isinstance(indexes, tuple) or any(type(index) is not int or index < 0 for index in indexes):
            raise ValueError(f"global_attn_indexes {indexes!r} does not name blocks")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if self.encoder == "vit" and self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} does not divide into num_heads {self.num_heads}")
        heads = self.decoder_num_heads
        if self.out_chans % (2 * heads):
            raise ValueError(f"out_chans {self.out_chans} does not divide into 2 × decoder_num_heads {heads}")

    @property
    def embedding_size(self) -> int:
        """Side of the square image embedding, in cells."""
        return self.img_size // self.patch_size

    @property
    def low_res_size(self) -> int:
        """Side of the low-resolution mask logits, in pixels: four to a cell."""
        return 4 * self.embedding_size


@dataclass(frozen=True)
class Thresholds:
    """Which of a model's own masks to keep, by the scores that it gives them.

    How sure a model has to be depends on how well it knows itself, so these belong to the weights: a mask is
    kept with a predicted IoU above the first and a stability score of at least the second, both from 0 to 1.
    Raises ValueError for other numbers; they may come from a file.
    """

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise ValueError(f"{field.name} {value!r} is not a number from 0 to 1")


PUBLISHED = Thresholds()
"""The released generator's, which were chosen for ViT-H and are used with all published weights."""

MODELS: dict[str, SamConfig] = {
    "nano": SamConfig(
        img_size=512,
        embed_dim=192,
        depth=8,
        num_heads=6,
        window_size=8,
        global_attn_indexes=(1, 3, 5, 7),
        out_chans=128,
        decoder_mlp_dim=512,
        iou_head_hidden_dim=128,
    ),
    "vit_t": SamConfig(encoder="tiny_vit"),
    "vit_b": SamConfig(),
    "vit_l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": SamConfig(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
}

THRESHOLDS: dict[str, Thresholds] = {
    **dict.fromkeys(MODELS, PUBLISHED),
    "nano": Thresholds(pred_iou_thresh=0.58, stability_score_thresh=0.8),  # docs/nano.md says why
}
"""Recommended for each model, where a file of weights does not say otherwise."""

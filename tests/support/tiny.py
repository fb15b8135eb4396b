"""Networks that answer in milliseconds: random weights in shapes of SAM's that are as small as they go."""

from pathlib import Path

import torch

from maskmill.engine import GeneratorConfig
from maskmill.model.checkpoints.loading import save_sam
from maskmill.model.config import SamConfig
from maskmill.model.networks.sam import Sam
from maskmill.model.training.initialisation import initialise

TINY = SamConfig(
    img_size=64,
    embed_dim=16,
    depth=1,
    num_heads=2,
    window_size=2,
    global_attn_indexes=(0,),
    out_chans=32,
    decoder_mlp_dim=32,
    decoder_num_heads=4,
    iou_head_hidden_dim=16,
)
OPEN = GeneratorConfig(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1)
"""Lets every mask of a coarse grid through."""

LEARNS = SamConfig(
    img_size=128,
    embed_dim=32,
    depth=2,
    num_heads=2,
    window_size=4,
    global_attn_indexes=(1,),
    out_chans=32,
    decoder_mlp_dim=64,
    decoder_num_heads=2,
    iou_head_hidden_dim=32,
)
"""Starts as training from nothing does."""


def tiny(kind: type[Sam] = Sam) -> Sam:
    """Random weights whose masks have firm edges."""
    torch.manual_seed(0)
    sam = kind(TINY).eval()
    with torch.no_grad():
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 1000
    return sam


def save_tiny(path: Path) -> None:
    """A checkpoint of the `nano` family, its weights drawn with a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        sam = Sam(LEARNS)
        initialise(sam)
    save_sam(sam, path)

"""The released package (PyPI `segment-anything`) with our weights: what we are measured and tested against.

It imports four functions of torchvision, which maskmill does without: they are stood in for here, by their
documented behaviour, whether torchvision is installed or not. The suppression sorts stably, so that ties have
one right answer; torchvision's leaves them open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...engine.records import MaskRecord
from ...model.config import SamConfig


def box_area(boxes_N4: Tensor) -> Tensor:
    """Areas of XYXY boxes."""
    return (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])


def batched_nms(boxes_N4: Tensor, scores_N: Tensor, idxs_N: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression by falling score of boxes of one category, on the CPU: nothing is waited for."""
    if len(idxs_N.unique()) > 1:
        raise ValueError("the stand-in knows one category")
    device, boxes_N4 = boxes_N4.device, boxes_N4.cpu()
    areas = box_area(boxes_N4)
    waiting = torch.sort(scores_N.cpu(), stable=True, descending=True).indices
    keep = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        keep.append(best)
        corner = torch.maximum(boxes_N4[best, :2], boxes_N4[waiting, :2])
        sides = (torch.minimum(boxes_N4[best, 2:], boxes_N4[waiting, 2:]) - corner).clamp(min=0)
        shared = sides[:, 0] * sides[:, 1]
        waiting = waiting[~(shared / (areas[best] + areas[waiting] - shared) > iou_threshold)]
    return (torch.stack(keep) if keep else torch.zeros(0, dtype=torch.int64)).to(device)


def to_pil_image(image_HW3: np.ndarray) -> Image.Image:
    """The array as a picture."""
    return Image.fromarray(image_HW3)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at (height, width), by Pillow's bilinear filter."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
    "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
}


@contextmanager
def _stand_in() -> Iterator[None]:
    """Let `import torchvision` find the functions, in the block only: others ask if it is installed."""
    names = ["torchvision", "torchvision.ops", "torchvision.transforms", *FUNCTIONS]
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(FUNCTIONS.get(name, {}))
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


with _stand_in():
    import segment_anything.automatic_mask_generator as released
    import segment_anything.utils.amg as amg  # noqa: F401  # for tests of single steps
    import segment_anything.utils.transforms as released_transforms
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

# Someone may have imported the package before us, with other stand-ins.
vars(released).update(FUNCTIONS["torchvision.ops.boxes"])
vars(released_transforms).update(FUNCTIONS["torchvision.transforms.functional"])


def released_sam(config: SamConfig) -> Sam:
    """The released classes at our sizes, in eval mode, with weights yet to be loaded (strictly)."""
    if config.encoder != "vit":
        raise ValueError(f"the released package has the ViT encoder only, not {config.encoder!r}")
    grid = (config.embedding_size, config.embedding_size)
    encoder = ImageEncoderViT(
        img_size=config.img_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=config.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=config.global_attn_indexes,
        window_size=config.window_size,
    )
    prompts = PromptEncoder(
        config.out_chans, grid, (config.img_size, config.img_size), mask_in_chans=config.mask_in_chans
    )
    transformer = TwoWayTransformer(
        depth=2,
        embedding_dim=config.out_chans,
        num_heads=config.decoder_num_heads,
        mlp_dim=config.decoder_mlp_dim,
    )
    decoder = MaskDecoder(
        transformer_dim=config.out_chans,
        transformer=transformer,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=config.iou_head_hidden_dim,
    )
    return Sam(encoder, prompts, decoder).eval()


def released_generator(
    config: SamConfig, state_dict: dict[str, Tensor], **options: Any
) -> released.SamAutomaticMaskGenerator:
    """The released automatic mask generator with our weights and its own options."""
    sam = released_sam(config)
    sam.load_state_dict(state_dict, strict=True)
    return released.SamAutomaticMaskGenerator(sam, **options)


@dataclass(frozen=True)
class Agreement:
    """How two lists of masks of the same image agree.

    `ours`, `theirs`: how many masks each has; `matched_ours`, `matched_theirs`: how many of them have a
    partner of at least that IoU in the other list; `largest_score_difference`: of predicted IoUs, between
    partners; `swaps`: pairs of partners in another order though their scores differ by more than rounding.
    """

    ours: int
    theirs: int
    matched_ours: int
    matched_theirs: int
    largest_score_difference: float
    swaps: int

    @classmethod
    def none(cls) -> Agreement:
        """Of no images."""
        return cls(0, 0, 0, 0, 0.0, 0)

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.ours + other.ours,
            self.theirs + other.theirs,
            self.matched_ours + other.matched_ours,
            self.matched_theirs + other.matched_theirs,
            max(self.largest_score_difference, other.largest_score_difference),
            self.swaps + other.swaps,
        )

    @property
    def share(self) -> float:
        """The lower of the two directions' shares of matched masks; 1 where there are none."""
        pairs = ((self.matched_ours, self.ours), (self.matched_theirs, self.theirs))
        return min(matched / found if found else 1.0 for matched, found in pairs)


def compare(
    ours: Sequence[MaskRecord],
    theirs: Sequence[dict[str, Any]],
    min_iou: float = 0.99,
    rounding: float = 1e-4,
) -> Agreement:
    """Compare our records with the released generator's (of `output_mode="coco_rle"`)."""
    from pycocotools import mask as coco

    if not ours or not theirs:
        return Agreement(len(ours), len(theirs), 0, 0, 0.0, 0)
    codes = [
        {"size": list(r.segmentation.size), "counts": r.segmentation.counts.encode("ascii")} for r in ours
    ]
    their_codes = [
        {**r["segmentation"], "counts": r["segmentation"]["counts"].encode("ascii")} for r in theirs
    ]
    iou_OT = np.asarray(coco.iou(codes, their_codes, [0] * len(theirs)))
    matched_O, matched_T = iou_OT.max(1) >= min_iou, iou_OT.max(0) >= min_iou

    partner_O = iou_OT.argmax(1)[matched_O]
    score_O = np.array([record.predicted_iou for record in ours])[matched_O]
    their_score_O = np.array([record["predicted_iou"] for record in theirs])[partner_O]
    later_OO = np.triu(partner_O[:, None] > partner_O[None], 1)
    swaps = later_OO & (np.abs(score_O[:, None] - score_O[None]) > rounding)
    differences = np.abs(score_O - their_score_O)
    return Agreement(
        len(ours),
        len(theirs),
        int(matched_O.sum()),
        int(matched_T.sum()),
        float(differences.max(initial=0.0)),
        int(swaps.sum()),
    )

"""What training minimises (paper, section 3 and appendix A, "Training").

Masks are compared at the decoder's own resolution: a target pixel is the share of the true mask in its area,
so that a boundary between pixels is not forced to either side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss over the last two axes (arXiv 1708.02002, without its class weight): …×h×w → ….

    `targets` are shares in [0, 1]; a pixel's loss is scaled by (distance to its target) ** gamma.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    distance = (logits.sigmoid() - targets).abs()
    return (cross_entropy * distance**gamma).mean((-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − Dice over the last two axes: …×h×w → …. Two empty masks agree: 0.

    Sums of probabilities, not of their squares as in arXiv 1606.04797: a pixel in doubt is pushed to one
    side, which a stable mask needs.
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum((-2, -1))
    total = probability.sum((-2, -1)) + targets.sum((-2, -1))
    return 1 - (overlap + 1) / (total + 1)


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of the thresholded masks with the targets, over the last two axes: …×h×w → ….

    `targets` are shares in [0, 1]: a mask too small to fill half a pixel still counts, so that drawing
    nothing for it is worth 0. Two empty masks agree: 1.
    """
    predicted = (logits > 0).float()
    overlap = (predicted * targets).sum((-2, -1))
    union = predicted.sum((-2, -1)) + targets.sum((-2, -1)) - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1e-6), torch.ones_like(union))


def best_iou(logits_BKHW: Tensor, targets_BPHW: Tensor, eligible_BKP: Tensor) -> Tensor:
    """IoU of each thresholded mask with the best of its eligible targets, shares in [0, 1]: B×K.

    A mask with no eligible target has 0.
    """
    predicted_BKL = (logits_BKHW > 0).float().flatten(2)
    targets_BPL = targets_BPHW.flatten(2)
    overlap_BKP = predicted_BKL @ targets_BPL.transpose(1, 2)
    union_BKP = predicted_BKL.sum(2)[:, :, None] + targets_BPL.sum(2)[:, None] - overlap_BKP
    return (overlap_BKP / union_BKP.clamp(min=1e-6) * eligible_BKP).amax(2)


class FeatureContrast(nn.Module):
    """Auxiliary loss: the encoder's features alone must tell a mask's cells from the rest.

    The score of a cell is the cosine similarity of its feature to the one at the prompt's point, with a
    learnt scale and offset; inside and outside weigh the same. The encoder gets a gradient that does not pass
    through the decoder, without which a small encoder on few images learns where things are, not what they
    are. Used in training only; its two parameters are not part of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.offset = nn.Parameter(torch.tensor(-3.0))

    def forward(self, embedding_BCHW: Tensor, points_BP2: Tensor, targets_BPHW: Tensor) -> Tensor:
        """Mean loss. Points are (x, y) in [0, 1] of the padded square; targets are shares of each cell."""
        features = F.normalize(embedding_BCHW.float(), dim=1)
        grid = (2 * points_BP2 - 1)[:, :, None]  # B×P×1×2
        at_point_BCP = F.grid_sample(features, grid, padding_mode="border", align_corners=False)[..., 0]
        similarity = torch.einsum("bcp,bchw->bphw", F.normalize(at_point_BCP, dim=1), features)
        logits = similarity * self.log_scale.exp() + self.offset
        inside = targets_BPHW / targets_BPHW.sum((-2, -1), keepdim=True).clamp(min=1e-3)
        outside = (1 - targets_BPHW) / (1 - targets_BPHW).sum((-2, -1), keepdim=True).clamp(min=1e-3)
        losses = inside * F.softplus(-logits) + outside * F.softplus(logits)
        return losses.sum((-2, -1)).mean() / 2


class FeatureImitation(nn.Module):
    """Auxiliary loss: a linear map of the encoder's features must give another network's.

    Distillation: a small encoder learns from a few thousand images what its teacher learnt from a
    million. Used in training only; the linear map is not part of the model.
    """

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, teacher_channels, kernel_size=1)

    def forward(self, embedding_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
        """Mean squared error where the teacher's features, of unit variance, are not NaN."""
        known_BHW = teacher_BCHW.isfinite().all(1)
        error_BHW = (self.project(embedding_BCHW).float() - teacher_BCHW.nan_to_num()).square().mean(1)
        return (error_BHW * known_BHW).sum() / known_BHW.sum().clamp(min=1)

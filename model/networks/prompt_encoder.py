"""The prompt encoder: points and boxes → tokens; masks → what they add to the image, in factors."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..config import SamConfig
from .layers import LayerNorm2d


class PromptEncoder(nn.Module):
    """Any combination of points with labels, a box and a mask (paper, appendix A, "Prompt encoder")."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.img_size = config.img_size
        self.pe_layer = FourierPositions(config.out_chans // 2)
        # In order: background point, foreground point, top-left corner, bottom-right corner.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, config.out_chans) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, config.out_chans)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, config.mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(config.mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(config.mask_in_chans // 4, config.mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(config.mask_in_chans),
            nn.GELU(),
            nn.Conv2d(config.mask_in_chans, config.out_chans, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, config.out_chans)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the tokens; positions are computed apart (`FourierPositions`)."""
        return self.no_mask_embed.weight.dtype

    def sparse(
        self, points_BPN2: Tensor | None, labels_BPN: Tensor | None, boxes_BP4: Tensor | None
    ) -> Tensor | None:
        """Tokens of the points and boxes: B×P×T×C, T = points (+ 1 padding point without a box) + 2 a box.

        Coordinates are (x, y) and XYXY in pixels of the model's input. Labels: 1 foreground, 0 background,
        −1 not a point. None without points and boxes.
        """
        tokens = []
        if points_BPN2 is not None and labels_BPN is not None:
            if boxes_BP4 is None:  # the published model always sees a padding point when there is no box
                points_BPN2 = torch.cat([points_BPN2, points_BPN2.new_zeros(*points_BPN2.shape[:2], 1, 2)], 2)
                labels_BPN = torch.cat([labels_BPN, -labels_BPN.new_ones(*labels_BPN.shape[:2], 1)], 2)
            tokens.append(self.labelled(points_BPN2, labels_BPN))
        if boxes_BP4 is not None:
            corners_BP22 = boxes_BP4.unflatten(-1, (2, 2))
            tokens.append(self._positions(corners_BP22) + self._kinds()[2:])
        return torch.cat(tokens, dim=2).to(self.dtype) if tokens else None

    # The last step of the mask's path is linear and its input narrow: what a mask adds to an image's cells is
    # a mix of a few rows, the same for all masks (`model.networks.factored_cells`).

    def mask_rows(self) -> Tensor:
        """The rows that a mask prompt mixes: one for each channel, and what replaces “no mask”: X×C."""
        last = cast(nn.Conv2d, self.mask_downscaling[-1])
        replacing_C = cast(Tensor, last.bias) - self.no_mask_embed.weight[0]
        return torch.cat([last.weight[:, :, 0, 0].T, replacing_C[None]])

    def mask_weights(self, masks_BP1HW: Tensor) -> Tensor:
        """How much each cell of the image takes of each of `mask_rows`: B×P×X×L, the last of them ones.

        `masks_BP1HW` are low-resolution logits, four pixels to an image cell.
        """
        features_NXhw = self.mask_downscaling[:-1](masks_BP1HW.flatten(0, 1).to(self.dtype))
        features_NXL = features_NXhw.flatten(2)
        weights_NXL = torch.cat([features_NXL, torch.ones_like(features_NXL[:, :1])], 1)
        return weights_NXL.unflatten(0, masks_BP1HW.shape[:2])

    def image_positions(self, side: int) -> Tensor:
        """Positional encoding of a side×side grid of image cells, row by row: L×C."""
        centres = (torch.arange(side, device=self.pe_layer.gaussian.device) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).flatten(0, 1).to(self.dtype)

    def labelled(self, points_BPN2: Tensor, labels_BPN: Tensor) -> Tensor:
        """A token a point: B×P×N×C, and none that is not asked for.

        Beside the labels of `sparse` there are 2 and 3, the corners of a box: so prompts that begin with a
        point (and a padding point) and prompts that begin with a box are of one shape.
        """
        positions = self._positions(points_BPN2)
        label = labels_BPN[..., None]
        tokens = positions.masked_fill(label == -1, 0.0) + (label == -1) * self.not_a_point_embed.weight
        for number, kind in enumerate(self._kinds()):
            tokens = tokens + (label == number) * kind
        return tokens.to(self.dtype)

    def _kinds(self) -> Tensor:
        """What is added for a background point, a foreground point and a box's two corners: 4×C."""
        return torch.cat([cast(nn.Embedding, kind).weight for kind in self.point_embeddings])

    def _positions(self, points: Tensor) -> Tensor:
        """Encode pixel centres, …×2 → …×C."""
        return self.pe_layer((points + 0.5) / self.img_size)


class FourierPositions(nn.Module):
    """Random Fourier features of a point in the unit square (arXiv 2006.10739).

    The matrix of frequencies stays in fp32 where the weights beside it do not (`Sam.decode_in`).
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    @property
    def gaussian(self) -> Tensor:
        """The 2×features matrix of frequencies."""
        return self.positional_encoding_gaussian_matrix

    def forward(self, points: Tensor) -> Tensor:
        """(x, y) in [0, 1], …×2 → …×(2·features), computed in fp32 whatever the weights are."""
        angles = 2 * math.pi * ((2 * points.float() - 1) @ self.gaussian.float())
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.gaussian.dtype)

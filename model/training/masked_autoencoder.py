"""Masked autoencoding: the encoder learns from plain images (arXiv 2111.06377), as the paper's has.

Three patches in four are hidden. The encoder sees the rest and only the rest, which makes it cheap; a small
decoder, thrown away afterwards, has to say what was hidden. As in the detector's recipe (arXiv 2203.16527,
section 3) the blocks attend globally here, without windows and without relative positions, which come with
training: tables of zeros, as a new encoder has them, add nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks.attention import attend
from ..networks.image_encoder import Block, ImageEncoderViT
from .initialisation import sinusoids


class MaskedAutoencoder(nn.Module):
    """An encoder, and the decoder that makes it learn."""

    positions_LC: Tensor

    def __init__(self, encoder: ImageEncoderViT, side: int, width: int = 128, depth: int = 2) -> None:
        """`side`: of the square of patches. `width` and `depth` are the decoder's."""
        super().__init__()
        self.encoder = encoder
        self.side = side
        self.patch = encoder.patch_embed.proj.kernel_size[0]
        self.enter = nn.Sequential(
            nn.LayerNorm(encoder.pos_embed.shape[-1]), nn.Linear(encoder.pos_embed.shape[-1], width)
        )
        self.hidden_token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions_LC", sinusoids(side, width)[0].flatten(0, 1), persistent=False)
        self.decoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * self.patch**2))

    def forward(self, pixels_BCHW: Tensor, visible_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error on the hidden patches, and what was said of every patch: B×L×(3·patch²).

        Pixels are normalised; `visible_BV` indexes the patches that are seen, row by row. Patches are
        compared after each is brought to mean 0 and variance 1 (that paper's better target).
        """
        encoder = self.encoder
        cells_BLC = encoder.patch_embed(pixels_BCHW).float() + encoder.positions(self.side)
        cells_BLC = cells_BLC.flatten(1, 2)
        seen_BVC = _gathered(cells_BLC, visible_BV)
        for block in encoder.blocks:
            seen_BVC = attend_globally(block, seen_BVC)
        entered_BVC = self.enter(seen_BVC)
        tokens_BLC = self.hidden_token.to(entered_BVC.dtype).expand(*cells_BLC.shape[:2], -1)
        index = visible_BV[..., None].expand(-1, -1, entered_BVC.shape[-1])
        tokens_BLC = tokens_BLC.scatter(1, index, entered_BVC) + self.positions_LC
        for layer in self.decoder:
            tokens_BLC = layer(tokens_BLC)
        said_BLX = self.leave(tokens_BLC).float()

        true_BLX = patches(pixels_BCHW.float(), self.patch)
        spread = true_BLX.var(-1, keepdim=True) + 1e-6
        error_BL = (said_BLX - (true_BLX - true_BLX.mean(-1, keepdim=True)) / spread.sqrt()).square().mean(-1)
        hidden_BL = torch.ones_like(error_BL).scatter(1, visible_BV, 0.0)
        return (error_BL * hidden_BL).sum() / hidden_BL.sum(), said_BLX


def attend_globally(block: nn.Module, x_BVC: Tensor) -> Tensor:
    """A block's work on any set of cells: each attends to all others, wherever they are."""
    assert isinstance(block, Block)
    attention = block.attn
    qkv = attention.qkv(block.norm1(x_BVC)).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attended = attend(q * attention.scale, k, v).transpose(1, 2).flatten(2)
    x_BVC = x_BVC + attention.proj(attended)
    out: Tensor = x_BVC + block.mlp(block.norm2(x_BVC))
    return out


def patches(pixels_BCHW: Tensor, patch: int) -> Tensor:
    """B×3×S×S → B×L×(3·patch²), patches row by row."""
    squares = pixels_BCHW.unflatten(3, (-1, patch)).unflatten(
        2, (-1, patch)
    )  # B, 3, rows, patch, columns, patch
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _gathered(cells_BLC: Tensor, chosen_BV: Tensor) -> Tensor:
    return cells_BLC.gather(1, chosen_BV[..., None].expand(-1, -1, cells_BLC.shape[-1]))

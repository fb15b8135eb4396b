"""The image encoder: a plain ViT with windowed attention and decomposed relative positions.

Attention runs with no attention mask, in general. The bias that query q adds to key k is
rel_h(q)[row of k] + rel_w(q)[column of k]; append the two vectors to the query and one-hot (row, column) to
the key, and their product is the bias. So no score matrix of the 4,096 × 4,096 cells is ever stored
(`model.networks.attention`).

In a wide grid what is appended outweighs the head: 128 numbers beside 64 in the published sizes. There a CPU
is given the bias as a mask, for a few rows of queries at a time: half the time, and a slice of the scores at
most. Training keeps to the first way: a mask's gradient would be as large as all scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SamConfig
from .attention import attend, width_for, zeros_beside
from .device_tensors import kept_on_device
from .layers import LayerNorm2d, MLPBlock

ROWS_AT_ONCE = 2
"""Rows of queries whose bias is made together."""


class ImageEncoderViT(nn.Module):
    """Image → image embedding (paper, section 3; the backbone is arXiv 2203.16527's)."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        side = config.embedding_size
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config, 0 if index in config.global_attn_indexes else config.window_size)
            for index in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.embed_dim, config.out_chans, kernel_size=1, bias=False),
            LayerNorm2d(config.out_chans),
            nn.Conv2d(config.out_chans, config.out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.out_chans),
        )

    def forward(self, pixels_BCHW: Tensor, paths_BL2: Tensor | None = None) -> Tensor:
        """B×3×S×S normalised pixels → B×out_chans×(S/patch)×(S/patch).

        S is the configured `img_size`; a smaller S (training at low resolution) resamples the positions.
        `paths_BL2` weighs what the attention and the MLP of each of the L blocks add (`drop_paths`).
        """
        # What the blocks add up is kept in fp32: in bf16 each would round what all before it have found.
        x_BHWC = self.patch_embed(pixels_BCHW).float()
        x_BHWC = x_BHWC + self.positions(x_BHWC.shape[1])
        for index, block in enumerate(self.blocks):
            x_BHWC = block(x_BHWC) if paths_BL2 is None else block(x_BHWC, paths_BL2[:, index])
        embedding: Tensor = self.neck(x_BHWC.to(pixels_BCHW.dtype).permute(0, 3, 1, 2))
        return embedding

    def positions(self, side: int) -> Tensor:
        """Positions of a side×side grid, resampled where it is not the configured one: 1×side×side×C."""
        if side == self.pos_embed.shape[1]:
            return self.pos_embed
        resized = F.interpolate(self.pos_embed.permute(0, 3, 1, 2), (side, side), mode="bilinear")
        return resized.permute(0, 2, 3, 1)


def drop_paths(uniform_BL2: Tensor, rate: float) -> Tensor:
    """Drop path (arXiv 1603.09382): 0 where an image goes without a block's attention or MLP.

    `uniform_BL2` are numbers in [0, 1). The chance to go without rises with the depth, from 0 in the first
    block to `rate` in the last; what stays is scaled up, so that its mean is the same.
    """
    stays_L1 = 1 - torch.linspace(0, rate, uniform_BL2.shape[1], device=uniform_BL2.device)[:, None]
    return (uniform_BL2 < stays_L1) / stays_L1


class PatchEmbed(nn.Module):
    """One linear map of each patch's pixels."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """B×3×S×S → B×H×W×C, a cell a patch."""
        return self.proj(pixels_BCHW).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A transformer block; `window_size` 0 attends globally."""

    def __init__(self, config: SamConfig, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = Attention(config.embed_dim, config.num_heads, window_size or config.embedding_size)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.mlp = MLPBlock(config.embed_dim, int(config.embed_dim * config.mlp_ratio), nn.GELU)

    def forward(self, x_BHWC: Tensor, paths_B2: Tensor | None = None) -> Tensor:
        """B×H×W×C → the same shape; `paths_B2` weighs what the attention and the MLP add."""
        height, width = x_BHWC.shape[1:3]
        dtype = self.norm1.weight.dtype
        normed = self.norm1(x_BHWC.to(dtype))
        if self.window_size:
            windows = partition_windows(normed, self.window_size)
            attended = merge_windows(self.attn(windows), self.window_size, height, width)
        else:
            attended = self.attn(normed)
        if paths_B2 is not None:
            attended = attended * paths_B2[:, 0, None, None, None]
        x_BHWC = x_BHWC + attended
        found: Tensor = self.mlp(self.norm2(x_BHWC.to(dtype)))
        if paths_B2 is not None:
            found = found * paths_B2[:, 1, None, None, None]
        return x_BHWC + found


class Attention(nn.Module):
    """Multi-head self-attention over a square of cells, with decomposed relative positions."""

    def __init__(self, width: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // num_heads))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """B×H×W×C → the same shape; every cell attends to every cell of its own B."""
        batch, height, width, _ = x_BHWC.shape
        qkv = self.qkv(x_BHWC).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each B × heads × cells × head width

        q_grid = q.unflatten(2, (height, width))
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", q_grid, relative_positions(self.rel_pos_h, height))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", q_grid, relative_positions(self.rel_pos_w, width))
        if x_BHWC.device.type == "cpu" and not torch.is_grad_enabled() and height + width > q.shape[-1]:
            out = attend_by_rows(q, k, v, rel_h, rel_w)
        else:
            used = k.shape[-1] + height + width
            blank = width_for(used, k.device) - used
            parts = [q * self.scale, rel_h.flatten(2, 3), rel_w.flatten(2, 3)]
            if blank:
                parts.append(zeros_beside(q, blank))
            where = one_hot_cells(height, width, blank, k.dtype, k.device).expand(*k.shape[:2], -1, -1)
            out = attend(torch.cat(parts, dim=-1), torch.cat([k, where], dim=-1), v)
        out = out.transpose(1, 2).reshape(batch, height, width, -1)
        projected: Tensor = self.proj(out)
        return projected


def attend_by_rows(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Attention of q, k, v (B×heads×H·W×D) with the bias rel_h (…H×W×H) + rel_w (…H×W×W): as v.

    The bias of all queries would be as large as the scores; `ROWS_AT_ONCE` rows of the grid have theirs made.
    """
    rel_h, rel_w = rel_h.contiguous(), rel_w.contiguous()  # so that their sums are
    width, out = rel_w.shape[3], []
    for start in range(0, rel_h.shape[2], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        bias = rel_h[:, :, rows, :, :, None] + rel_w[:, :, rows, :, None]  # …, row and column of q, then of k
        queries = q[:, :, start * width : (start + ROWS_AT_ONCE) * width]
        mask = bias.flatten(4).flatten(2, 3)
        out.append(F.scaled_dot_product_attention(queries, k, v, attn_mask=mask))
    return torch.cat(out, dim=2)


def relative_positions(table: Tensor, side: int) -> Tensor:
    """Rows of the (2·side−1)×C table for every (query, key) pair along an axis: side×side×C.

    A table made for another side is resampled to this one, as the ViT detector paper does.
    """
    if table.shape[0] != 2 * side - 1:
        table = F.interpolate(table.T[None], 2 * side - 1, mode="linear")[0].T
    return table[axis_distances(side, table.device)]


@kept_on_device(16)
def axis_distances(side: int, device: torch.device) -> Tensor:
    """Which row of a table of relative positions each pair of an axis' cells takes: side×side."""
    steps = torch.arange(side, device=device)
    return steps[:, None] - steps[None, :] + side - 1


@kept_on_device(16)
def one_hot_cells(height: int, width: int, blank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(height·width) × (height + width + blank): a one at each cell's row and one at its column."""
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)
    return torch.cat([rows, columns, zeros_beside(rows, blank)], dim=1)


def partition_windows(x_BHWC: Tensor, size: int) -> Tensor:
    """B×H×W×C → (B·windows)×size×size×C, padded with zeros at the right and at the bottom."""
    height, width, channels = x_BHWC.shape[1:]
    x = F.pad(x_BHWC, (0, 0, 0, -width % size, 0, -height % size))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # B, rows, size, columns, size, C
    return x.transpose(2, 3).reshape(-1, size, size, channels)


def merge_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Undo `partition_windows`, dropping the padding."""
    rows, columns = -(-height // size), -(-width // size)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]

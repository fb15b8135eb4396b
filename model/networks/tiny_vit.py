"""TinyViT, the image encoder of MobileSAM (arXiv 2306.14289; the backbone is TinyViT-5M, arXiv 2207.10666).

Four stages of growing width: two convolution blocks at a quarter of the input's resolution, then three stages
of attention in windows of 7, 14 and 7 cells, each block with a depth-wise convolution. The published network
halves the resolution between stages; MobileSAM leaves out the last halving, so that the embedding has the
16-pixel cells of the other encoders. Parameter names are MobileSAM's, and so is the classifier that its file
still carries (`norm_head`, `head`): it is never called.

A window's attention bias depends on how far apart two cells are, in rows and in columns: one learnt number
for each such distance and head. A window has at most 196 cells, so the bias is small enough for a mask.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SamConfig
from .attention import scaled_dot_product
from .image_encoder import merge_windows, partition_windows
from .layers import LayerNorm2d

WIDTHS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)  # the first stage has convolutions only
WINDOWS = (7, 7, 14, 7)
DOWNSAMPLING = (2, 2, 1)  # between the stages; the patch embedding has taken a factor of 4 before
CLASSES = 1000  # of the unused classifier


class TinyViT(nn.Module):
    """Image → image embedding. Inner shapes are fixed; the input's sides may be any multiples of 16."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        stride = 4 * DOWNSAMPLING[0] * DOWNSAMPLING[1] * DOWNSAMPLING[2]
        if config.patch_size != stride:
            raise ValueError(f"TinyViT has cells of {stride} pixels, got patch_size {config.patch_size}")
        self.patch_embed = PatchEmbed(WIDTHS[0])
        merges = [
            PatchMerging(a, b, step) for (a, b), step in zip(pairwise(WIDTHS), DOWNSAMPLING, strict=True)
        ]
        self.layers = nn.ModuleList([ConvStage(WIDTHS[0], DEPTHS[0], merges[0])])
        for index in range(1, len(WIDTHS)):
            downsample = merges[index] if index < len(merges) else None
            self.layers.append(
                AttentionStage(WIDTHS[index], DEPTHS[index], HEADS[index], WINDOWS[index], downsample)
            )
        self.norm_head = nn.LayerNorm(WIDTHS[-1])
        self.head = nn.Linear(WIDTHS[-1], CLASSES)
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], config.out_chans, kernel_size=1, bias=False),
            LayerNorm2d(config.out_chans),
            nn.Conv2d(config.out_chans, config.out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.out_chans),
        )

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """B×3×H×W normalised pixels → B×out_chans×(H/16)×(W/16); H and W are multiples of 16."""
        x_BCHW = self.patch_embed(pixels_BCHW)
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        embedding: Tensor = self.neck(x_BCHW)
        return embedding


class Conv2dBN(nn.Sequential):
    """A convolution without bias, then batch norm (the names `c` and `bn` are the checkpoint's)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2: a quarter of the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            Conv2dBN(3, width // 2, kernel=3, stride=2),
            nn.GELU(),
            Conv2dBN(width // 2, width, kernel=3, stride=2),
        )

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """B×3×H×W → B×C×(H/4)×(W/4)."""
        out: Tensor = self.seq(pixels_BCHW)
        return out


class PatchMerging(nn.Module):
    """Widen the channels and, with `stride` 2, halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2dBN(inputs, outputs)
        self.conv2 = Conv2dBN(outputs, outputs, kernel=3, stride=stride, groups=outputs)
        self.conv3 = Conv2dBN(outputs, outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → B×C'×(H/stride)×(W/stride)."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x_BCHW)))))
        return out


class ConvStage(nn.Module):
    """The first stage: inverted bottlenecks (MBConv), then a merge."""

    def __init__(self, width: int, depth: int, downsample: PatchMerging) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(width, 4 * width) for _ in range(depth))
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the merge's shape."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        out: Tensor = self.downsample(x_BCHW)
        return out


class MBConv(nn.Module):
    """Widen, convolve each channel by itself, narrow, add (arXiv 1801.04381)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = Conv2dBN(width, hidden)
        self.conv2 = Conv2dBN(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = Conv2dBN(hidden, width)
        nn.init.zeros_(self.conv3.bn.weight)  # starts as the identity, up to the last activation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the same shape."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x_BCHW))))
        return F.gelu(self.conv3(hidden) + x_BCHW)


class AttentionStage(nn.Module):
    """A later stage: attention in windows, then a merge unless it is the last."""

    def __init__(
        self, width: int, depth: int, num_heads: int, window_size: int, downsample: PatchMerging | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TinyViTBlock(width, num_heads, window_size) for _ in range(depth))
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the merge's shape."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        if self.downsample is not None:
            x_BCHW = self.downsample(x_BCHW)
        return x_BCHW


class TinyViTBlock(nn.Module):
    """Attention in windows, a depth-wise convolution across their borders, a feed-forward part."""

    def __init__(self, width: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = WindowAttention(width, num_heads, window_size)
        self.local_conv = Conv2dBN(width, width, kernel=3, groups=width)
        self.mlp = NormedMLP(width, 4 * width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B×C×H×W → the same shape."""
        height, width = x_BCHW.shape[2:]
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        windows = partition_windows(x_BHWC, self.window_size)
        x_BHWC = x_BHWC + merge_windows(self.attn(windows), self.window_size, height, width)
        x_BHWC = self.local_conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out_BHWC: Tensor = x_BHWC + self.mlp(x_BHWC)
        return out_BHWC.permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Layer norm and multi-head attention in one window, with a learnt bias by distance.

    The zeros that fill a window at the right and at the bottom are normalised and attended to like any other
    cell: the network was trained so.
    """

    distances: Tensor
    """Which bias each pair of a window's cells takes, cells × cells."""

    def __init__(self, width: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.register_buffer("distances", cell_distances(window_size), persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """B×size×size×C → the same shape, B counting windows."""
        qkv = self.qkv(self.norm(x_BHWC)).flatten(1, 2).unflatten(2, (self.num_heads, -1))
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=-1)  # each B × heads × cells × head width
        bias = self.attention_biases[:, self.distances].to(q.dtype)
        out = scaled_dot_product(q, k, v, bias)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected.view_as(x_BHWC)


class NormedMLP(nn.Module):
    """Layer norm and two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """…×width → …×width."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


def cell_distances(size: int) -> Tensor:
    """N×N, N = size²: for each pair of cells |difference of rows| · size + |difference of columns|."""
    cells = torch.arange(size**2)
    rows, columns = cells // size, cells % size
    return (rows[:, None] - rows).abs() * size + (columns[:, None] - columns).abs()

"""The mask decoder: the published one's numbers for a fraction of its work.

A grid asks about a thousand prompts of one image. The published decoder repeats the image's cells for each
prompt and projects all of them again and again. Three rewritings, exact up to float rounding: the prompts
share the image's tokens, and what they change in its cells stays in factors
(`model.networks.two_way_transformer`); and the mask head is lazy. The predicted IoU comes from the IoU token
alone, so `attend` scores the prompts and `draw` upscales only those that the caller still wants.

Axis letters: those of `model.networks.two_way_transformer`, and K masks drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SamConfig
from ..kernels import cells as compiled_cells
from ..kernels import upscaling
from .device_tensors import MOST_MATRICES, on_device
from .factored_cells import Cells, plus_product
from .layers import MLP, LayerNorm2d
from .two_way_transformer import ImageTokens, TwoWayTransformer

MASK_TOKENS = 4  # one for an unambiguous prompt, three for the nested readings of an ambiguous one


@dataclass(frozen=True)
class SharedImage:
    """What all prompts of an image share: how the transformer sees its cells, and what is drawn of them."""

    tokens: ImageTokens
    upscaled_BXL: Tensor  # what the first transposed convolution makes of the shared part
    upscaled_X: Tensor  # of β, with its bias
    upscaling_XC: Tensor  # and does with rows

    def images(self, chosen: slice) -> SharedImage:
        """Those of some of the images."""
        return replace(self, tokens=self.tokens.images(chosen), upscaled_BXL=self.upscaled_BXL[chosen])


@dataclass(frozen=True)
class Part:
    """Some of each image's prompts after both blocks: scored, and not looked at for masks yet."""

    iou_BPM: Tensor
    tokens_BPMC: Tensor  # the mask tokens, before their last look at the image
    prompts_BPMC: Tensor  # as they were before the first
    cells: Cells

    def chosen(self, image: int, prompts_J: Tensor) -> Part:
        """Distinct prompts of one of the images, in their order."""
        one = slice(image, image + 1)
        every = len(prompts_J) == self.iou_BPM.shape[1]

        def choose(x_BP: Tensor) -> Tensor:
            return x_BP[one] if every else x_BP[one].index_select(1, prompts_J)

        tokens_1JMC, prompts_1JMC = choose(self.tokens_BPMC), choose(self.prompts_BPMC)
        return Part(choose(self.iou_BPM), tokens_1JMC, prompts_1JMC, self.cells.chosen(choose))


@dataclass(frozen=True)
class Decoded:
    """Prompts that are scored, not drawn."""

    iou_BPM: Tensor  # predicted IoU of the single-mask token, then of the three others
    image: SharedImage
    parts: tuple[Part, ...]  # of as many prompts each, but for the last


class MaskDecoder(nn.Module):
    """Two-way transformer, IoU head and dynamic mask head (paper, appendix A, "Lightweight mask decoder")."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        width = config.out_chans
        self.transformer = TwoWayTransformer(width, config.decoder_num_heads, config.decoder_mlp_dim)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8, 3) for _ in range(MASK_TOKENS)
        )
        self.iou_prediction_head = MLP(width, config.iou_head_hidden_dim, MASK_TOKENS, 3)

    def share(self, cells_BLC: Tensor, positions_LC: Tensor, mask_rows_XC: Tensor) -> SharedImage:
        """What prompts have in common, once an image.

        The cells are the image's embedding with “no mask” added; a mask prompt mixes its rows into them.
        """
        tokens, seen_BLC = self.transformer.share(cells_BLC, positions_LC, mask_rows_XC)
        norm = self.transformer.blocks()[1].norm4
        weight_XC, bias_X = quarters(self.output_upscaling[0])
        return SharedImage(
            tokens,
            upscaled_BXL=weight_XC @ seen_BLC.mT,
            upscaled_X=weight_XC @ norm.bias + bias_X,
            upscaling_XC=weight_XC * norm.weight,
        )

    def attend(
        self,
        image: SharedImage,
        sparse_BPTC: Tensor,
        mask_weights_BPXL: Tensor | None = None,
        together: int | None = None,
    ) -> Decoded:
        """Run the transformer and score the prompts; `together` of each image at once, if it is given.

        `mask_weights_BPXL` are those of mask prompts, for `share`'s rows. No more prompts run at once than
        make `MOST_MATRICES`, one for each prompt and head.
        """
        if sparse_BPTC.shape[0] != image.upscaled_BXL.shape[0]:
            images, got = image.upscaled_BXL.shape[0], sparse_BPTC.shape[0]
            raise ValueError(f"expected prompts for {images} image(s), got them for {got}")
        learned_MC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        learned_BPMC = learned_MC.expand(*sparse_BPTC.shape[:2], -1, -1)
        prompts_BPTC = torch.cat([learned_BPMC, sparse_BPTC], 2)
        most = max(1, MOST_MATRICES // (sparse_BPTC.shape[0] * self.transformer.num_heads))
        size = min(together or prompts_BPTC.shape[1], most)
        parts = prompts_BPTC.split(size, 1)
        masks = [None] * len(parts) if mask_weights_BPXL is None else mask_weights_BPXL.split(size, 1)
        scored = tuple(self._score(image, *part) for part in zip(parts, masks, strict=True))
        return Decoded(torch.cat([part.iou_BPM for part in scored], 1), image, scored)

    def _score(self, image: SharedImage, prompts_BPTC: Tensor, mask_weights_BPXL: Tensor | None) -> Part:
        tokens_BPTC, cells = self.transformer(prompts_BPTC, image.tokens, mask_weights_BPXL)
        iou_BP1C = self.transformer.last_look(
            tokens_BPTC[:, :, :1], prompts_BPTC[:, :, :1], cells, image.tokens
        )
        masks = slice(1, 1 + MASK_TOKENS)
        last = cast(nn.Linear, self.iou_prediction_head.layers[-1])  # may be finer: `Sam.decode_in`
        iou_BPM = self.iou_prediction_head(iou_BP1C[:, :, 0].to(last.weight.dtype))
        return Part(iou_BPM, tokens_BPTC[:, :, masks], prompts_BPTC[:, :, masks], cells)

    def draw(self, decoded: Decoded, prompt_K: Tensor, token_K: Tensor) -> Tensor:
        """Logits K×h×w of the chosen masks; `prompt_K` counts through B×P, `token_K` names the mask token.

        Each distinct prompt is upscaled once, however many of its masks are wanted.
        """
        # Who is where is sorted out on the host: of a device each of these numbers would have to be awaited.
        prompt_K, order_K = torch.sort(prompt_K.cpu(), stable=True)
        parts, device = decoded.parts, decoded.iou_BPM.device
        images, size = parts[0].iou_BPM.shape[:2]
        prompts = sum(part.iou_BPM.shape[1] for part in parts)  # an image
        image_K, place_K = prompt_K // prompts, prompt_K % prompts
        groups, counts = torch.unique_consecutive(image_K * len(parts) + place_K // size, return_counts=True)
        places = (place_K % size).split(counts.tolist())
        tokens = token_K.cpu()[order_K].split(counts.tolist())
        indexes = [order_K]
        for place_k, token_k in zip(places, tokens, strict=True):
            indexes += (*torch.unique_consecutive(place_k, return_inverse=True), token_k)
        order_K, *moved = on_device(torch.cat(indexes), device).split([len(index) for index in indexes])
        shared = [decoded.image.images(slice(index, index + 1)) for index in range(images)]
        side = 4 * round(decoded.image.upscaled_BXL.shape[-1] ** 0.5)
        drawn = [decoded.image.upscaled_BXL.new_empty(0, side, side)]
        for group, place_J, row_k, token_k in zip(
            groups.tolist(), moved[::3], moved[1::3], moved[2::3], strict=True
        ):
            index, part = divmod(group, len(parts))
            chosen = parts[part].chosen(index, place_J)
            drawn.append(self._draw(shared[index], chosen, row_k, token_k))
        drawn_Khw = torch.cat(drawn)
        return torch.empty_like(drawn_Khw).index_copy(0, order_K, drawn_Khw)

    def _draw(self, image: SharedImage, part: Part, row_K: Tensor, token_K: Tensor) -> Tensor:
        """Masks of one image: `row_K` counts through the part's prompts."""
        tokens_1JMC = self.transformer.last_look(
            part.tokens_BPMC, part.prompts_BPMC, part.cells, image.tokens
        )
        heads = zip(self.output_hypernetworks_mlps, tokens_1JMC[0].unbind(1), strict=True)
        weights_JMC = torch.stack([head(token_JC) for head, token_JC in heads], 1)
        norm, second = cast(LayerNorm2d, self.output_upscaling[1]), self.output_upscaling[3]
        rows_1JRX = part.cells.rows_BPRC @ image.upscaling_XC.T
        if compiled_cells.suits(weights_JMC, rows_1JRX, image.upscaled_BXL):
            return upscaling.drawn(
                part.cells.share_BPL[0],
                part.cells.weights_BPRL[0],
                rows_1JRX[0],
                image.upscaled_BXL[0],
                image.upscaled_X,
                (norm.weight, norm.bias, norm.eps),
                quarters(second),
                weights_JMC[row_K, token_K],
                row_K,
            )
        upscaled_JYc = self._upscale(image, part.cells, rows_1JRX)
        cells_KY = (upscaled_JYc @ weights_JMC.mT)[row_K, :, token_K]
        side = round(part.cells.share_BPL.shape[-1] ** 0.5)
        cells_K = cells_KY.unflatten(1, (side, side, 2, 2, 2, 2))  # row, column; halves; quarters
        return cells_K.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * side, 4 * side)

    def _upscale(self, image: SharedImage, cells: Cells, rows_1PRX: Tensor) -> Tensor:
        """Each cell in sixteen: P×16L×C/8, the quarters of a cell's quarters in a row.

        A transposed convolution whose kernel is as wide as its stride is a linear map of each cell. So the
        first one meets the cells in their factors, and the channels stay last, where the norm and the
        products want them; only finished logits change places.
        """
        base_1LX = image.upscaled_BXL.mT
        halves_1PLX = torch.addcmul(image.upscaled_X, cells.share_BPL[..., None], base_1LX[:, None])
        halves_1PLX = plus_product(halves_1PLX, cells.weights_BPRL.mT, rows_1PRX)
        _, norm, gelu, second, last_gelu = self.output_upscaling
        halves_PYc = halves_1PLX[0].unflatten(-1, (4, -1)).flatten(1, 2)
        halves_PYc = gelu(cast(LayerNorm2d, norm).last(halves_PYc))
        quarters_PYX = F.linear(halves_PYc, *quarters(second))
        upscaled_PYc: Tensor = last_gelu(quarters_PYX.unflatten(-1, (4, -1)).flatten(1, 2))
        return upscaled_PYc


def quarters(up: nn.Module) -> tuple[Tensor, Tensor]:
    """A 2×2 transposed convolution of stride 2 as a linear map of a cell to its four quarters, row by row."""
    weight_CcHW, bias_c = cast(Tensor, up.weight), cast(Tensor, up.bias)
    return weight_CcHW.permute(2, 3, 1, 0).flatten(0, 2), bias_c.repeat(4)

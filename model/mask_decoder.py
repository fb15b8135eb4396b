"""The mask decoder: the published one's numbers for a fraction of its work.

A grid asks about a thousand prompts of one image. The published decoder repeats the image's cells for each
prompt and projects all of them again and again. Three rewritings, exact up to float rounding:

1. Shared image tokens. Before the first update the cells are the same for every prompt: `ImageTokens` holds
   their projections, made once an image, and the tokens of all prompts attend to them in one product.
2. Cells in factors. What a prompt changes in the cells is a mix of a few rows; they are kept as what all
   prompts share and those rows, and never written out (`model.cells`).
3. Lazy mask head. The predicted IoU comes from the IoU token alone, so `attend` scores the prompts and
   `draw` upscales only those that the caller still wants.

Axis letters: B images, P prompts an image, T tokens a prompt, L image cells, C channels, N heads, D head
width, S heads × tokens, K masks drawn. A prompt that brings a mask has cells of its own from the start: it
is here an image of its own, with one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import cells_compiled, drawing_compiled
from model.cells import Cells, Gather, Look, Norm, centre, plus_product
from model.config import SamConfig
from model.layers import MLP, LayerNorm2d, MLPBlock

MASK_TOKENS = 4  # one for an unambiguous prompt, three for the nested readings of an ambiguous one


@dataclass(frozen=True)
class ImageTokens:
    """What all prompts of an image share: how each attention sees its cells."""

    keys_BNLD: Tensor  # before the first update
    values_BNLD: Tensor
    first_queries: Look
    first_norm: Norm
    second_keys: Look
    second_values: Gather
    second_queries: Look
    second_norm: Norm
    final_keys: Look
    final_values: Gather
    upscaled_BXL: Tensor  # what the first transposed convolution makes of the shared part
    upscaled_X: Tensor  # of β, with its bias
    upscaling_XC: Tensor  # and does with rows

    def images(self, chosen: slice) -> ImageTokens:
        """Those of some of the images."""
        return replace(
            self,
            keys_BNLD=self.keys_BNLD[chosen],
            values_BNLD=self.values_BNLD[chosen],
            first_queries=self.first_queries.images(chosen),
            first_norm=self.first_norm.images(chosen),
            second_keys=self.second_keys.images(chosen),
            second_values=self.second_values.images(chosen),
            second_queries=self.second_queries.images(chosen),
            second_norm=self.second_norm.images(chosen),
            final_keys=self.final_keys.images(chosen),
            final_values=self.final_values.images(chosen),
            upscaled_BXL=self.upscaled_BXL[chosen],
        )


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
    image: ImageTokens
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

    def share(self, cells_BLC: Tensor, positions_LC: Tensor) -> ImageTokens:
        """How each attention sees an image's cells (its embedding plus the dense prompt): once an image."""
        first, second = self.transformer.blocks()
        to_image, to_tokens = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        placed_BLC = cells_BLC + positions_LC
        keys_BNLD = to_image.split(to_image.k_proj(placed_BLC))
        values_BNLD = to_image.split(to_image.v_proj(cells_BLC))

        out_C = to_tokens.out_proj.bias
        ones_C = torch.ones_like(out_C)
        first_queries = to_tokens.look(to_tokens.q_proj, cells_BLC, positions_LC, ones_C)
        base_BLC = centre(cells_BLC)
        first_norm = Norm(
            gamma_C=ones_C,
            row_C=out_C / to_tokens.num_heads,
            square_BL=base_BLC.square().sum(-1),
            linear_BL=2 * base_BLC @ out_C,
            crossed_BMDL=to_tokens.unprojected(2 * base_BLC),
        )
        gamma_C, beta_C = first.norm4.weight, first.norm4.bias
        seen_BLC, fixed_LC = gamma_C * base_BLC, beta_C + positions_LC
        again, newer = second.cross_attn_token_to_image, second.cross_attn_image_to_token
        second_keys = again.look(again.k_proj, seen_BLC, fixed_LC, gamma_C)
        second_values = again.gather(seen_BLC, beta_C, gamma_C)
        second_queries = newer.look(newer.q_proj, seen_BLC, fixed_LC, gamma_C)

        base_BLC = centre(seen_BLC)
        older_BLC = centre(gamma_C * base_BLC)  # what rows of the first exchange meet: they change alike
        row_C = beta_C + newer.out_proj.bias
        second_norm = Norm(
            gamma_C=gamma_C,
            row_C=row_C / newer.num_heads,
            square_BL=base_BLC.square().sum(-1) + 2 * older_BLC @ out_C,
            linear_BL=2 * base_BLC @ row_C,
            crossed_BMDL=torch.cat(
                [to_tokens.unprojected(2 * older_BLC), newer.unprojected(2 * base_BLC)], 1
            ),
        )
        gamma_C, beta_C = second.norm4.weight, second.norm4.bias
        seen_BLC = gamma_C * base_BLC
        final = self.transformer.final_attn_token_to_image
        weight_XC, bias_X = quarters(self.output_upscaling[0])
        return ImageTokens(
            keys_BNLD,
            values_BNLD,
            first_queries,
            first_norm,
            second_keys,
            second_values,
            second_queries,
            second_norm,
            final_keys=final.look(final.k_proj, seen_BLC, beta_C + positions_LC, gamma_C),
            final_values=final.gather(seen_BLC, beta_C, gamma_C),
            upscaled_BXL=weight_XC @ seen_BLC.mT,
            upscaled_X=weight_XC @ beta_C + bias_X,
            upscaling_XC=weight_XC * gamma_C,
        )

    def attend(self, image: ImageTokens, sparse_BPTC: Tensor, together: int | None = None) -> Decoded:
        """Run the transformer and score the prompts; `together` of each image at once, if it is given."""
        if sparse_BPTC.shape[0] != image.keys_BNLD.shape[0]:
            images, got = image.keys_BNLD.shape[0], sparse_BPTC.shape[0]
            raise ValueError(f"expected prompts for {images} image(s), got them for {got}")
        learned_MC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        learned_BPMC = learned_MC.expand(*sparse_BPTC.shape[:2], -1, -1)
        prompts_BPTC = torch.cat([learned_BPMC, sparse_BPTC], 2)
        parts = prompts_BPTC.split(together or prompts_BPTC.shape[1], 1)
        scored = tuple(self._score(image, prompts_BpTC) for prompts_BpTC in parts)
        return Decoded(torch.cat([part.iou_BPM for part in scored], 1), image, scored)

    def _score(self, image: ImageTokens, prompts_BPTC: Tensor) -> Part:
        tokens_BPTC, cells = self.transformer(prompts_BPTC, image)
        iou_BP1C = self.transformer.last_look(tokens_BPTC[:, :, :1], prompts_BPTC[:, :, :1], cells, image)
        masks = slice(1, 1 + MASK_TOKENS)
        iou_BPM = self.iou_prediction_head(iou_BP1C[:, :, 0])
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
        order_K = order_K.to(device, non_blocking=True)
        tokens = token_K.to(device, non_blocking=True)[order_K].split(counts.tolist())
        places = (place_K % size).split(counts.tolist())
        shared = [decoded.image.images(slice(index, index + 1)) for index in range(images)]
        side = 4 * round(decoded.image.upscaled_BXL.shape[-1] ** 0.5)
        drawn_Khw = decoded.iou_BPM.new_empty(len(prompt_K), side, side)
        drawn = [drawn_Khw[:0]]
        for group, place_k, token_k in zip(groups.tolist(), places, tokens, strict=True):
            index, part = divmod(group, len(parts))
            place_J, row_k = torch.unique_consecutive(place_k, return_inverse=True)
            chosen = parts[part].chosen(index, place_J.to(device, non_blocking=True))
            drawn.append(self._draw(shared[index], chosen, row_k.to(device, non_blocking=True), token_k))
        return drawn_Khw.index_copy(0, order_K, torch.cat(drawn))

    def _draw(self, image: ImageTokens, part: Part, row_K: Tensor, token_K: Tensor) -> Tensor:
        """Masks of one image: `row_K` counts through the part's prompts."""
        tokens_1JMC = self.transformer.last_look(part.tokens_BPMC, part.prompts_BPMC, part.cells, image)
        heads = zip(self.output_hypernetworks_mlps, tokens_1JMC[0].unbind(1), strict=True)
        weights_JMC = torch.stack([head(token_JC) for head, token_JC in heads], 1)
        _, norm, _, second, _ = self.output_upscaling
        rows_1JRX = part.cells.rows_BPRC @ image.upscaling_XC.T
        if cells_compiled.suits(weights_JMC, rows_1JRX, image.upscaled_BXL):
            return drawing_compiled.drawn(
                part.cells.share_BPL[0],
                part.cells.weights_BPRL[0],
                rows_1JRX[0],
                image.upscaled_BXL[0],
                image.upscaled_X,
                cast(LayerNorm2d, norm),
                quarters(second),
                weights_JMC[row_K, token_K],
                row_K,
            )
        upscaled_JYc = self._upscale(image, part.cells, rows_1JRX)
        cells_KY = (upscaled_JYc @ weights_JMC.mT)[row_K, :, token_K]
        side = round(part.cells.share_BPL.shape[-1] ** 0.5)
        cells_K = cells_KY.unflatten(1, (side, side, 2, 2, 2, 2))  # row, column; halves; quarters
        return cells_K.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * side, 4 * side)

    def _upscale(self, image: ImageTokens, cells: Cells, rows_1PRX: Tensor) -> Tensor:
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


class TwoWayTransformer(nn.Module):
    """Two blocks in which tokens and cells attend to each other; then the tokens look once more."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, num_heads, mlp_dim) for _ in range(2))
        self.final_attn_token_to_image = Attention(width, width // 2, num_heads)
        self.norm_final_attn = nn.LayerNorm(width)

    def blocks(self) -> tuple[TwoWayBlock, TwoWayBlock]:
        """The two blocks; the list exists for the parameters' names."""
        return cast("tuple[TwoWayBlock, TwoWayBlock]", tuple(self.layers))

    def forward(self, prompts_BPTC: Tensor, image: ImageTokens) -> tuple[Tensor, Cells]:
        """Prompt tokens and image → the tokens and the cells after both blocks."""
        first, second = self.blocks()

        # The first block's self-attention replaces the tokens: there is nothing yet to add to.
        tokens_BPTC = first.norm1(first.self_attn(prompts_BPTC, prompts_BPTC, prompts_BPTC))
        attended = first.cross_attn_token_to_image.to_image(
            tokens_BPTC + prompts_BPTC, image.keys_BNLD, image.values_BNLD
        )
        tokens_BPTC = first.think(tokens_BPTC, attended)
        keys, values = first.cross_attn_image_to_token.tokens(tokens_BPTC + prompts_BPTC, tokens_BPTC)
        untouched = Cells.untouched(values, image.keys_BNLD.shape[2], prompts_BPTC.shape[-1])
        cells = first.give(untouched, keys, values, image.first_queries, image.first_norm)

        queries = tokens_BPTC + prompts_BPTC
        tokens_BPTC = second.norm1(tokens_BPTC + second.self_attn(queries, queries, tokens_BPTC))
        attended = second.cross_attn_token_to_image.to_cells(
            tokens_BPTC + prompts_BPTC, cells, image.second_keys, image.second_values
        )
        tokens_BPTC = second.think(tokens_BPTC, attended)
        keys, values = second.cross_attn_image_to_token.tokens(tokens_BPTC + prompts_BPTC, tokens_BPTC)
        return tokens_BPTC, second.give(cells, keys, values, image.second_queries, image.second_norm)

    def last_look(
        self, tokens_BPTC: Tensor, prompts_BPTC: Tensor, cells: Cells, image: ImageTokens
    ) -> Tensor:
        """Some of the tokens look at the image once more; each for itself, so only those that are needed."""
        attended = self.final_attn_token_to_image.to_cells(
            tokens_BPTC + prompts_BPTC, cells, image.final_keys, image.final_values
        )
        looked: Tensor = self.norm_final_attn(tokens_BPTC + attended)
        return looked


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens → image, MLP, image → tokens."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, width // 2, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, width // 2, num_heads)

    def think(self, tokens_BPTC: Tensor, attended_BPTC: Tensor) -> Tensor:
        """What the tokens make of what they took from the image."""
        tokens_BPTC = self.norm2(tokens_BPTC + attended_BPTC)
        thought: Tensor = self.norm3(tokens_BPTC + self.mlp(tokens_BPTC))
        return thought

    def give(
        self, cells: Cells, keys_BPNTD: Tensor, values_BPNTD: Tensor, queries: Look, norm: Norm
    ) -> Cells:
        """The cells when they have attended to the tokens, and were normalised."""
        out_NDC = self.cross_attn_image_to_token.out_heads()
        return cells.exchanged(keys_BPNTD, values_BPNTD, queries, out_NDC, norm, self.norm4.eps)


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its outer one."""

    def __init__(self, width: int, inner: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (inner // num_heads) ** -0.5
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Plain attention over the last axis but one: …×Q×C, …×K×C, …×K×C → …×Q×C."""
        q, k, v = self.split(self.q_proj(q)), self.split(self.k_proj(k)), self.split(self.v_proj(v))
        return self.merge(F.scaled_dot_product_attention(q, k, v))

    def split(self, x: Tensor) -> Tensor:
        """…×X×(N·D) → …×N×X×D."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

    def merge(self, heads: Tensor) -> Tensor:
        """…×N×X×D → …×X×C, through the output projection."""
        out: Tensor = self.out_proj(heads.transpose(-2, -3).flatten(-2))
        return out

    # What an image's cells are to this attention, once an image: γ ∘ base, and what is added to it.

    def look(self, projection: nn.Linear, seen_BLC: Tensor, fixed_LC: Tensor, gamma_C: Tensor) -> Look:
        """The cells as keys or queries."""
        return Look(
            self.split(seen_BLC @ projection.weight.T).mT.contiguous(),
            self.split(projection(fixed_LC)).mT.contiguous(),
            projection.weight * gamma_C,
        )

    def gather(self, seen_BLC: Tensor, beta_C: Tensor, gamma_C: Tensor) -> Gather:
        """The cells as values."""
        return Gather(
            self.split(seen_BLC @ self.v_proj.weight.T).mT.contiguous(),
            self.v_proj(beta_C).unflatten(0, (self.num_heads, 1, -1)),
            self.v_proj.weight * gamma_C,
        )

    def unprojected(self, x_BLC: Tensor) -> Tensor:
        """x·(what comes through the output projection), head by head: B×N×D×L."""
        return self.split(x_BLC @ self.out_proj.weight).mT.contiguous()

    def out_heads(self) -> Tensor:
        """The output projection, a matrix a head."""
        return self.out_proj.weight.T.unflatten(0, (self.num_heads, -1))

    # Tokens and cells.

    def tokens(self, keys_BPTC: Tensor, values_BPTC: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled keys and values of the tokens, for cells to attend to: B×P×N×T×D."""
        keys_BPNTD = self.split(self.k_proj(keys_BPTC)) * self.scale
        return keys_BPNTD, self.split(self.v_proj(values_BPTC))

    def to_image(self, queries_BPTC: Tensor, keys_BNLD: Tensor, values_BNLD: Tensor) -> Tensor:
        """All tokens of all prompts attend to the image's own cells in one product: B×P×T×C."""
        prompts = queries_BPTC.shape[1]
        q_BNQD = self.split(self.q_proj(queries_BPTC.flatten(1, 2)))
        out = self.merge(F.scaled_dot_product_attention(q_BNQD, keys_BNLD, values_BNLD))
        return out.unflatten(1, (prompts, -1))

    def to_cells(self, queries_BPTC: Tensor, cells: Cells, keys: Look, values: Gather) -> Tensor:
        """Each prompt's tokens attend to its own cells: B×P×T×C."""
        q_BPNTD = self.split(self.q_proj(queries_BPTC)) * self.scale
        return self.merge(cells.seen(q_BPNTD, keys, values))

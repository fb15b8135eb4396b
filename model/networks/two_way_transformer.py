"""The two-way transformer of the mask decoder: tokens of prompts and cells of an image attend to each other.

Two rewritings make many prompts of one image cheap, exact up to float rounding:

1. Shared image tokens. Before the first update the cells are the same for every prompt: `ImageTokens` holds
   their projections, made once an image, and the tokens of all prompts attend to them in one product.
2. Cells in factors. What a prompt changes in the cells is a mix of a few rows; they are kept as what all
   prompts share and those rows, and never written out (`model.networks.factored_cells`).

A mask prompt changes the cells before the tokens see them, by a mix of rows, too: it begins with cells in
factors, where the other prompts begin with the image's own.

Axis letters: B images, P prompts an image, T tokens a prompt, L image cells, C channels, N heads, D head
width, S heads × tokens, X rows of mask prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .attention import scaled_dot_product
from .factored_cells import Cells, Gather, Look, Norm, at_least_fp32, centre
from .layers import MLPBlock


@dataclass(frozen=True)
class ImageTokens:
    """How each attention sees an image's cells."""

    keys_BNLD: Tensor  # before the first update, where no mask prompt came before
    values_BNLD: Tensor
    mask_rows_XC: Tensor
    first_keys: Look
    first_values: Gather
    first_queries: Look
    first_norm: Norm
    second_keys: Look
    second_values: Gather
    second_queries: Look
    second_norm: Norm
    final_keys: Look
    final_values: Gather

    def images(self, chosen: slice) -> ImageTokens:
        """Those of some of the images."""
        return ImageTokens(
            self.keys_BNLD[chosen],
            self.values_BNLD[chosen],
            self.mask_rows_XC,
            self.first_keys.images(chosen),
            self.first_values.images(chosen),
            self.first_queries.images(chosen),
            self.first_norm.images(chosen),
            self.second_keys.images(chosen),
            self.second_values.images(chosen),
            self.second_queries.images(chosen),
            self.second_norm.images(chosen),
            self.final_keys.images(chosen),
            self.final_values.images(chosen),
        )


class TwoWayTransformer(nn.Module):
    """Two blocks in which tokens and cells attend to each other; then the tokens look once more."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(TwoWayBlock(width, num_heads, mlp_dim) for _ in range(2))
        self.final_attn_token_to_image = Attention(width, width // 2, num_heads)
        self.norm_final_attn = nn.LayerNorm(width)

    def blocks(self) -> tuple[TwoWayBlock, TwoWayBlock]:
        """The two blocks; the list exists for the parameters' names."""
        return cast("tuple[TwoWayBlock, TwoWayBlock]", tuple(self.layers))

    def share(
        self, cells_BLC: Tensor, positions_LC: Tensor, mask_rows_XC: Tensor
    ) -> tuple[ImageTokens, Tensor]:
        """How each attention sees the cells; and what prompts share of them at the end, γ ∘ base: B×L×C.

        Mask prompts mix `mask_rows_XC` into the cells.
        """
        first, second = self.blocks()
        older, newer = first.cross_attn_image_to_token, second.cross_attn_image_to_token
        to_image = first.cross_attn_token_to_image
        keys_BNLD = to_image.split(to_image.k_proj(cells_BLC + positions_LC))
        values_BNLD = to_image.split(to_image.v_proj(cells_BLC))
        ones_C = torch.ones_like(older.out_proj.bias)
        first_queries = older.look(older.q_proj, cells_BLC, positions_LC, ones_C)
        base_BLC = centre(cells_BLC)
        first_norm = first.sharing(base_BLC, ones_C, older.out_proj.bias, mask_rows_XC)

        gamma_C, beta_C = first.norm4.weight, first.norm4.bias
        seen_BLC, fixed_LC = gamma_C * base_BLC, beta_C + positions_LC
        again = second.cross_attn_token_to_image
        second_keys = again.look(again.k_proj, seen_BLC, fixed_LC, gamma_C)
        second_values = again.gather(seen_BLC, beta_C, gamma_C)
        second_queries = newer.look(newer.q_proj, seen_BLC, fixed_LC, gamma_C)
        base_BLC = centre(seen_BLC)
        added_C = beta_C + newer.out_proj.bias
        second_norm = second.sharing(base_BLC, gamma_C, added_C, mask_rows_XC, before=older)

        gamma_C, beta_C = second.norm4.weight, second.norm4.bias
        seen_BLC, fixed_LC = gamma_C * base_BLC, beta_C + positions_LC
        final = self.final_attn_token_to_image
        tokens = ImageTokens(
            keys_BNLD,
            values_BNLD,
            mask_rows_XC,
            *to_image.looks(keys_BNLD, values_BNLD),
            first_queries,
            first_norm,
            second_keys,
            second_values,
            second_queries,
            second_norm,
            final_keys=final.look(final.k_proj, seen_BLC, fixed_LC, gamma_C),
            final_values=final.gather(seen_BLC, beta_C, gamma_C),
        )
        return tokens, seen_BLC

    def forward(
        self, prompts_BPTC: Tensor, image: ImageTokens, mask_weights_BPXL: Tensor | None = None
    ) -> tuple[Tensor, Cells]:
        """Prompt tokens, weights of mask prompts and image → the tokens and the cells after both blocks."""
        first, second = self.blocks()

        # The first block's self-attention replaces the tokens: there is nothing yet to add to.
        tokens_BPTC = first.norm1(first.self_attn(prompts_BPTC, prompts_BPTC, prompts_BPTC))
        queries, to_image = tokens_BPTC + prompts_BPTC, first.cross_attn_token_to_image
        if mask_weights_BPXL is None:
            cells, attended = None, to_image.to_image(queries, image.keys_BNLD, image.values_BNLD)
        else:
            cells = Cells.mixed(mask_weights_BPXL, image.mask_rows_XC)
            attended = to_image.to_cells(queries, cells, image.first_keys, image.first_values)
        tokens_BPTC = first.think(tokens_BPTC, attended)
        keys, values = first.cross_attn_image_to_token.tokens(tokens_BPTC + prompts_BPTC, tokens_BPTC)
        cells = first.give(cells, keys, values, image.first_queries, image.first_norm)

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

    def sharing(
        self,
        base_BLC: Tensor,
        gamma_C: Tensor,
        added_C: Tensor,
        mask_rows_XC: Tensor,
        before: Attention | None = None,
    ) -> Norm:
        """What `give` must know of the image: its centred cells, the norm before (γ; β with this bias).

        `before` is the exchange of the block before: its rows pass that norm, so they meet γ ∘ base, centred;
        and so do the rows of mask prompts.
        Sums over a cell's channels are fp32 at least (but under autocast): they are squares, and fp16 ends at
        65,504.
        """
        exchange, precise = self.cross_attn_image_to_token, at_least_fp32(base_BLC)
        square_BL, twice_BLC = base_BLC.to(precise).square().sum(-1), 2 * base_BLC
        crossed, older_BLC = [exchange.unprojected(twice_BLC)], twice_BLC
        if before is not None:
            older_BLC = centre(gamma_C * twice_BLC)
            square_BL = square_BL + older_BLC.to(precise) @ before.out_proj.bias.to(precise)
            crossed.insert(0, before.unprojected(older_BLC))
        return Norm(
            gamma_C=gamma_C,
            row_C=added_C / exchange.num_heads,
            square_BL=square_BL,
            linear_BL=2 * base_BLC.to(precise) @ added_C.to(precise),
            crossed_BMDL=torch.cat(crossed, 1),
            crossed_BXL=mask_rows_XC @ older_BLC.mT,
        )

    def give(
        self, cells: Cells | None, keys_BPNTD: Tensor, values_BPNTD: Tensor, queries: Look, norm: Norm
    ) -> Cells:
        """The cells, the image's own if they are None, when they have attended to the tokens and were
        normalised.
        """
        out_NDC = self.cross_attn_image_to_token.out_heads()
        exchanged = Cells.of_image if cells is None else cells.exchanged
        return exchanged(keys_BPNTD, values_BPNTD, queries, out_NDC, norm, self.norm4.eps)


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
        return self.merge(scaled_dot_product(q, k, v))

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

    def looks(self, keys_BNLD: Tensor, values_BNLD: Tensor) -> tuple[Look, Gather]:
        """The cells as keys and values, where these are there already, positions and biases included."""
        nothing_NDL, nothing_N1D = torch.zeros_like(keys_BNLD[0].mT), torch.zeros_like(values_BNLD[0, :, :1])
        return (
            Look(keys_BNLD.mT.contiguous(), nothing_NDL.contiguous(), self.k_proj.weight),
            Gather(values_BNLD.mT.contiguous(), nothing_N1D, self.v_proj.weight),
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
        out = self.merge(scaled_dot_product(q_BNQD, keys_BNLD, values_BNLD))
        return out.unflatten(1, (prompts, -1))

    def to_cells(self, queries_BPTC: Tensor, cells: Cells, keys: Look, values: Gather) -> Tensor:
        """Each prompt's tokens attend to its own cells: B×P×T×C."""
        q_BPNTD = self.split(self.q_proj(queries_BPTC)) * self.scale
        return self.merge(cells.seen(q_BPNTD, keys, values))

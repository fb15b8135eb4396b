"""The mask decoder: the published one's numbers for a fraction of its work.

A grid asks about a thousand prompts of one image. The published decoder repeats the image's cells for each
prompt and projects all of them again and again. Three rewritings, exact up to float rounding:

1. Shared image tokens. Before the first update the cells are the same for every prompt: `ImageTokens` holds
   their projections, made once an image, and the tokens of all prompts attend to them in one product.
2. The projection moves to the short side. A prompt has about 7 tokens, the image up to 4,096 cells:
   q·(W k) = (Wᵀ q)·k, so the tokens are carried into the cells' space rather than the cells into the heads'.
   It pays while tokens × heads is smaller than the attention's inner width (`Attention.short_side_pays`).
   Likewise the value projection is applied after attending, and for cells attending to tokens the output
   projection is folded into the tokens' values.
3. Lazy mask head. The predicted IoU comes from the IoU token alone, so `attend` scores the prompts and
   `draw` upscales only those that the caller still wants.

Axis letters: B images, P prompts an image, T tokens a prompt, L image cells, C channels, N heads, D head
width, K masks drawn. Mask prompts differ in their cells from the start and take the same path without the
sharing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import SamConfig
from model.layers import MLP, LayerNorm2d, MLPBlock

MASK_TOKENS = 4  # one for an unambiguous prompt, three for the nested readings of an ambiguous one


@dataclass(frozen=True)
class ImageTokens:
    """What all prompts of an image share."""

    cells_BLC: Tensor  # image embedding plus the "no mask" vector
    positions_LC: Tensor
    keys_BNLD: Tensor  # first token-to-image attention
    values_BNLD: Tensor
    queries_BNLD: Tensor  # first image-to-token attention


@dataclass(frozen=True)
class Decoded:
    """Prompts after the transformer: scored, not drawn."""

    iou_BPM: Tensor  # predicted IoU of the single-mask token, then of the three others
    mask_tokens_BPMC: Tensor
    cells_BPLC: Tensor


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

    def share(self, embedding_BCHW: Tensor, positions_LC: Tensor, no_mask_C: Tensor) -> ImageTokens:
        """Project what every prompt without a mask will use: once an image."""
        cells_BLC = embedding_BCHW.flatten(2).transpose(1, 2) + no_mask_C
        block, _ = self.transformer.blocks()
        keys_BNLD, values_BNLD = block.cross_attn_token_to_image.image_side(cells_BLC, positions_LC)
        queries_BNLD = block.cross_attn_image_to_token.image_queries(cells_BLC, positions_LC)
        return ImageTokens(cells_BLC, positions_LC, keys_BNLD, values_BNLD, queries_BNLD)

    def attend(self, image: ImageTokens, sparse_BPTC: Tensor, cells_BPLC: Tensor | None = None) -> Decoded:
        """Run the transformer and score the prompts.

        `cells_BPLC` replaces the shared cells where each prompt brings a mask.
        """
        learned_MC = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        learned_BPMC = learned_MC.expand(*sparse_BPTC.shape[:2], -1, -1)
        tokens_BPTC, cells_BPLC = self.transformer(
            torch.cat([learned_BPMC, sparse_BPTC], 2), image, cells_BPLC
        )
        iou_BPM = self.iou_prediction_head(tokens_BPTC[:, :, 0])
        return Decoded(iou_BPM, tokens_BPTC[:, :, 1 : 1 + MASK_TOKENS], cells_BPLC)

    def draw(self, decoded: Decoded, prompt_K: Tensor, token_K: Tensor) -> Tensor:
        """Logits K×h×w of the chosen masks; `prompt_K` counts through B×P, `token_K` names the mask token.

        Each distinct prompt is upscaled once, however many of its masks are wanted.
        """
        prompts, row_K = torch.unique(prompt_K, return_inverse=True)
        cells_PLC = decoded.cells_BPLC.flatten(0, 1)
        tokens_PMC = decoded.mask_tokens_BPMC.flatten(0, 1)[prompts]
        heads = zip(self.output_hypernetworks_mlps, tokens_PMC.unbind(1), strict=True)
        weights_PCM = torch.stack([head(token_PC) for head, token_PC in heads], 2)
        # A CPU's cache holds the sixteenfold map of one prompt, if that; a GPU wants them all, and so does a
        # gradient: each choice among the cells would come back as an array of all of them.
        few = cells_PLC.device.type == "cpu" and not torch.is_grad_enabled()
        at_once = 1 if few else max(1, len(prompts))
        logits_PXM = torch.cat(
            [
                self._upscale(cells_PLC[chosen]) @ weights_pCM
                for chosen, weights_pCM in zip(
                    prompts.split(at_once), weights_PCM.split(at_once), strict=True
                )
            ]
        )
        side = round(cells_PLC.shape[1] ** 0.5)
        cells_K = logits_PXM[row_K, :, token_K].unflatten(
            1, (side, side, 2, 2, 2, 2)
        )  # row, column; halves; quarters
        return cells_K.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * side, 4 * side)

    def _upscale(self, cells_PLC: Tensor) -> Tensor:
        """Each cell in sixteen: P×L×C → P×16L×C/8, the quarters of its quarters in a row.

        A transposed convolution whose kernel is as wide as its stride is a linear map of each cell. So the
        channels stay last, where the norm and the products want them, and only finished logits change places.
        """
        first, norm, gelu, second, last_gelu = self.output_upscaling
        halves = gelu(cast(LayerNorm2d, norm).last(each_in_four(first, cells_PLC)))
        return last_gelu(each_in_four(second, halves))


def each_in_four(up: nn.Module, cells_PLC: Tensor) -> Tensor:
    """A 2×2 transposed convolution of stride 2, cell by cell: P×X×C → P×4X×C', row by row in each cell."""
    weight_CcHW, bias_c = cast(Tensor, up.weight), cast(Tensor, up.bias)
    weight_QC = weight_CcHW.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(cells_PLC, weight_QC, bias_c.repeat(4)).unflatten(-1, (4, -1)).flatten(1, 2)


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

    def forward(
        self, prompts_BPTC: Tensor, image: ImageTokens, cells_BPLC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prompt tokens and image → the tokens and, for each prompt, the cells after both blocks."""
        first, second = self.blocks()

        # The first block's self-attention replaces the tokens: there is nothing yet to add to.
        tokens_BPTC = first.norm1(first.self_attn(prompts_BPTC, prompts_BPTC, prompts_BPTC))
        tokens_BPTC, cells_BPLC = first.exchange(tokens_BPTC, prompts_BPTC, image, cells_BPLC)

        queries = tokens_BPTC + prompts_BPTC
        tokens_BPTC = second.norm1(tokens_BPTC + second.self_attn(queries, queries, tokens_BPTC))
        tokens_BPTC, cells_BPLC = second.exchange(tokens_BPTC, prompts_BPTC, image, cells_BPLC)

        attended = self.final_attn_token_to_image.tokens_to_cells(
            tokens_BPTC + prompts_BPTC, cells_BPLC + image.positions_LC, cells_BPLC
        )
        return self.norm_final_attn(tokens_BPTC + attended), cells_BPLC


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

    def exchange(
        self, tokens_BPTC: Tensor, prompts_BPTC: Tensor, image: ImageTokens, cells_BPLC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Let tokens and cells attend to each other; without `cells_BPLC` the cells are the shared ones."""
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        queries = tokens_BPTC + prompts_BPTC
        if cells_BPLC is None:
            attended = to_image.tokens_to_shared_cells(queries, image.keys_BNLD, image.values_BNLD)
        else:
            keys_BPLC = cells_BPLC + image.positions_LC
            attended = to_image.tokens_to_cells(queries, keys_BPLC, cells_BPLC)
        tokens_BPTC = self.norm2(tokens_BPTC + attended)
        tokens_BPTC = self.norm3(tokens_BPTC + self.mlp(tokens_BPTC))

        keys = tokens_BPTC + prompts_BPTC
        if cells_BPLC is None:
            weights = to_tokens.shared_cells_to_tokens(image.queries_BNLD, keys)
            cells = image.cells_BLC[:, None].expand(-1, weights.shape[1], -1, -1)
        else:
            weights = to_tokens.cells_to_tokens(keys_BPLC, keys)
            cells = cells_BPLC
        updated = to_tokens.spread(weights, tokens_BPTC, cells)
        return tokens_BPTC, self.norm4(updated)


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

    def short_side_pays(self, tokens: int) -> bool:
        """Whether carrying the tokens into the cells' space costs less than projecting the cells."""
        return tokens * self.num_heads < self.q_proj.out_features

    # Tokens look at the image.

    def image_side(self, cells_BLC: Tensor, positions_LC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the cells, B×N×L×D."""
        return self.split(self.k_proj(cells_BLC + positions_LC)), self.split(self.v_proj(cells_BLC))

    def tokens_to_shared_cells(self, queries_BPTC: Tensor, keys_BNLD: Tensor, values_BNLD: Tensor) -> Tensor:
        """All tokens of all prompts attend to one image's cells in one product: B×P×T×C."""
        prompts = queries_BPTC.shape[1]
        q_BNQD = self.split(self.q_proj(queries_BPTC.flatten(1, 2)))
        out = self.merge(F.scaled_dot_product_attention(q_BNQD, keys_BNLD, values_BNLD))
        return out.unflatten(1, (prompts, -1))

    def tokens_to_cells(self, queries_BPTC: Tensor, keys_BPLC: Tensor, values_BPLC: Tensor) -> Tensor:
        """Each prompt's tokens attend to that prompt's own cells: B×P×T×C.

        The key bias adds the same to every score of a row and drops out of the softmax; the weights of a row
        add up to one, so the value bias may be added afterwards.
        """
        if not self.short_side_pays(queries_BPTC.shape[2]):
            return self(queries_BPTC, keys_BPLC, values_BPLC)
        q_BPNTD = self.split(self.q_proj(queries_BPTC)) * self.scale
        carried = q_BPNTD @ self.k_proj.weight.unflatten(0, (self.num_heads, -1))  # B,P,N,T,C
        scores = carried.flatten(2, 3) @ keys_BPLC.transpose(-1, -2)  # B,P,N·T,L
        gathered = (scores.softmax(-1) @ values_BPLC).unflatten(2, (self.num_heads, -1))
        v_NCD = self.v_proj.weight.unflatten(0, (self.num_heads, -1)).transpose(-1, -2)
        bias_N1D = self.v_proj.bias.unflatten(0, (self.num_heads, 1, -1))
        return self.merge(gathered @ v_NCD + bias_N1D)

    # The image looks at the tokens. Weights are B×P×N×T×L: the softmax runs along T, L lies contiguous.

    def image_queries(self, cells_BLC: Tensor, positions_LC: Tensor) -> Tensor:
        """Queries of the cells, B×N×L×D."""
        return self.split(self.q_proj(cells_BLC + positions_LC))

    def shared_cells_to_tokens(self, queries_BNLD: Tensor, keys_BPTC: Tensor) -> Tensor:
        """How much each cell of the shared image attends to each token: B×P×N×T×L."""
        k_BPNTD = self.split(self.k_proj(keys_BPTC)) * self.scale
        return (k_BPNTD @ queries_BNLD[:, None].transpose(-1, -2)).softmax(-2)

    def cells_to_tokens(self, queries_BPLC: Tensor, keys_BPTC: Tensor) -> Tensor:
        """How much each cell of each prompt attends to each token: B×P×N×T×L.

        Here the query bias stays: it adds b_q·k to every score of token k.
        """
        k_BPNTD = self.split(self.k_proj(keys_BPTC)) * self.scale
        if not self.short_side_pays(keys_BPTC.shape[2]):
            return (k_BPNTD @ self.split(self.q_proj(queries_BPLC)).transpose(-1, -2)).softmax(-2)
        carried = k_BPNTD @ self.q_proj.weight.unflatten(0, (self.num_heads, -1))  # B,P,N,T,C
        bias = k_BPNTD @ self.q_proj.bias.unflatten(0, (self.num_heads, -1, 1))  # B,P,N,T,1
        scores = carried.flatten(2, 3) @ queries_BPLC.transpose(-1, -2)
        return (scores.unflatten(2, (self.num_heads, -1)) + bias).softmax(-2)

    def spread(self, weights_BPNTL: Tensor, values_BPTC: Tensor, cells_BPLC: Tensor) -> Tensor:
        """Cells plus what they take from the tokens, B×P×L×C; output projection folded into the values.

        A cell's weights add up to one in each head, so every head's values carry their share of the bias.
        """
        v_BPNTD = self.split(self.v_proj(values_BPTC))
        out_NDC = self.out_proj.weight.T.unflatten(0, (self.num_heads, -1))
        folded = v_BPNTD @ out_NDC + self.out_proj.bias / self.num_heads  # B,P,N,T,C
        weights_BPLS, folded_BPSC = weights_BPNTL.flatten(2, 3).mT, folded.flatten(2, 3)
        if torch.is_autocast_enabled(cells_BPLC.device.type):  # which would round the cells to add them
            return cells_BPLC + weights_BPLS @ folded_BPSC
        taken = torch.baddbmm(cells_BPLC.flatten(0, 1), weights_BPLS.flatten(0, 1), folded_BPSC.flatten(0, 1))
        return taken.unflatten(0, cells_BPLC.shape[:2])

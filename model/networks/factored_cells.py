"""An image's cells as each prompt has changed them, without writing them out.

In the decoder every prompt changes the image: each cell takes something from the prompt's tokens and is
normalised, twice. Written out, that is an image embedding a prompt, and the bulk of the published decoder's
work. But all that a cell can take is a mix of a few rows, one for each token and head, and a layer norm is
linear once its cell's deviation is known. So the cells of a prompt, L×C, are always

    cells = γ ∘ (ρ ∘ base + weightsᵀ rows) + β

with a `base` that all prompts of an image share, a number ρ for each cell, `weights` R×L (how much the cells
attend to each token in each head) and `rows` R×C. One more exchange adds rows:

    base'    = centre(γ ∘ base)
    rows'    = [centre(γ ∘ rows), centre(new rows + β / N)]
    weights' = [weights, new weights]

(the weights of a head add up to one, so β may ride in its rows), and dividing by the deviation scales ρ and
the weights. The variance is a quadratic form in ρ and the weights. Whoever looks at the cells multiplies with
what is shared, which is projected once an image, and with R rows in place of C channels: in the published
shapes 45,000 multiplications a cell for 100,000, and arrays of 56 or 112 numbers a cell for 256.

A mask prompt is a mix of rows, too, seventeen in all sizes of the model, which are there before the first
exchange. They are the same for all prompts, so what base' has in common with them is known once an image.

It is linear algebra, exact up to rounding, and ordinary autograd goes through it. In fp32 on a CPU, without
gradients, the loops over the cells are compiled (`model.kernels.cells`). Axis letters are those of
`two_way_transformer`; S = N·T counts through heads and tokens, M through the heads of all exchanges so far, R
through the rows: X of a mask prompt, if there is one, and M·T of the exchanges' tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels import cells as compiled_cells


@dataclass(frozen=True)
class Look:
    """What an attention's projection W makes of the cells' shared part, to be compared with tokens."""

    image_BNDL: Tensor  # W (γ ∘ base): counts ρ times
    fixed_NDL: Tensor  # W (β + positions) and W's bias
    weight_DC: Tensor  # W ∘ γ, which meets the rows: of all heads

    def images(self, chosen: slice) -> Look:
        """The same of some of the images."""
        return replace(self, image_BNDL=self.image_BNDL[chosen])


@dataclass(frozen=True)
class Gather:
    """What it makes of it to be handed to tokens."""

    image_BNDL: Tensor
    fixed_N1D: Tensor
    weight_DC: Tensor

    def images(self, chosen: slice) -> Gather:
        """The same of some of the images."""
        return replace(self, image_BNDL=self.image_BNDL[chosen])


@dataclass(frozen=True)
class Norm:
    """What an exchange needs to know of the image, and of γ and β before it, to normalise the cells."""

    gamma_C: Tensor
    row_C: Tensor  # (β + the output projection's bias) / N: part of every new row
    square_BL: Tensor  # of base', and base' with what older rows have in common: counts ρ² times
    linear_BL: Tensor  # base' with what the new rows have in common: counts ρ times
    crossed_BMDL: Tensor  # base' seen through each exchange's output projection, twice
    crossed_BXL: Tensor  # base' with a mask prompt's rows, twice

    def images(self, chosen: slice) -> Norm:
        """The same of some of the images."""
        return replace(
            self,
            square_BL=self.square_BL[chosen],
            linear_BL=self.linear_BL[chosen],
            crossed_BMDL=self.crossed_BMDL[chosen],
            crossed_BXL=self.crossed_BXL[chosen],
        )


@dataclass(frozen=True)
class Cells:
    """The cells of P prompts an image, in factors."""

    share_BPL: Tensor  # ρ
    weights_BPRL: Tensor
    rows_BPRC: Tensor  # before γ
    values_BPMTD: Tensor | None  # what the exchanges' rows were made of; None before the first

    @classmethod
    def untouched(cls, values_BPNTD: Tensor, cells: int, channels: int) -> Cells:
        """The image's own, of which these values are to be taken."""
        batch, prompts = values_BPNTD.shape[:2]
        return cls(
            values_BPNTD.new_ones(batch, prompts, cells),
            values_BPNTD.new_empty(batch, prompts, 0, cells),
            values_BPNTD.new_empty(batch, prompts, 0, channels),
            None,
        )

    @classmethod
    def mixed(cls, weights_BPXL: Tensor, rows_XC: Tensor) -> Cells:
        """The image's own with a mask prompt's rows mixed in."""
        each = weights_BPXL.shape[:2]
        ones_BPL = weights_BPXL.new_ones(*each, weights_BPXL.shape[-1])
        return cls(ones_BPL, weights_BPXL, rows_XC.expand(*each, -1, -1), None)

    @classmethod
    def of_image(
        cls,
        keys_BPNTD: Tensor,
        values_BPNTD: Tensor,
        look: Look,
        out_NDC: Tensor,
        norm: Norm,
        eps: float,
    ) -> Cells:
        """`exchanged` of the image's own cells: of nothing that was taken before, and of ρ = 1."""
        cells, channels = look.image_BNDL.shape[-1], out_NDC.shape[-1]
        if compiled_cells.suits(keys_BPNTD, values_BPNTD, look.image_BNDL):
            untouched = cls.untouched(values_BPNTD, cells, channels)
            return untouched.exchanged(keys_BPNTD, values_BPNTD, look, out_NDC, norm, eps)

        rows_BPRC = centre(per_head(values_BPNTD, out_NDC).flatten(2, 3) + norm.row_C)
        scores_BPNTL = per_head(keys_BPNTD, look.image_BNDL + look.fixed_NDL)
        weights_BPRL = scores_BPNTL.softmax(-2).flatten(2, 3)
        return _normalised(None, weights_BPRL, rows_BPRC, values_BPNTD, norm, eps)

    def chosen(self, choose: Callable[[Tensor], Tensor]) -> Cells:
        """Those that `choose` takes of what is B×P×…."""
        values = None if self.values_BPMTD is None else choose(self.values_BPMTD)
        return Cells(choose(self.share_BPL), choose(self.weights_BPRL), choose(self.rows_BPRC), values)

    def seen(self, x_BPNTD: Tensor, look: Look, gather: Gather) -> Tensor:
        """What tokens take from the cells that they attend to by x·(W cells), head by head: B×P×N×T×D."""
        heads = x_BPNTD.shape[2]
        carried_BPNTR = x_BPNTD @ self._rows_seen(look.weight_DC, heads).mT
        if compiled_cells.suits(x_BPNTD, self.share_BPL, look.image_BNDL):
            mixed_BPNTR, taken_BPNTD = compiled_cells.seen(
                x_BPNTD,
                carried_BPNTR,
                self.share_BPL,
                self.weights_BPRL,
                look.image_BNDL,
                look.fixed_NDL,
                gather.image_BNDL,
            )
        else:
            attention_BPNTL = self._scores(x_BPNTD, carried_BPNTR, look).softmax(-1)
            mixed_BPSR = attention_BPNTL.flatten(2, 3) @ self.weights_BPRL.mT
            mixed_BPNTR = mixed_BPSR.unflatten(2, x_BPNTD.shape[2:4])
            attention_BPNTL = attention_BPNTL * self.share_BPL[:, :, None, None]
            taken_BPNTD = per_head(attention_BPNTL, gather.image_BNDL.mT)
        return taken_BPNTD + gather.fixed_N1D + mixed_BPNTR @ self._rows_seen(gather.weight_DC, heads)

    def exchanged(
        self,
        keys_BPNTD: Tensor,
        values_BPNTD: Tensor,
        look: Look,
        out_NDC: Tensor,
        norm: Norm,
        eps: float,
    ) -> Cells:
        """The cells when they have attended to the tokens, taken of their values, and were normalised.

        `out_NDC` is the output projection, a matrix a head.
        """
        new_BPSC = per_head(values_BPNTD, out_NDC).flatten(2, 3) + norm.row_C
        rows_BPRC = centre(torch.cat([norm.gamma_C * self.rows_BPRC, new_BPSC], 2))
        values_BPMTD = values_BPNTD
        if self.values_BPMTD is not None:
            values_BPMTD = torch.cat([self.values_BPMTD, values_BPNTD], 2)
        carried_BPNTR = keys_BPNTD @ self._rows_seen(look.weight_DC, keys_BPNTD.shape[2]).mT
        if compiled_cells.suits(keys_BPNTD, self.share_BPL, look.image_BNDL):
            share_BPL, weights_BPRL = compiled_cells.exchanged(
                keys_BPNTD,
                carried_BPNTR,
                self.share_BPL,
                self.weights_BPRL,
                look.image_BNDL,
                look.fixed_NDL,
                values_BPMTD,
                rows_BPRC @ rows_BPRC.mT,
                (norm.square_BL, norm.linear_BL, norm.crossed_BMDL, norm.crossed_BXL),
                rows_BPRC.shape[-1],
                eps,
            )
            return Cells(share_BPL, weights_BPRL, rows_BPRC, values_BPMTD)

        new_BPSL = self._scores(keys_BPNTD, carried_BPNTR, look).softmax(-2).flatten(2, 3)
        weights_BPRL = torch.cat([self.weights_BPRL, new_BPSL], 2)
        return _normalised(self.share_BPL, weights_BPRL, rows_BPRC, values_BPMTD, norm, eps)

    def _rows_seen(self, weight_DC: Tensor, heads: int) -> Tensor:
        """What a projection makes of the rows, head by head: B×P×N×R×D."""
        return (self.rows_BPRC @ weight_DC.T).unflatten(-1, (heads, -1)).transpose(2, 3)

    def _scores(self, x_BPNTD: Tensor, carried_BPNTR: Tensor, look: Look) -> Tensor:
        """x·(W cells) in every head: B×P×N×T×L."""
        image_BPNTL, fixed_BPNTL = per_head(x_BPNTD, look.image_BNDL), per_head(x_BPNTD, look.fixed_NDL)
        scores_BPNTL = torch.addcmul(fixed_BPNTL, image_BPNTL, self.share_BPL[:, :, None, None])
        carried_BPSR = carried_BPNTR.flatten(2, 3)
        scores_BPSL = plus_product(scores_BPNTL.flatten(2, 3), carried_BPSR, self.weights_BPRL)
        return scores_BPSL.unflatten(2, x_BPNTD.shape[2:4])


def _normalised(
    share_BPL: Tensor | None,
    weights_BPRL: Tensor,
    rows_BPRC: Tensor,
    values_BPMTD: Tensor,
    norm: Norm,
    eps: float,
) -> Cells:
    """Divide the cells by the root of their mean square; a `share_BPL` of None stands for ones.

    The mean is in fp32 at least. What is summed is divided first: in fp16 the sum of squares may be out of
    range where their mean is not.
    """
    channels, precise = rows_BPRC.shape[-1], at_least_fp32(weights_BPRL)
    met_BPRL = per_head(values_BPMTD / channels, norm.crossed_BMDL).flatten(2, 3)
    if met_BPRL.shape[2] < weights_BPRL.shape[2]:
        met_BPXL = (norm.crossed_BXL / channels)[:, None].expand(-1, met_BPRL.shape[1], -1, -1)
        met_BPRL = torch.cat([met_BPXL, met_BPRL], 2)
    if share_BPL is None:
        common_BPL = (norm.square_BL.to(precise) + norm.linear_BL)[:, None]
    else:
        met_BPRL = met_BPRL * share_BPL[:, :, None]
        wide_BPL = share_BPL.to(precise)
        common_BPL = norm.square_BL[:, None] * wide_BPL.square() + norm.linear_BL[:, None] * wide_BPL
    even_BPRC = rows_BPRC * channels**-0.5
    met_BPRL = plus_product(met_BPRL, even_BPRC @ even_BPRC.mT, weights_BPRL)
    squares_BPL = common_BPL / channels + (met_BPRL * weights_BPRL).sum(2, dtype=precise)
    # Rounding may leave less than nothing of a cell that what it takes cancels.
    scale_BPL = (squares_BPL.clamp(min=0) + eps).rsqrt().to(weights_BPRL.dtype)
    scaled_BPL = scale_BPL if share_BPL is None else share_BPL * scale_BPL
    return Cells(scaled_BPL, weights_BPRL * scale_BPL[:, :, None], rows_BPRC, values_BPMTD)


def per_head(x_BPNXY: Tensor, shared_BNYZ: Tensor) -> Tensor:
    """X @ shared in every head, the image's matrix for all of its prompts: B×P×N×X×Z."""
    out_BNQZ = x_BPNXY.transpose(1, 2).flatten(2, 3) @ shared_BNYZ
    return out_BNQZ.unflatten(2, (x_BPNXY.shape[1], -1)).transpose(1, 2)


def plus_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Total + a @ b, of batches of matrices, in the place of `total`."""
    if torch.is_autocast_enabled(total.device.type):  # which knows no sums in place
        return total + a @ b
    flat = total.reshape(-1, *total.shape[-2:])
    return flat.baddbmm_(a.flatten(0, -3), b.flatten(0, -3)).view(total.shape)


def at_least_fp32(x: Tensor) -> torch.dtype:
    """In which precision sums over many of the tensor's numbers are computed."""
    return torch.promote_types(x.dtype, torch.float32)


def centre(x: Tensor) -> Tensor:
    """Take the mean over the last axis away."""
    return x - x.mean(-1, keepdim=True)

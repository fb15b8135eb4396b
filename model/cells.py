"""An image's cells as each prompt has changed them, without writing them out.

In the decoder every prompt changes the image: each cell takes something from the prompt's tokens and is
normalised, twice. Written out, that is an image embedding a prompt, and the bulk of the published decoder's
work. But all that a cell can take is a mix of a few rows, one for each token and head, and a layer norm is
linear once its cell's deviation is known. So the cells of a prompt, L×C, are always

    cells = γ ∘ (ρ ∘ base + weightsᵀ rows) + β

with a `base` that all prompts of an image share, a number ρ for each cell, `weights` S×L (how much the cells
attend to each token in each head) and `rows` S×C. One more exchange adds S rows:

    base'    = centre(γ ∘ base)
    rows'    = [centre(γ ∘ rows), centre(new rows + β / N)]
    weights' = [weights, new weights]

(the weights of a head add up to one, so β may ride in its rows), and dividing by the deviation scales ρ and
the weights. The variance is a quadratic form in ρ and the weights. Whoever looks at the cells multiplies with
what is shared, which is projected once an image, and with S or 2·S rows in place of C channels: in the
published shapes 45,000 multiplications a cell for 100,000, and arrays of 56 numbers a cell for 256.

It is linear algebra, exact up to rounding, and ordinary autograd goes through it. Axis letters are those of
`mask_decoder`; S = N·T counts through heads and tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Look:
    """What an attention's projection W makes of the cells' shared part, to be compared with tokens."""

    image_BNDL: Tensor  # W (γ ∘ base): counts ρ times
    fixed_NDL: Tensor  # W (β + positions) and W's bias
    weight_NDC: Tensor  # W ∘ γ, which meets the rows

    def images(self, chosen: slice) -> Look:
        """The same of some of the images."""
        return replace(self, image_BNDL=self.image_BNDL[chosen])


@dataclass(frozen=True)
class Gather:
    """What it makes of it to be handed to tokens."""

    image_BNLD: Tensor
    fixed_N1D: Tensor
    weight_NCD: Tensor

    def images(self, chosen: slice) -> Gather:
        """The same of some of the images."""
        return replace(self, image_BNLD=self.image_BNLD[chosen])


@dataclass(frozen=True)
class Norm:
    """What an exchange needs to know of the image, and of γ and β before it, to normalise the cells."""

    gamma_C: Tensor
    row_C: Tensor  # (β + the output projection's bias) / N: part of every new row
    square_BL: Tensor  # of base', and base' with what older rows have in common: counts ρ² times
    linear_BL: Tensor  # base' with what the new rows have in common: counts ρ times
    crossed_BNDL: tuple[Tensor, ...]  # base' seen through each exchange's output projection, twice

    def images(self, chosen: slice) -> Norm:
        """The same of some of the images."""
        crossed = tuple(one[chosen] for one in self.crossed_BNDL)
        return replace(
            self,
            square_BL=self.square_BL[chosen],
            linear_BL=self.linear_BL[chosen],
            crossed_BNDL=crossed,
        )


@dataclass(frozen=True)
class Written:
    """What the cells took from the tokens in one exchange."""

    weights_BPSL: Tensor
    rows_BPSC: Tensor  # before γ
    values_BPNTD: Tensor


@dataclass(frozen=True)
class Cells:
    """The cells of P prompts an image, in factors."""

    share_BP1L: Tensor  # ρ
    written: tuple[Written, ...]  # an exchange each

    @classmethod
    def untouched(cls, like: Tensor) -> Cells:
        """The image's own cells, the same for every prompt."""
        return cls(like.new_ones(1, 1, 1, 1), ())

    def chosen(self, choose: Callable[[Tensor], Tensor]) -> Cells:
        """Those that `choose` takes of what is B×P×…."""
        written = (
            Written(choose(one.weights_BPSL), choose(one.rows_BPSC), choose(one.values_BPNTD))
            for one in self.written
        )
        return Cells(choose(self.share_BP1L), tuple(written))

    def scores(self, x_BPNTD: Tensor, look: Look) -> Tensor:
        """x·(W cells) in every head: B×P×S×L."""
        image_BPNTL, fixed_BPNTL = per_head(x_BPNTD, look.image_BNDL), per_head(x_BPNTD, look.fixed_NDL)
        scores_BPSL = torch.addcmul(fixed_BPNTL, image_BPNTL, self.share_BP1L[:, :, None]).flatten(2, 3)
        carried_BPSC = (x_BPNTD @ look.weight_NDC).flatten(2, 3)
        for one in self.written:
            scores_BPSL = plus_product(scores_BPSL, carried_BPSC @ one.rows_BPSC.mT, one.weights_BPSL)
        return scores_BPSL

    def gathered(self, attention_BPSL: Tensor, gather: Gather) -> Tensor:
        """What tokens that attend to the cells so much take from them: B×P×N×T×D."""
        split = (gather.image_BNLD.shape[1], -1)
        mixed_BPSC = torch.stack(
            [(attention_BPSL @ one.weights_BPSL.mT) @ one.rows_BPSC for one in self.written]
        ).sum(0)
        image_BPNTL = (attention_BPSL * self.share_BP1L).unflatten(2, split)
        taken_BPNTD = per_head(image_BPNTL, gather.image_BNLD) + gather.fixed_N1D
        return taken_BPNTD + mixed_BPSC.unflatten(2, split) @ gather.weight_NCD


def exchanged(
    before: Cells, weights_BPNTL: Tensor, values_BPNTD: Tensor, out_NDC: Tensor, norm: Norm, eps: float
) -> Cells:
    """The cells when they have taken `weights` of the tokens' values and were normalised.

    `out_NDC` is the output projection, a matrix a head.
    """
    share_BPL = before.share_BP1L[:, :, 0]
    rows_BPSC = centre((values_BPNTD @ out_NDC).flatten(2, 3) + norm.row_C)
    written = [replace(one, rows_BPSC=centre(norm.gamma_C * one.rows_BPSC)) for one in before.written]
    written.append(Written(weights_BPNTL.flatten(2, 3), rows_BPSC, values_BPNTD))

    squares_BPL = norm.square_BL[:, None] * share_BPL.square() + norm.linear_BL[:, None] * share_BPL
    for index, (one, image_BNDL) in enumerate(zip(written, norm.crossed_BNDL, strict=True)):
        met_BPSL = per_head(one.values_BPNTD, image_BNDL).flatten(2, 3) * before.share_BP1L
        for other in written[: index + 1]:
            gram_BPSS = one.rows_BPSC @ other.rows_BPSC.mT * (1 if other is one else 2)
            met_BPSL = plus_product(met_BPSL, gram_BPSS, other.weights_BPSL)
        squares_BPL = squares_BPL + (met_BPSL * one.weights_BPSL).sum(2, dtype=torch.float32)
    # Rounding may leave less than nothing of a cell that what it takes cancels.
    deviation_BP1L = (squares_BPL.clamp(min=0) / rows_BPSC.shape[-1] + eps).sqrt()[:, :, None]
    scale_BP1L = deviation_BP1L.reciprocal().to(weights_BPNTL.dtype)
    return Cells(
        before.share_BP1L * scale_BP1L,
        tuple(replace(one, weights_BPSL=one.weights_BPSL * scale_BP1L) for one in written),
    )


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


def centre(x: Tensor) -> Tensor:
    """Take the mean over the last axis away."""
    return x - x.mean(-1, keepdim=True)

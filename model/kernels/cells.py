"""`model.networks.factored_cells` for a CPU: the loops over an image's cells, compiled by Numba.

As tensors, what the cells take and see goes through memory some thirty times a prompt, and each of the many
short operations waits for the interpreter. Here a prompt's cells are worked on a block at a time, all steps
one after the other while the block is in the nearest cache, without the interpreter lock: lanes do not wait
for one another. The gram matrix of the rows is symmetric, and only its lower half is multiplied.

fp32 without gradients; everything else goes through tensors. Q counts through the prompts of all images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .blocks import (
    ONE,
    Floats,
    add_product,
    add_products,
    dot_products,
    exponentials,
    multiply_rows,
    softmax_of_tokens,
)
from .jit import compiled_sums

BLOCK = 512
"""Cells worked on at a time: 112 weights of each are 230 kB."""


def suits(*tensors: Tensor) -> bool:
    """Whether this is the way for such tensors here and now."""
    fp32_on_cpu = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return fp32_on_cpu and not torch.is_grad_enabled()


def exchanged(
    keys_BPNTD: Tensor,
    carried_BPNTR: Tensor,
    share_BPL: Tensor,
    weights_BPRL: Tensor,
    image_BNDL: Tensor,
    fixed_NDL: Tensor,
    values_BPMTD: Tensor,
    gram_BPRR: Tensor,
    norms: tuple[Tensor, Tensor, Tensor, Tensor],
    channels: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Share and weights after an exchange: see `Cells.exchanged`, whose names these are."""
    (batch, prompts, heads, tokens, width), cells = keys_BPNTD.shape, share_BPL.shape[-1]
    older, rows = weights_BPRL.shape[2], gram_BPRR.shape[-1]
    each, taken = (batch, prompts), values_BPMTD.shape[2]
    of_masks = rows - taken * tokens
    new_share_QL = np.empty((batch * prompts, cells), np.float32)
    new_weights_QRL = np.empty((batch * prompts, rows, cells), np.float32)
    _exchange(
        prompts,
        array_of(keys_BPNTD, *each, heads, tokens, width),
        array_of(carried_BPNTR, *each, heads, tokens, older),
        array_of(share_BPL, *each, cells),
        array_of(weights_BPRL, *each, older, cells),
        array_of(values_BPMTD, *each, taken, tokens, width),
        array_of(gram_BPRR, *each, older + heads * tokens, rows),
        array_of(image_BNDL[:, None], batch, 1, heads, width, cells),
        array_of(fixed_NDL[None, None], 1, 1, heads, width, cells)[0],
        array_of(norms[0][:, None], batch, 1, cells),
        array_of(norms[1][:, None], batch, 1, cells),
        array_of(norms[2][:, None], batch, 1, taken, width, cells),
        array_of(norms[3][:, None, :of_masks], batch, 1, of_masks, cells),
        np.float32(1 / channels),
        np.float32(eps),
        new_share_QL,
        new_weights_QRL,
    )
    return _tensor(new_share_QL, *each), _tensor(new_weights_QRL, *each)


def seen(
    x_BPNTD: Tensor,
    carried_BPNTR: Tensor,
    share_BPL: Tensor,
    weights_BPRL: Tensor,
    image_BNDL: Tensor,
    fixed_NDL: Tensor,
    gathered_BNDL: Tensor,
) -> tuple[Tensor, Tensor]:
    """What tokens see of the rows, B×P×N×T×R, and of the image, B×P×N×T×D: see `Cells.seen`."""
    (batch, prompts, heads, tokens, width), (rows, cells) = x_BPNTD.shape, weights_BPRL.shape[2:]
    each = (batch, prompts)
    mixed_QNTR = np.zeros((batch * prompts, heads, tokens, rows), np.float32)
    taken_QNTD = np.zeros((batch * prompts, heads, tokens, width), np.float32)
    _see(
        prompts,
        array_of(x_BPNTD, *each, heads, tokens, width),
        array_of(carried_BPNTR, *each, heads, tokens, rows),
        array_of(share_BPL, *each, cells),
        array_of(weights_BPRL, *each, rows, cells),
        array_of(image_BNDL[:, None], batch, 1, heads, width, cells),
        array_of(fixed_NDL[None, None], 1, 1, heads, width, cells)[0],
        array_of(gathered_BNDL[:, None], batch, 1, heads, width, cells),
        mixed_QNTR,
        taken_QNTD,
    )
    return _tensor(mixed_QNTR, *each), _tensor(taken_QNTD, *each)


def array_of(tensor: Tensor, *shape: int) -> Floats:
    """B×P×… as Q×…, contiguous. The loops look at no bounds: ValueError for another shape."""
    if tensor.shape != shape:
        raise ValueError(f"expected a tensor of shape {shape}, got {tuple(tensor.shape)}")
    return tensor.contiguous().flatten(0, 1).numpy()


def _tensor(array_Q: Floats, batch: int, prompts: int) -> Tensor:
    """Q×… as B×P×…."""
    return torch.from_numpy(array_Q).unflatten(0, (batch, prompts))


@compiled_sums
def _scores(
    x_NTD: Floats,
    carried_SR: Floats,
    share_L: Floats,
    weights_RL: Floats,
    image_NDL: Floats,
    fixed_NDL: Floats,
    start: int,
    cells: int,
    out_SL: Floats,
) -> None:
    """A block of x·(W cells)."""
    rows = len(carried_SR)
    for row in range(rows):
        out_SL[row][:cells] = 0
    add_products(x_NTD, image_NDL, start, out_SL, cells)
    multiply_rows(out_SL, rows, share_L, start, cells)
    add_products(x_NTD, fixed_NDL, start, out_SL, cells)
    add_product(carried_SR, weights_RL, start, out_SL, 0, cells, False)


@compiled_sums
def _exchange(
    prompts: int,
    keys_QNTD: Floats,
    carried_QNTR: Floats,
    share_QL: Floats,
    weights_QRL: Floats,
    values_QMTD: Floats,
    gram_QRR: Floats,
    image_BNDL: Floats,
    fixed_NDL: Floats,
    square_BL: Floats,
    linear_BL: Floats,
    crossed_BMDL: Floats,
    crossed_BXL: Floats,
    by_channels: np.float32,
    eps: np.float32,
    new_share_QL: Floats,
    new_weights_QRL: Floats,
) -> None:
    older, every, tokens = weights_QRL.shape[1], gram_QRR.shape[1], keys_QNTD.shape[2]
    of_masks = crossed_BXL.shape[1]
    block_RL, met_RL = np.empty((every, BLOCK), np.float32), np.empty((every, BLOCK), np.float32)
    half_RR = np.zeros((every, every), np.float32)
    top_L, sum_L = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    power_L = np.empty(BLOCK, np.int32)
    for q in range(len(keys_QNTD)):
        b = q // prompts
        share_L = share_QL[q]
        for row in range(every):
            half_RR[row, :row] = 2 * gram_QRR[q, row, :row]
            half_RR[row, row] = gram_QRR[q, row, row]
        for start in range(0, len(share_L), BLOCK):
            cells = min(BLOCK, len(share_L) - start)
            for row in range(older):
                block_RL[row][:cells] = weights_QRL[q][row][start : start + cells]
            new_SL = block_RL[older:]
            _scores(
                keys_QNTD[q],
                carried_QNTR[q].reshape(every - older, older),
                share_L,
                weights_QRL[q],
                image_BNDL[b],
                fixed_NDL,
                start,
                cells,
                new_SL,
            )
            softmax_of_tokens(new_SL, tokens, cells, top_L, sum_L, power_L)

            for row in range(of_masks):
                met_RL[row][:cells] = crossed_BXL[b][row][start : start + cells]
            for row in range(of_masks, every):
                met_RL[row][:cells] = 0
            add_products(values_QMTD[q], crossed_BMDL[b], start, met_RL[of_masks:], cells)
            multiply_rows(met_RL, every, share_L, start, cells)
            add_product(half_RR, block_RL, 0, met_RL, 0, cells, True)
            square_L, linear_L = square_BL[b][start : start + cells], linear_BL[b][start : start + cells]
            here_L = share_L[start : start + cells]
            for i in range(cells):
                sum_L[i] = (square_L[i] * here_L[i] + linear_L[i]) * here_L[i]
            for row in range(every):
                met_L, weights_L = met_RL[row], block_RL[row]
                for i in range(cells):
                    sum_L[i] += met_L[i] * weights_L[i]
            for i in range(cells):
                # Rounding may leave less than nothing of a cell that what it takes cancels.
                sum_L[i] = ONE / np.sqrt(max(sum_L[i], np.float32(0)) * by_channels + eps)
            new_share_L = new_share_QL[q][start : start + cells]
            for i in range(cells):
                new_share_L[i] = here_L[i] * sum_L[i]
            for row in range(every):
                new_L, weights_L = new_weights_QRL[q][row][start : start + cells], block_RL[row]
                for i in range(cells):
                    new_L[i] = weights_L[i] * sum_L[i]


@compiled_sums
def _see(
    prompts: int,
    x_QNTD: Floats,
    carried_QNTR: Floats,
    share_QL: Floats,
    weights_QRL: Floats,
    image_BNDL: Floats,
    fixed_NDL: Floats,
    gathered_BNDL: Floats,
    mixed_QNTR: Floats,
    taken_QNTD: Floats,
) -> None:
    """Softmax over the cells as they come: what was added up so far shrinks when a larger score comes."""
    heads, tokens = x_QNTD.shape[1:3]
    rows = heads * tokens
    block_SL = np.empty((rows, BLOCK), np.float32)
    top_S, sum_S, top_L = np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty(BLOCK, np.float32)
    power_L = np.empty(BLOCK, np.int32)
    for q in range(len(x_QNTD)):
        b = q // prompts
        share_L, weights_RL, mixed_SR, taken_NTD = (
            share_QL[q],
            weights_QRL[q],
            mixed_QNTR[q].reshape(rows, weights_QRL.shape[1]),
            taken_QNTD[q],
        )
        top_S[:], sum_S[:] = -np.inf, 0
        mixed_SR[:], taken_NTD[:] = 0, 0
        for start in range(0, len(share_L), BLOCK):
            cells = min(BLOCK, len(share_L) - start)
            _scores(
                x_QNTD[q],
                carried_QNTR[q].reshape(rows, len(weights_RL)),
                share_L,
                weights_RL,
                image_BNDL[b],
                fixed_NDL,
                start,
                cells,
                block_SL,
            )
            for row in range(rows):
                score_L, top = block_SL[row], top_S[row]
                for i in range(cells):
                    top = max(top, score_L[i])
                if top > top_S[row]:
                    shrink = np.exp(top_S[row] - top)
                    sum_S[row] *= shrink
                    mixed_SR[row] *= shrink
                    taken_NTD[row // tokens, row % tokens] *= shrink
                    top_S[row] = top
                top_L[:] = top
                exponentials(score_L, top_L, cells, power_L)
                total = np.float32(0)
                for i in range(cells):
                    total += score_L[i]
                sum_S[row] += total
            dot_products(block_SL, 0, rows, weights_RL, start, cells, mixed_SR)
            multiply_rows(block_SL, rows, share_L, start, cells)
            for n in range(heads):
                dot_products(block_SL, n * tokens, tokens, gathered_BNDL[b][n], start, cells, taken_NTD[n])
        for row in range(rows):
            mixed_SR[row] /= sum_S[row]
            taken_NTD[row // tokens, row % tokens] /= sum_S[row]

"""`model.cells` for a CPU: the loops over an image's cells, compiled by Numba.

As tensors, what the cells take and see goes through memory some thirty times a prompt, and each of the many
short operations waits for the interpreter. Here a prompt's cells are worked on a block at a time, all steps
one after the other while the block is in the nearest cache, without the interpreter lock: lanes do not wait
for one another. The gram matrix of the rows is symmetric, and only its lower half is multiplied.

fp32 without gradients; everything else goes through tensors. Q counts through the prompts of all images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.compiled import compiled_sums
from model.layers import LayerNorm2d

Floats = npt.NDArray[np.float32]

BLOCK = 512
"""Cells worked on at a time: 112 weights of each are 230 kB."""
DRAWN_BLOCK = 1024
"""And where masks are drawn."""


def suits(x: Tensor) -> bool:
    """Whether this is the way for such tensors here and now."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


def exchanged(
    keys_BPNTD: Tensor,
    carried_BPNTR: Tensor,
    share_BPL: Tensor,
    weights_BPRL: Tensor,
    image_BNDL: Tensor,
    fixed_NDL: Tensor,
    values_BPMTD: Tensor,
    gram_BPRR: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    channels: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Share and weights after an exchange: see `Cells.exchanged`, whose names these are."""
    batch, prompts = keys_BPNTD.shape[:2]
    new_share_BPL = torch.empty_like(share_BPL)
    new_weights_BPRL = share_BPL.new_empty(batch, prompts, gram_BPRR.shape[-1], share_BPL.shape[-1])
    _exchange(
        prompts,
        *_arrays(keys_BPNTD, carried_BPNTR, share_BPL, weights_BPRL, values_BPMTD, gram_BPRR),
        *(one.contiguous().numpy() for one in (image_BNDL, fixed_NDL, *norms)),
        np.float32(1 / channels),
        np.float32(eps),
        *_arrays(new_share_BPL, new_weights_BPRL),
    )
    return new_share_BPL, new_weights_BPRL


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
    mixed_BPNTR, taken_BPNTD = torch.empty_like(carried_BPNTR), x_BPNTD.new_empty(x_BPNTD.shape)
    _see(
        x_BPNTD.shape[1],
        *_arrays(x_BPNTD, carried_BPNTR, share_BPL, weights_BPRL),
        *(one.contiguous().numpy() for one in (image_BNDL, fixed_NDL, gathered_BNDL)),
        *_arrays(mixed_BPNTR, taken_BPNTD),
    )
    return mixed_BPNTR, taken_BPNTD


def drawn(
    share_JL: Tensor,
    weights_JRL: Tensor,
    rows_JRX: Tensor,
    base_XL: Tensor,
    constant_X: Tensor,
    norm: LayerNorm2d,
    second: tuple[Tensor, Tensor],
    weights_KC: Tensor,
    row_K: Tensor,
) -> Tensor:
    """Logits K×h×w of masks of J prompts, `row_K` not falling: see `MaskDecoder._draw`.

    The first transposed convolution is given by what it makes of base, β and rows, the second as a map of a
    cell to its quarters.
    """
    side = round(share_JL.shape[1] ** 0.5)
    logits_Khw = share_JL.new_empty(len(row_K), 4 * side, 4 * side)
    _draw(
        *(one.contiguous().numpy() for one in (share_JL, weights_JRL, rows_JRX.mT, base_XL, constant_X)),
        norm.weight.numpy(),
        norm.bias.numpy(),
        np.float32(norm.eps),
        *(one.contiguous().numpy() for one in (*second, weights_KC, row_K)),
        logits_Khw.numpy(),
    )
    return logits_Khw


def _arrays(*tensors: Tensor) -> list[Floats]:
    """B×P×… as Q×…."""
    return [tensor.contiguous().flatten(0, 1).numpy() for tensor in tensors]


@compiled_sums
def _add_product(
    a_XK: Floats, b_KL: Floats, start: int, out_XL: Floats, first: int, cells: int, lower: bool
) -> None:
    """Add a @ b[:, start:start + cells] to as many rows of `out` from the first; of a lower triangle if so.

    Two rows at a time and four products before anything is stored, which is what keeps a core busy.
    """
    rows, inner = a_XK.shape
    for x in range(0, rows, 2):
        two = x + 1 < rows
        one_K, other_K = a_XK[x], a_XK[x + 1 if two else x]
        one_L, other_L = out_XL[first + x], out_XL[first + x + 1 if two else first + x]
        most = min(inner, x + 2) if lower else inner
        k = 0
        while k < most:
            if k + 4 <= inner:
                a, b, c, d = one_K[k], one_K[k + 1], one_K[k + 2], one_K[k + 3]
                e, f, g, h = other_K[k], other_K[k + 1], other_K[k + 2], other_K[k + 3]
                p_L, q_L = b_KL[k][start : start + cells], b_KL[k + 1][start : start + cells]
                r_L, s_L = b_KL[k + 2][start : start + cells], b_KL[k + 3][start : start + cells]
                if two:
                    for i in range(cells):
                        p, q, r, s = p_L[i], q_L[i], r_L[i], s_L[i]
                        one = one_L[i] + a * p + b * q + c * r + d * s
                        other = other_L[i] + e * p + f * q + g * r + h * s
                        one_L[i] = one
                        other_L[i] = other
                else:
                    for i in range(cells):
                        one_L[i] += a * p_L[i] + b * q_L[i] + c * r_L[i] + d * s_L[i]
                k += 4
            else:
                a, e = one_K[k], other_K[k]
                p_L = b_KL[k][start : start + cells]
                for i in range(cells):
                    one_L[i] += a * p_L[i]
                if two:
                    for i in range(cells):
                        other_L[i] += e * p_L[i]
                k += 1


@compiled_sums
def _add_products(x_NTD: Floats, shared_NDL: Floats, start: int, out_XL: Floats, cells: int) -> None:
    """The same in every head."""
    heads, tokens = x_NTD.shape[:2]
    for n in range(heads):
        _add_product(x_NTD[n], shared_NDL[n], start, out_XL, n * tokens, cells, False)


@compiled_sums
def _multiply_rows(x_XL: Floats, rows: int, by_L: Floats, start: int, cells: int) -> None:
    by_l = by_L[start : start + cells]
    for row in range(rows):
        x_L = x_XL[row]
        for i in range(cells):
            x_L[i] *= by_l[i]


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
    _add_products(x_NTD, image_NDL, start, out_SL, cells)
    _multiply_rows(out_SL, rows, share_L, start, cells)
    _add_products(x_NTD, fixed_NDL, start, out_SL, cells)
    _add_product(carried_SR, weights_RL, start, out_SL, 0, cells, False)


LOG2_E, LN_2_HIGH, LN_2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
LOWEST = np.float32(-87)
ONE, HALF = np.float32(1), np.float32(0.5)
TAYLOR_3, TAYLOR_4 = np.float32(1 / 6), np.float32(1 / 24)
TAYLOR_5, TAYLOR_6 = np.float32(1 / 120), np.float32(1 / 720)


@compiled_sums
def _exponentials(x_L: Floats, top_L: Floats, cells: int, power_L: npt.NDArray[np.int32]) -> None:
    """exp(x − top) in the place of x ≤ top: 2ⁿ·exp(rest) with |rest| ≤ ln 2 / 2, to a unit in the last place.

    NumPy's would call a library for each number; this is vectorised.
    """
    for i in range(cells):
        x = max(x_L[i] - top_L[i], LOWEST)
        n = np.int32(x * LOG2_E - HALF)
        rest = (x - np.float32(n) * LN_2_HIGH) - np.float32(n) * LN_2_LOW
        series = TAYLOR_4 + rest * (TAYLOR_5 + rest * TAYLOR_6)
        x_L[i] = ONE + rest * (ONE + rest * (HALF + rest * (TAYLOR_3 + rest * series)))
        power_L[i] = (n + np.int32(127)) << np.int32(23)
    two_to_n_L = power_L.view(np.float32)
    for i in range(cells):
        x_L[i] *= two_to_n_L[i]


@compiled_sums
def _softmax_of_tokens(
    x_XL: Floats, tokens: int, cells: int, top_L: Floats, sum_L: Floats, power_L: npt.NDArray[np.int32]
) -> None:
    """Over the tokens of each head, cell by cell."""
    for first in range(0, len(x_XL), tokens):
        top_L[:cells] = x_XL[first][:cells]
        for row in range(first + 1, first + tokens):
            x_L = x_XL[row]
            for i in range(cells):
                top_L[i] = max(top_L[i], x_L[i])
        sum_L[:cells] = 0
        for row in range(first, first + tokens):
            x_L = x_XL[row]
            _exponentials(x_L, top_L, cells, power_L)
            for i in range(cells):
                sum_L[i] += x_L[i]
        for i in range(cells):
            sum_L[i] = ONE / sum_L[i]
        for row in range(first, first + tokens):
            x_L = x_XL[row]
            for i in range(cells):
                x_L[i] *= sum_L[i]


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
    by_channels: np.float32,
    eps: np.float32,
    new_share_QL: Floats,
    new_weights_QRL: Floats,
) -> None:
    older, every, tokens = weights_QRL.shape[1], gram_QRR.shape[1], keys_QNTD.shape[2]
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
            _softmax_of_tokens(new_SL, tokens, cells, top_L, sum_L, power_L)

            for row in range(every):
                met_RL[row][:cells] = 0
            _add_products(values_QMTD[q], crossed_BMDL[b], start, met_RL, cells)
            _multiply_rows(met_RL, every, share_L, start, cells)
            _add_product(half_RR, block_RL, 0, met_RL, 0, cells, True)
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
def _dot_products(
    a_XL: Floats, first: int, rows: int, b_YL: Floats, start: int, cells: int, out_XY: Floats
) -> None:
    """Add a @ bᵀ over a block of cells: `rows` of a from the first, all of b from cell `start`."""
    columns = len(b_YL)
    for x in range(0, rows, 2):
        two = x + 1 < rows
        one_L = a_XL[first + x][:cells]
        other_L = a_XL[first + x + 1 if two else first + x][:cells]
        for y in range(0, columns, 2):
            more = y + 1 < columns
            p_L = b_YL[y][start : start + cells]
            q_L = b_YL[y + 1 if more else y][start : start + cells]
            a = b = c = d = np.float32(0)
            for i in range(cells):
                a += one_L[i] * p_L[i]
                b += one_L[i] * q_L[i]
                c += other_L[i] * p_L[i]
                d += other_L[i] * q_L[i]
            out_XY[x, y] += a
            if more:
                out_XY[x, y + 1] += b
            if two:
                out_XY[x + 1, y] += c
                if more:
                    out_XY[x + 1, y + 1] += d


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
                _exponentials(score_L, top_L, cells, power_L)
                total = np.float32(0)
                for i in range(cells):
                    total += score_L[i]
                sum_S[row] += total
            _dot_products(block_SL, 0, rows, weights_RL, start, cells, mixed_SR)
            _multiply_rows(block_SL, rows, share_L, start, cells)
            for n in range(heads):
                _dot_products(block_SL, n * tokens, tokens, gathered_BNDL[b][n], start, cells, taken_NTD[n])
        for row in range(rows):
            mixed_SR[row] /= sum_S[row]
            taken_NTD[row // tokens, row % tokens] /= sum_S[row]


# erf(x) ≈ x · P(x²) / Q(x²) up to where it is ±1 in fp32; a least-squares fit, to 4e-7.
ERF_END = np.float32(3.95)
ERF_P = tuple(
    np.float32(p)
    for p in (1.1283788, 0.20243617, 0.050908663, 3.82061e-3, 1.4571229e-4, -1.9920298e-6, 2.0192671e-8)
)
ERF_Q = tuple(np.float32(q) for q in (1, 0.5127338, 0.11604300, 0.014576456, 9.8843849e-4))
ROOT_HALF = np.float32(0.5**0.5)


@compiled_sums
def _gelu(x_XL: Floats, rows: int, cells: int) -> None:
    """GELU: x · (1 + erf(x / √2)) / 2, in place."""
    p0, p1, p2, p3, p4, p5, p6 = ERF_P
    q0, q1, q2, q3, q4 = ERF_Q
    for row in range(rows):
        x_L = x_XL[row]
        for i in range(cells):
            x = min(max(x_L[i] * ROOT_HALF, -ERF_END), ERF_END)
            y = x * x
            p = p0 + y * (p1 + y * (p2 + y * (p3 + y * (p4 + y * (p5 + y * p6)))))
            q = q0 + y * (q1 + y * (q2 + y * (q3 + y * q4)))
            x_L[i] *= HALF + HALF * min(max(x * p / q, -ONE), ONE)


@compiled_sums
def _normalise(
    x_XL: Floats,
    cells: int,
    gamma_X: Floats,
    beta_X: Floats,
    eps: np.float32,
    mean_L: Floats,
    scale_L: Floats,
) -> None:
    """Layer norm over the rows, in place."""
    rows = len(x_XL)
    mean_L[:cells], scale_L[:cells] = 0, 0
    for row in range(rows):
        x_L = x_XL[row]
        for i in range(cells):
            mean_L[i] += x_L[i]
    for i in range(cells):
        mean_L[i] /= np.float32(rows)
    for row in range(rows):
        x_L = x_XL[row]
        for i in range(cells):
            rest = x_L[i] - mean_L[i]
            x_L[i] = rest
            scale_L[i] += rest * rest
    for i in range(cells):
        scale_L[i] = ONE / np.sqrt(scale_L[i] / np.float32(rows) + eps)
    for row in range(rows):
        x_L, gamma, beta = x_XL[row], gamma_X[row], beta_X[row]
        for i in range(cells):
            x_L[i] = x_L[i] * scale_L[i] * gamma + beta


@compiled_sums
def _draw(
    share_JL: Floats,
    weights_JRL: Floats,
    rows_JXR: Floats,
    base_XL: Floats,
    constant_X: Floats,
    gamma_c: Floats,
    beta_c: Floats,
    eps: np.float32,
    second_Yc: Floats,
    bias_Y: Floats,
    weights_KC: Floats,
    row_K: npt.NDArray[np.int64],
    logits_Khw: Floats,
) -> None:
    """Some rows of cells at a time: halves, norm, GELU, quarters, GELU, masks."""
    wide, middle, narrow = len(constant_X), len(gamma_c), weights_KC.shape[1]
    side = logits_Khw.shape[2] // 4
    together = max(1, DRAWN_BLOCK // side)
    most = side * together
    half_XL, quarter_YL = np.empty((wide, most), np.float32), np.empty((len(bias_Y), most), np.float32)
    mean_L, scale_L = np.empty(most, np.float32), np.empty(most, np.float32)
    logits_KL = np.empty((len(row_K), most), np.float32)
    first = 0
    while first < len(row_K):
        j, last = row_K[first], first
        while last < len(row_K) and row_K[last] == j:
            last += 1
        for top in range(0, side, together):
            start, cells = top * side, side * min(together, side - top)
            share_L = share_JL[j][start : start + cells]
            for row in range(wide):
                half_L, base_L, constant = half_XL[row], base_XL[row][start : start + cells], constant_X[row]
                for i in range(cells):
                    half_L[i] = constant + share_L[i] * base_L[i]
            _add_product(rows_JXR[j], weights_JRL[j], start, half_XL, 0, cells, False)
            for half in range(4):
                half_cL = half_XL[half * middle : (half + 1) * middle]
                _normalise(half_cL, cells, gamma_c, beta_c, eps, mean_L, scale_L)
                _gelu(half_cL, middle, cells)
                for row in range(len(bias_Y)):
                    quarter_YL[row][:cells] = bias_Y[row]
                _add_product(second_Yc, half_cL, 0, quarter_YL, 0, cells, False)
                _gelu(quarter_YL, len(bias_Y), cells)
                for quarter in range(4):
                    for k in range(last - first):
                        logits_KL[k][:cells] = 0
                    _add_product(
                        weights_KC[first:last],
                        quarter_YL[quarter * narrow : (quarter + 1) * narrow],
                        0,
                        logits_KL,
                        0,
                        cells,
                        False,
                    )
                    y, x = 2 * (half // 2) + quarter // 2, 2 * (half % 2) + quarter % 2
                    for k in range(last - first):
                        for row in range(cells // side):
                            out_w, from_L = logits_Khw[first + k, 4 * (top + row) + y], logits_KL[k]
                            for column in range(side):
                                out_w[4 * column + x] = from_L[row * side + column]
        first = last

"""What compiled code is built from: products, exponentials, GELU and norms over a block of an image's cells.

A block is a matrix whose rows are cut after `cells` columns, so that the last one may be short. Everything
works in place or adds to what is there. No bounds are looked at: callers see to the shapes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .jit import compiled, compiled_sums

Floats = npt.NDArray[np.float32]


@compiled_sums
def add_product(
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
def add_products(x_NTD: Floats, shared_NDL: Floats, start: int, out_XL: Floats, cells: int) -> None:
    """The same in every head."""
    heads, tokens = x_NTD.shape[:2]
    for n in range(heads):
        add_product(x_NTD[n], shared_NDL[n], start, out_XL, n * tokens, cells, False)


@compiled_sums
def multiply_rows(x_XL: Floats, rows: int, by_L: Floats, start: int, cells: int) -> None:
    """Multiply each of the rows with by[start : start + cells]."""
    by_l = by_L[start : start + cells]
    for row in range(rows):
        x_L = x_XL[row]
        for i in range(cells):
            x_L[i] *= by_l[i]


@compiled_sums
def dot_products(
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


LOG2_E, LN_2_HIGH, LN_2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
LOWEST = np.float32(-87)
ONE, HALF = np.float32(1), np.float32(0.5)
TAYLOR_3, TAYLOR_4 = np.float32(1 / 6), np.float32(1 / 24)
TAYLOR_5, TAYLOR_6 = np.float32(1 / 120), np.float32(1 / 720)


@compiled
def exponentials(x_L: Floats, top_L: Floats, cells: int, power_L: npt.NDArray[np.int32]) -> None:
    """exp(x − top) in the place of x ≤ top: 2ⁿ·exp(rest) with |rest| ≤ ln 2 / 2, to 5e-7.

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
def softmax_of_tokens(
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
            exponentials(x_L, top_L, cells, power_L)
            for i in range(cells):
                sum_L[i] += x_L[i]
        for i in range(cells):
            sum_L[i] = ONE / sum_L[i]
        for row in range(first, first + tokens):
            x_L = x_XL[row]
            for i in range(cells):
                x_L[i] *= sum_L[i]


# erf(x) ≈ x · P(x²) / Q(x²) up to where it is ±1 in fp32; a least-squares fit, to 4e-7.
ERF_END = np.float32(3.95)
ERF_P = tuple(
    np.float32(p)
    for p in (1.1283788, 0.20243617, 0.050908663, 3.82061e-3, 1.4571229e-4, -1.9920298e-6, 2.0192671e-8)
)
ERF_Q = tuple(np.float32(q) for q in (1, 0.5127338, 0.11604300, 0.014576456, 9.8843849e-4))
ROOT_HALF = np.float32(0.5**0.5)


@compiled_sums
def gelu(x_XL: Floats, rows: int, cells: int) -> None:
    """GELU: x · (1 + erf(x / √2)) / 2, in place."""
    p0, p1, p2, p3, p4, p5, p6 = ERF_P
    q0, q1, q2, q3, q4 = ERF_Q
    for row in range(rows):
        x_L = x_XL[row]
        for i in range(cells):
            x = x_L[i] * ROOT_HALF
            y = min(x * x, ERF_END * ERF_END)
            p = p0 + y * (p1 + y * (p2 + y * (p3 + y * (p4 + y * (p5 + y * p6)))))
            q = q0 + y * (q1 + y * (q2 + y * (q3 + y * q4)))
            erf = x * p / q if abs(x) < ERF_END else np.copysign(ONE, x)
            x_L[i] *= HALF + HALF * erf


@compiled_sums
def normalise(
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

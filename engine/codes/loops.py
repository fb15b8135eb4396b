"""Loops over a mask's runs, compiled and without the interpreter lock: its code, its background.

While a mask is written down, other threads go on: those that hand a device its work, above all. `single` and
`runs` load this, and Numba with it, when they need it first. What reads codes without Numba is in `single`
and `batch`; `lengths_of_text` is for compiled loops over many codes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...model.kernels.jit import compiled

Ints = npt.NDArray[np.int64]
Text = npt.NDArray[np.uint8]

MOST_CHARACTERS = 13
"""Of one number: 64 bits, five to a character."""


@compiled
def text_of_runs(start_R: Ints, stop_R: Ints, pixels: int) -> Text:
    """The string of a mask whose runs these are, in an image of so many pixels."""
    count_C = np.empty(2 * len(start_R) + 1, np.int64)
    count, position, inside = 0, 0, False
    for run in range(len(start_R)):
        if inside and start_R[run] == position:  # it goes on from the bottom of the column before
            count_C[count - 1] += stop_R[run] - position
        else:
            count_C[count] = start_R[run] - position
            count_C[count + 1] = stop_R[run] - start_R[run]
            count += 2
        position, inside = stop_R[run], True
    if position < pixels or not inside:  # only the first run may be empty
        count_C[count] = pixels - position
        count += 1
    text_B: Text = text_of_lengths(count_C[:count])
    return text_B


@compiled
def background_of(start_R: Ints, stop_R: Ints, height: int, width: int) -> Ints:
    """Starts and stops, 2×R, of the runs of what a mask leaves of the image: see `Runs.background`."""
    ends_2R = np.empty((2, len(start_R) + width), np.int64)
    count, run = 0, 0
    for x in range(width):
        position, bottom = x * height, (x + 1) * height
        while run < len(start_R) and start_R[run] < bottom:
            if start_R[run] > position:
                ends_2R[0, count], ends_2R[1, count] = position, start_R[run]
                count += 1
            position = stop_R[run]
            run += 1
        if position < bottom:
            ends_2R[0, count], ends_2R[1, count] = position, bottom
            count += 1
    return ends_2R[:, :count].copy()


@compiled
def text_of_lengths(count_C: Ints) -> Text:
    """The string of these lengths of runs: `engine.codes.single.run_lengths` says what it is made of."""
    text_B = np.empty(MOST_CHARACTERS * len(count_C), np.uint8)
    size = 0
    for c in range(len(count_C)):
        number = count_C[c] - count_C[c - 2] if c > 2 else count_C[c]
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != (-1 if bits & 16 else 0)
            text_B[size] = 48 + bits + (32 if more else 0)
            size += 1
    return text_B[:size]


@compiled
def lengths_of_text(text_B: Text, pixels: int, count_C: Ints) -> int:
    """Write the lengths that a string holds to `count_C`, which has room for one a character; how many.

    −1 where `engine.codes.single.run_lengths` raises ValueError: the string is malformed, or its runs do not
    add up to the image's pixels.
    """
    at, size, position = 0, 0, 0
    while at < len(text_B):
        length, shift, more = 0, 0, True
        while more:
            if at == len(text_B) or not 48 <= text_B[at] <= 111 or shift > 50:
                return -1
            bits = int(text_B[at]) - 48
            length |= (bits & 31) << shift
            shift += 5
            more = (bits & 32) != 0
            at += 1
            if not more and bits & 16:
                length |= -1 << shift
        if size > 2:
            length += count_C[size - 2]
        if length < 0 or length > pixels - position:
            return -1
        count_C[size] = length
        position += length
        size += 1
    return size if position == pixels else -1

"""Codes decoded together, and by the compiled loop, are as decoded one by one; the same ones are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskmill.engine.codes import batch, single
from maskmill.engine.codes.loops import lengths_of_text
from maskmill.engine.records import Rle

masks = st.tuples(st.integers(1, 23), st.integers(1, 23)).flatmap(lambda size: arrays(np.bool_, size))
strings = st.text(st.characters(min_codepoint=47, max_codepoint=112), max_size=6)
SIZE = (3, 4)


def texts(codes):
    """The strings end to end, and where each starts and the last one ends."""
    ends = np.cumsum([0, *(len(code.counts) for code in codes)])
    return np.frombuffer("".join(code.counts for code in codes).encode(), np.uint8), ends


def pixels_of(codes):
    return np.array([height * width for height, width in (code.size for code in codes)])


def lengths_each(runs):
    """Each mask's run lengths."""
    found = []
    for first, last, is_padded in zip(runs.first_M, runs.last_M, runs.is_padded_M, strict=True):
        pairs = np.stack([runs.background_P, runs.foreground_P], axis=1)[first : last + 1].ravel()
        found.append(pairs[: len(pairs) - is_padded].tolist())
    return found


def refuses(read):
    try:
        read()
    except ValueError:
        return True
    return False


@settings(deadline=None)  # the first example compiles
@given(st.lists(masks, min_size=1, max_size=8))
def test_the_same_runs_areas_and_boxes(drawn):
    codes = [single.encode(mask_HW) for mask_HW in drawn]
    runs = batch.decode(*texts(codes), pixels_of(codes))
    assert lengths_each(runs) == [single.run_lengths(code).tolist() for code in codes]
    assert batch.areas(runs).tolist() == [mask_HW.sum() for mask_HW in drawn]
    assert runs.are_proper() == all(mask_HW.any() for mask_HW in drawn)
    if runs.are_proper():
        heights = np.array([code.size[0] for code in codes])
        boxes = batch.boxes(runs, heights, pixels_of(codes))
        assert boxes.tolist() == [list(single.bbox(code)) for code in codes]


@pytest.mark.parametrize(
    ("counts", "proper"),
    [
        ("345", True),  # runs of 3, 4 and 5
        ("0<", True),  # all of the image: only the first run may be empty
        ("<", False),  # nothing of it
        ("345L", False),  # an empty run at the end: 4 − 4
        ("32005", False),  # an empty run in the middle: 3, 2, 0, 2 and 5
    ],
)
def test_which_codes_are_as_encoders_write_them(counts, proper):
    codes = [Rle(SIZE, "345"), Rle(SIZE, counts), Rle(SIZE, "345")]
    assert batch.decode(*texts(codes), pixels_of(codes)).are_proper() == proper


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(strings, st.sampled_from(["345", "0<", "<", "345L"])), min_size=1, max_size=4))
def test_the_same_strings_are_refused(drawn):
    codes = [Rle(SIZE, counts) for counts in drawn]
    refused = [refuses(lambda code=code: single.run_lengths(code)) for code in codes]
    assert refuses(lambda: batch.decode(*texts(codes), pixels_of(codes))) == any(refused)
    for code, is_refused in zip(codes, refused, strict=True):
        text_B, _ = texts([code])
        lengths = np.empty(len(text_B), np.int64)
        found = lengths_of_text(text_B, SIZE[0] * SIZE[1], lengths)
        expected = [] if is_refused else single.run_lengths(code).tolist()
        assert (found, lengths[: max(found, 0)].tolist()) == (-1 if is_refused else len(expected), expected)


@pytest.mark.parametrize(("groups", "refused"), [(11, False), (12, True)])
def test_a_number_has_eleven_groups_at_most(groups, refused):
    code = Rle((1 << 25, 1 << 25), "P" * 10 + "1" if groups == 11 else "P" * 10 + "Q0")  # 2⁵⁰
    text_B, ends = texts([code])
    assert refuses(lambda: single.run_lengths(code)) == refused
    assert refuses(lambda: batch.decode(text_B, ends, pixels_of([code]))) == refused
    assert (lengths_of_text(text_B, 1 << 50, np.empty(12, np.int64)) < 0) == refused


def test_sums_that_could_be_inexact_are_refused():
    codes = [Rle((1 << 26, 1 << 26), "345")]
    with pytest.raises(ValueError, match="add up"):
        batch.decode(*texts(codes), pixels_of(codes))

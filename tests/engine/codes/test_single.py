import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from maskmill.engine.codes import single
from maskmill.engine.codes.runs import Runs
from maskmill.engine.records import Rle

masks = st.tuples(st.integers(1, 23), st.integers(1, 23)).flatmap(lambda size: arrays(np.bool_, size))


def coco_code(mask_HW: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


@pytest.mark.parametrize(
    "mask", [np.zeros((0, 3), bool), np.zeros((3, 0), bool), np.zeros(3, bool), np.zeros((2, 2, 2), bool)]
)
def test_a_mask_without_pixels_or_of_another_shape_is_refused(mask):
    with pytest.raises(ValueError, match="H×W"):
        single.encode(mask)


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="bool"):
        single.encode(np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ("", (2, 2)),  # no number at all
        ("4", (2, 3)),  # 4 pixels for 6
        ("4", (0, 4)),
        ("4", (-2, -2)),
        ("T", (2, 2)),  # says that more follows, and ends
        ("\x7f", (2, 2)),  # out of range
        (" ", (2, 2)),
        ("4é", (2, 2)),
        ("P" * 20 + "4", (2, 2)),  # a number of more groups than any count has
        ("5O", (2, 2)),  # 5 and −1 add up, but no run is shorter than nothing
    ],
)
def test_malformed_codes_are_errors(counts, size):
    for read in (single.run_lengths, single.decode, single.area, single.bbox):
        with pytest.raises(ValueError):
            read(Rle(size, counts))


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        (["..", ".."], [4]),
        (["##", "##"], [0, 4]),
        ([".#", ".#"], [2, 2]),  # ends with the image: no empty run at the end
        (["#.", ".#"], [0, 1, 2, 1]),
        (
            ["..#", "##."],
            [1, 1, 1, 2, 1],
        ),  # the run passes from the bottom of a column to the top of the next
    ],
)
def test_hand_made_masks(rows, lengths):
    mask_HW = np.array([[character == "#" for character in row] for row in rows])
    code = single.encode(mask_HW)
    assert single.run_lengths(code).tolist() == lengths
    assert code.counts == coco_code(mask_HW)["counts"].decode()


@given(masks)
def test_agrees_with_pycocotools(mask_HW):
    code, expected = single.encode(mask_HW), coco_code(mask_HW)
    assert code == Rle(mask_HW.shape, expected["counts"].decode())
    assert np.array_equal(single.decode(code), mask_HW)
    assert single.area(code) == coco.area(expected) == mask_HW.sum()
    assert single.bbox(code) == tuple(coco.toBbox(expected))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_numbers_of_many_groups(lengths):
    # The area of an image has no bound of ours; pycocotools writes at most 32 bits, so write the string here.
    lengths[0] += 1
    numbers = [n if i < 3 else n - lengths[i - 2] for i, n in enumerate(lengths)]
    characters = []
    for number in numbers:
        while not -16 <= number < 16:
            characters.append(chr(48 + 32 + (number & 31)))
            number >>= 5
        characters.append(chr(48 + (number & 31)))
    code = Rle((1, sum(lengths)), "".join(characters))
    assert single.run_lengths(code).tolist() == lengths


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_lengths_of_any_size_are_written_as_they_are_read(lengths):
    lengths[0] += 1
    code = single.from_run_lengths(np.array(lengths), (1, sum(lengths)))
    assert single.run_lengths(code).tolist() == lengths


def longest_pause(work):
    """Seconds that others have to wait at a stretch while a thread does the work."""
    longest, last = 0.0, time.perf_counter()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work)
        while not future.done():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    return longest


def test_other_threads_go_on_while_a_mask_is_written_down():
    runs, height = 2_000_000, 1000
    start_R = 2 * np.arange(runs)  # every other pixel
    mask = Runs(start_R, start_R + 1, (height, 2 * runs // height))
    single.encode_runs(mask)  # compiled
    assert min(longest_pause(lambda: single.encode_runs(mask)) for _ in range(5)) < 0.02

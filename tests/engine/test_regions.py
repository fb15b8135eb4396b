import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.regions import BoxMask, clean_up
from pipelines.released import amg


def picture(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


def on_image(part: BoxMask, size) -> np.ndarray:
    mask_HW = np.zeros(size, bool)
    height, width = part.mask_hw.shape
    mask_HW[part.y0 : part.y0 + height, part.x0 : part.x0 + width] = part.mask_hw
    return mask_HW


def tight(mask_HW) -> BoxMask:
    x0, y0, x1, y1 = BoxMask(mask_HW, 0, 0).box()
    return BoxMask(mask_HW[y0 : y1 + 1, x0 : x1 + 1], x0, y0)


def test_a_hole_is_filled_and_an_island_removed():
    mask_HW = picture(
        "......#.",
        ".####...",
        ".#.##...",
        ".####...",
        "........",
    )
    cleaned, touched = clean_up(tight(mask_HW), mask_HW.shape, 3)
    assert touched
    assert np.array_equal(on_image(cleaned, mask_HW.shape), picture(*["." * 8, *[".####..."] * 3, "." * 8]))


def test_nothing_to_do():
    mask_HW = picture("...", ".##", ".##")
    cleaned, touched = clean_up(tight(mask_HW), mask_HW.shape, 4)
    assert not touched
    assert np.array_equal(on_image(cleaned, mask_HW.shape), mask_HW)


def test_of_small_parts_the_largest_stays_unless_they_are_to_be_dropped():
    mask_HW = np.pad(picture("#..##"), 20)
    cleaned, touched = clean_up(tight(mask_HW), mask_HW.shape, 10)
    assert touched
    assert np.array_equal(on_image(cleaned, mask_HW.shape), np.pad(picture("...##"), 20))
    assert clean_up(tight(mask_HW), mask_HW.shape, 10, drop_small=True) == (None, True)


def test_a_strip_beside_the_box_may_be_a_hole_of_the_image():
    # All of the background is one part of 3 pixels, which lies outside the mask's box.
    mask_HW = picture("###.", "###.", "###.")
    cleaned, touched = clean_up(tight(mask_HW), mask_HW.shape, 4)
    assert touched
    assert on_image(cleaned, mask_HW.shape).all()


@pytest.mark.parametrize("gap", ["left", "both", "above"])
def test_a_bay_at_the_box_is_no_hole_where_the_background_goes_on(gap):
    bay_hw = picture("####", ".###", "####")
    margins = {"left": ((0, 0), (30, 0)), "both": ((0, 0), (30, 30)), "above": ((30, 0), (30, 0))}[gap]
    mask_HW = np.pad(bay_hw, margins)
    cleaned, touched = clean_up(tight(mask_HW), mask_HW.shape, 5)
    assert not touched
    assert np.array_equal(on_image(cleaned, mask_HW.shape), mask_HW)


@settings(max_examples=300, deadline=None)
@given(
    arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any),
    st.tuples(*[st.integers(0, 12)] * 4),
    st.integers(1, 20),
)
def test_agrees_with_the_released_clean_up_of_the_whole_image(mask_hw, margins, min_area):
    top, bottom, left, right = margins
    mask_HW = np.pad(mask_hw, ((top, bottom), (left, right)))
    filled, holes = amg.remove_small_regions(mask_HW, min_area, "holes")
    expected, islands = amg.remove_small_regions(filled, min_area, "islands")
    cleaned, touched = clean_up(tight(mask_HW), mask_HW.shape, min_area)
    assert touched == (holes or islands)
    result_HW = on_image(cleaned, mask_HW.shape)
    if not np.array_equal(result_HW, expected):  # of several largest small parts any one may stay
        assert result_HW.sum() == expected.sum() < min_area
        assert not (result_HW & ~filled).any()

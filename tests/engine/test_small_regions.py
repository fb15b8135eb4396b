import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskmill.engine.codes import single
from maskmill.engine.codes.runs import Runs
from maskmill.engine.small_regions import clean_up
from maskmill.pipelines.bench.released import amg


def picture(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


def cleaned_up(mask_HW, min_area, **options):
    """The mask after the clean-up, and whether it was touched."""
    mask, touched = clean_up(Runs.of(mask_HW), min_area, **options)
    if mask is None:
        return None, touched
    cleaned_HW = single.decode(single.encode_runs(mask))
    assert Runs.of(cleaned_HW).start_R.tolist() == mask.start_R.tolist()  # joined where they met
    assert Runs.of(cleaned_HW).stop_R.tolist() == mask.stop_R.tolist()
    return cleaned_HW, touched


def test_a_hole_is_filled_and_an_island_removed():
    mask_HW = picture(
        "......#.",
        ".####...",
        ".#.##...",
        ".####...",
        "........",
    )
    cleaned, touched = cleaned_up(mask_HW, 3)
    assert touched
    assert np.array_equal(cleaned, picture(*["." * 8, *[".####..."] * 3, "." * 8]))


def test_nothing_to_do():
    mask_HW = picture("...", ".##", ".##")
    cleaned, touched = cleaned_up(mask_HW, 4)
    assert not touched
    assert np.array_equal(cleaned, mask_HW)


def test_of_small_parts_the_largest_stays_unless_they_are_to_be_dropped():
    mask_HW = np.pad(picture("#..##"), 20)
    cleaned, touched = cleaned_up(mask_HW, 10)
    assert touched
    assert np.array_equal(cleaned, np.pad(picture("...##"), 20))
    assert cleaned_up(mask_HW, 10, drop_small=True) == (None, True)


def test_a_strip_at_the_border_may_be_a_hole():
    # All of the background is one part of 3 pixels.
    mask_HW = picture("###.", "###.", "###.")
    cleaned, touched = cleaned_up(mask_HW, 4)
    assert touched
    assert cleaned.all()


@pytest.mark.parametrize("gap", ["left", "both", "above"])
def test_a_bay_is_no_hole_where_the_background_goes_on(gap):
    bay_hw = picture("####", ".###", "####")
    margins = {"left": ((0, 0), (30, 0)), "both": ((0, 0), (30, 30)), "above": ((30, 0), (30, 0))}[gap]
    mask_HW = np.pad(bay_hw, margins)
    cleaned, touched = cleaned_up(mask_HW, 5)
    assert not touched
    assert np.array_equal(cleaned, mask_HW)


@settings(max_examples=300, deadline=None)
@given(
    arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.integers(1, 20),
)
def test_agrees_with_the_released_clean_up_of_the_whole_image(mask_hw, margins, min_area):
    top, bottom, left, right = margins
    mask_HW = np.pad(mask_hw, ((top, bottom), (left, right)))
    filled, holes = amg.remove_small_regions(mask_HW, min_area, "holes")
    expected, islands = amg.remove_small_regions(filled, min_area, "islands")
    cleaned, touched = cleaned_up(mask_HW, min_area)
    assert touched == (holes or islands)
    result_HW = cleaned
    if not np.array_equal(result_HW, expected):  # of several largest small parts any one may stay
        assert result_HW.sum() == expected.sum() < min_area
        assert not (result_HW & ~filled).any()


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="without pixels"):
        clean_up(Runs.of(np.zeros((3, 3), bool)), 4)


@settings(max_examples=300, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_runs_know_their_area_box_and_background(mask_HW):
    mask = Runs.of(mask_HW)
    assert mask.area == mask_HW.sum()
    background = mask.background()
    assert np.array_equal(single.decode(single.encode_runs(background)), ~mask_HW)
    everything = mask | background
    assert (everything.stop_R - everything.start_R).tolist() == [mask_HW.shape[0]] * mask_HW.shape[1]
    if mask.area:
        y, x = np.nonzero(mask_HW)
        assert mask.box() == (x.min(), y.min(), x.max(), y.max())


def test_large_masks_agree_with_the_released_clean_up():
    # Long runs, many parts, paths that are halved: noise that was smoothed a little.
    noise_HW = np.random.default_rng(0).random((700, 500))
    mask_HW = sum(np.roll(noise_HW, shift, axis) for shift in range(5) for axis in (0, 1)) > 5.3
    filled, holes = amg.remove_small_regions(mask_HW, 60, "holes")
    expected, islands = amg.remove_small_regions(filled, 60, "islands")
    cleaned, touched = cleaned_up(mask_HW, 60)
    assert touched == (holes or islands) == True  # noqa: E712
    assert np.array_equal(cleaned, expected)

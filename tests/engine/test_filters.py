import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskmill.engine.config import GeneratorConfig
from maskmill.engine.filters import filter_masks, stability_scores
from maskmill.engine.geometry import (
    inclusive_to_xywh,
    input_size,
    near_crop_edge,
    points_to_input,
    resize_to_input,
)
from maskmill.engine.grid import Crop, crop_points, crops_of, point_grid
from maskmill.engine.resampling.tiles import Measures
from maskmill.pipelines.bench.released import amg, released_transforms

sides = st.integers(1, 3000)


def measures(tight, area, loose, boxes=None):
    boxes = [[0, 0, 9, 9]] * len(area) if boxes is None else boxes
    return Measures(np.array(tight), np.array(area), np.array(loose), np.array(boxes))


def test_stability_is_the_ratio_of_the_areas():
    # 0/0 is 0: nothing is not stable.
    assert stability_scores(measures([0, 3, 5], [0, 4, 5], [0, 4, 5])).tolist() == [0, 0.75, 1]


def test_stability_of_a_mask_wider_than_int16():
    wide_1HW = torch.full((1, 2, 40_000), 3.0)
    assert amg.calculate_stability_score(wide_1HW, 0.0, 1.0).item() == 1.0  # −25,536 / −25,536, by luck
    wide_1HW[0, :, :10_000] = 0.5
    assert amg.calculate_stability_score(wide_1HW, 0.0, 1.0).item() < 0  # 30,000 / −25,536
    assert stability_scores(measures([60_000], [80_000], [80_000])).tolist() == [0.75]


def test_each_candidate_is_dropped_for_the_first_reason():
    found = measures(
        tight=[9, 90, 90, 0, 100, 90],
        area=[95, 95, 95, 0, 9_600, 95],
        loose=[100, 100, 100, 0, 100, 100],
    )
    boxes_N4 = np.array(
        [[500, 0, 600, 9], [500, 0, 600, 9], [5, 5, 9, 9], [0] * 4, [5, 5, 9, 9], [5, 5, 9, 9]]
    )
    config = GeneratorConfig(stability_score_thresh=0.9, max_mask_area_fraction=0.95)
    crop, image_size = Crop(0, 0, 600, 10, 1), (10, 1000)
    keep, drops = filter_masks(found, boxes_N4, crop, image_size, config)
    assert keep.tolist() == [2, 5]
    assert drops == {"stability": 2, "crop_edge": 1, "empty": 0, "too_large": 1}
    # Without the stability filter the empty mask is seen to be empty.
    lenient = GeneratorConfig(stability_score_thresh=0)
    keep, drops = filter_masks(found, boxes_N4, crop, image_size, lenient)
    assert keep.tolist() == [2, 4, 5]
    assert drops == {"stability": 0, "crop_edge": 2, "empty": 1, "too_large": 0}


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [(None, [0, 1]), (1.0, [0]), (0.95, [0])],  # at least the fraction is too large
)
def test_large_masks(fraction, kept):
    found = measures([94, 100], [94, 100], [94, 100])
    config = GeneratorConfig(max_mask_area_fraction=fraction)
    keep, _ = filter_masks(found, np.zeros((2, 4), int), Crop(0, 0, 10, 10, 0), (10, 10), config)
    assert keep.tolist() == kept


@given(sides, sides, st.integers(0, 3), st.floats(0, 0.9))
def test_crops_are_the_released_ones(height, width, layers, overlap):
    boxes, numbers = amg.generate_crop_boxes((height, width), layers, overlap)
    expected = [
        Crop(*box, layer)
        for box, layer in zip(boxes, numbers, strict=True)
        if box[0] < width and box[1] < height
    ]
    assert crops_of(height, width, layers, overlap) == expected
    assert all(min(crop.size) > 0 for crop in expected)


@given(st.integers(1, 40))
def test_point_grids_are_the_released_ones(side):
    assert np.array_equal(point_grid(side), amg.build_point_grid(side))


def test_points_of_a_crop():
    config = GeneratorConfig(points_per_side=4, crop_n_layers=1, crop_n_points_downscale_factor=2)
    points_N2 = crop_points(Crop(100, 200, 140, 220, 1), config)
    assert points_N2.tolist() == [[10, 5], [30, 5], [10, 15], [30, 15]]  # from the crop's corner, x first


@given(sides, sides, st.sampled_from([64, 512, 1024]))
def test_sizes_and_points_are_the_released_ones(height, width, img_size):
    expected = released_transforms.ResizeLongestSide.get_preprocess_shape(height, width, img_size)
    assert input_size(height, width, img_size) == tuple(max(1, side) for side in expected)
    if 0 in expected:
        return  # the released code fails on so thin an image
    points_N2 = point_grid(3) * np.array([width, height])
    released_N2 = released_transforms.ResizeLongestSide(img_size).apply_coords(points_N2, (height, width))
    assert np.allclose(points_to_input(points_N2, (height, width), img_size), released_N2, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (300, 451), (700, 30)])
def test_the_resize_is_the_released_one(size):
    image_HW3 = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = released_transforms.ResizeLongestSide(64).apply_image(image_HW3)
    assert np.array_equal(resize_to_input(image_HW3, 64), expected)


@given(st.lists(st.tuples(*[st.integers(0, 100)] * 4), min_size=1), st.tuples(*[st.integers(0, 100)] * 4))
def test_crop_edges_are_the_released_ones(boxes, corners):
    crop_box = [
        min(corners[0], corners[2]),
        min(corners[1], corners[3]),
        max(corners[::2]),
        max(corners[1::2]),
    ]
    boxes_N4 = np.array(boxes)
    expected = amg.is_box_near_crop_edge(torch.tensor(boxes), crop_box, [0, 0, 100, 100])
    on_image = boxes_N4 + np.array(crop_box[:2] * 2)
    assert near_crop_edge(on_image, Crop(*crop_box, 1), (100, 100)).tolist() == expected.tolist()


def test_a_box_counts_its_last_pixel():
    assert inclusive_to_xywh((2, 3, 2, 7)) == (2.0, 3.0, 1.0, 5.0)


@pytest.mark.parametrize(
    "options",
    [
        {"points_per_sides": 32},  # no such option
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"pred_iou_thresh": 1.5},
        {"max_mask_area_fraction": 0.0},
        {"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2},  # 4 / 2³ points
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError):
        GeneratorConfig(**options)

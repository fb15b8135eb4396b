"""Polygons give the mask again: by pycocotools and by OpenCV, for any mask."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from maskmill.engine.codes import single
from maskmill.pipelines.corpus.masks import cutout
from maskmill.pipelines.exchange.polygons import polygons

masks = (
    st.tuples(st.integers(1, 17), st.integers(1, 17)).flatmap(lambda size: arrays(np.bool_, size))
).filter(lambda mask: mask.any())


def drawn(found, size):
    """The polygons as COCO's own code fills them, united."""
    codes = coco.frPyObjects(found, *size)
    return coco.decode(coco.merge(codes)).astype(bool)


def outlines(mask_HW):
    """The polygons of a mask, by way of its code."""
    code = single.encode(mask_HW)
    annotation = {"segmentation": {"size": list(code.size), "counts": code.counts}}
    row = {"key": "a", "height": code.size[0], "width": code.size[1], "annotations": [annotation]}
    return polygons(cutout(row, 0))


def test_a_mask_of_nothing():
    assert outlines(np.zeros((3, 4), np.bool_)) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["#"], [[0, 0, 1, 0, 1, 1, 0, 1]]),
        (["....", ".##.", "...."], [[1, 1, 3, 1, 3, 2, 1, 2]]),
        (["#..", "..#"], [[0, 0, 1, 0, 1, 1, 0, 1], [2, 1, 3, 1, 3, 2, 2, 2]]),
        (["#.", ".#"], [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]),  # they touch by a corner
        (["##", "#."], [[0, 0, 2, 0, 2, 1, 1, 1, 1, 2, 0, 2]]),
        (
            ["###", "#.#", "###"],  # around the outside, to the hole, around it, and back
            [[0, 0, 3, 0, 3, 3, 0, 3, 0, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1]],
        ),
    ],
)
def test_by_hand(rows, expected):
    mask_HW = np.array([[pixel == "#" for pixel in row] for row in rows])
    assert outlines(mask_HW) == expected


@settings(deadline=None, max_examples=100)
@given(masks)
def test_any_mask(mask_HW):
    found = outlines(mask_HW)
    assert np.array_equal(drawn(found, mask_HW.shape), mask_HW)
    parts, part_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=4)
    assert len(found) == parts - 1
    for part, flat in enumerate(found, 1):  # each with its own holes
        assert np.array_equal(drawn([flat], mask_HW.shape), part_HW == part)
    # By the shoelace formula holes count against their outlines.
    area = 0.0
    for flat in found:
        xs, ys = np.array(flat[0::2]), np.array(flat[1::2])
        area += (xs * np.roll(ys, -1) - np.roll(xs, -1) * ys).sum() / 2
    assert area == mask_HW.sum()


def test_a_large_mask_of_an_odd_shape():
    mask_HW = np.zeros((700, 900), np.uint8)
    cv2.ellipse(mask_HW, (400, 300), (350, 200), 20, 0, 360, 1, -1)
    cv2.ellipse(mask_HW, (400, 300), (150, 100), 40, 0, 360, 0, -1)
    cv2.circle(mask_HW, (400, 300), 40, 1, -1)
    mask_HW = mask_HW.astype(bool)
    found = outlines(mask_HW)
    assert len(found) == 2
    assert np.array_equal(drawn(found, mask_HW.shape), mask_HW)

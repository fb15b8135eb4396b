"""Masks measured all at once agree with masks measured one by one, and with pycocotools."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from maskmill.pipelines.format.ids import annotation_id
from maskmill.pipelines.format.schema import ANNOTATION
from maskmill.pipelines.verification import masks as verify_masks
from maskmill.pipelines.verification.masks import codes_agree, doubtful_rows
from maskmill.pipelines.verification.rows import mask_problems

drawn = (
    st.tuples(st.integers(1, 23), st.integers(1, 23))
    .flatmap(lambda size: arrays(np.bool_, size))
    .filter(lambda mask: mask.any())
)


def annotation_of(mask_HW, identity):
    code = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    height, width = mask_HW.shape
    return {
        "id": identity,
        "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
        "bbox": coco.toBbox(code).tolist(),
        "area": int(coco.area(code)),
        "predicted_iou": 0.9,
        "stability_score": 1.0,
        "crop_box": [0.0, 0.0, float(width), float(height)],
        "point_coords": [[0.5, 0.5]],
    }


def rows_of(masks, per_row=3):
    """Rows of masks of one size each: the annotations and the size."""
    rows = []
    for mask in masks:
        if not rows or rows[-1][1] != mask.shape or len(rows[-1][0]) == per_row:
            rows.append(([], mask.shape))
        rows[-1][0].append(annotation_of(mask, annotation_id(len(rows) - 1, len(rows[-1][0]))))
    return rows


def doubted(rows, plan_rows=None):
    column = pa.array([annotations for annotations, _ in rows], pa.list_(ANNOTATION))
    heights, widths = (np.array([size[axis] for _, size in rows], np.int64) for axis in (0, 1))
    plan_rows = np.arange(len(rows)) if plan_rows is None else plan_rows
    # A slice in the middle of more, as a row group's slices are.
    padded = pa.concat_arrays([column[:1], column, column[:1]]).slice(1, len(column))
    found = [doubtful_rows(part, plan_rows, heights, widths).tolist() for part in (column, padded)]
    assert found[0] == found[1]
    return found[0]


def problems(rows):
    each = enumerate(rows)
    return [bool(list(mask_problems(annotations or (), row, *size))) for row, (annotations, size) in each]


def test_no_rows_and_rows_without_masks():
    assert doubtful_rows(pa.array([], pa.list_(ANNOTATION)), *[np.zeros(0, np.int64)] * 3).tolist() == []
    assert doubted([([], (3, 4)), (None, (0, 0)), ([], (0, 0))]) == [False] * 3


@settings(deadline=None)
@given(st.lists(drawn, min_size=1, max_size=12), st.sampled_from([1, 7, 1 << 17]))
def test_sound_masks_are_not_in_doubt(masks, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_masks, "PIECE_CHARACTERS", piece)
        assert doubted(rows_of(masks)) == [False] * len(rows_of(masks))


CHANGES = {
    "id": lambda mask, _: mask.update(id=mask["id"] + 1),
    "area": lambda mask, by: mask.update(area=mask["area"] + by),
    "bbox": lambda mask, by: mask["bbox"].__setitem__(by % 4, mask["bbox"][by % 4] + 1),
    "size": lambda mask, _: mask["segmentation"]["size"].reverse(),
    "height": lambda mask, by: mask["segmentation"]["size"].__setitem__(0, by),
    "counts": lambda mask, by: mask["segmentation"].update(counts=mask["segmentation"]["counts"][: by - 1]),
    "more counts": lambda mask, _: mask["segmentation"].update(counts=mask["segmentation"]["counts"] + "00"),
    "other counts": lambda mask, by: mask["segmentation"].update(counts=chr(48 + by) + "1"),
    "foreign counts": lambda mask, _: mask["segmentation"].update(counts="çö\x00"),
    "endless counts": lambda mask, by: mask["segmentation"].update(counts="o" * by),
    "iou": lambda mask, by: mask.update(predicted_iou=[float("nan"), float("inf"), None, -1.0][by % 4]),
    "stability": lambda mask, by: mask.update(stability_score=[float("nan"), 1.5, None, -0.1][by % 4]),
    "crop": lambda mask, by: mask["crop_box"].__setitem__(by % 4, [-1, 0, 99, float("nan")][by // 4 % 4]),
    "point": lambda mask, by: mask.update(point_coords=[[[0, -1]], [], [[0]], [[1, 2, 3]]][by % 4]),
    "null": lambda mask, by: mask.update({sorted(mask)[by % len(mask)]: None}),
    "null in a list": lambda mask, by: mask["bbox"].__setitem__(by % 4, None),
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(drawn, min_size=1, max_size=8), st.sampled_from(sorted(CHANGES)), st.integers(1, 40), st.data()
)
def test_whatever_is_wrong_with_a_row_puts_it_in_doubt(masks, change, by, data):
    rows = rows_of(masks)
    row = data.draw(st.integers(0, len(rows) - 1))
    CHANGES[change](data.draw(st.sampled_from(rows[row][0])), by)
    wrong = problems(rows)
    assert [now or not was for now, was in zip(doubted(rows), wrong, strict=True)] == [True] * len(rows)


@pytest.mark.parametrize(
    ("counts", "area", "box", "agrees"),
    [
        ("345", 4, (1, 0, 2, 3), True),  # by hand: runs of 3, 4 and 5 pixels down columns of 3
        ("345", 4, (1, 0, 2, 2), False),
        ("345", 5, (1, 0, 2, 3), False),
        ("0<", 12, (0, 0, 4, 3), True),  # all of the image
        ("<", 0, (0, 0, 0, 0), False),  # nothing of it
        ("345L", 4, (1, 0, 2, 3), False),  # an empty run at the end: 4 − 4
        ("32005", 4, (1, 0, 2, 3), False),  # an empty run in the middle: 3, 2, 0, 2 and 5
        ("346", 4, (1, 0, 2, 3), False),  # one pixel too many
        ("3O5", 4, (1, 0, 2, 3), False),  # a negative run
    ],
)
def test_codes_by_hand(counts, area, box, agrees):
    size = np.array([3]), np.array([4])
    assert codes_agree(pa.array([counts]), *size, np.array([area]), np.float32([box])).tolist() == [agrees]

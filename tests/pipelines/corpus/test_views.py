"""Views: what cannot be one first, then each test by hand, overlaps against bitmaps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.engine.codes import single
from maskmill.pipelines.corpus.masks import cutout, label_map, mask_nms
from maskmill.pipelines.corpus.views import View
from maskmill.pipelines.errors import CorpusError


def row_of(masks, scores=None, stabilities=None):
    """A row with these bool masks; the scores fall from 0.9 where none are given."""
    scores = scores or [0.9 - index / 100 for index in range(len(masks))]
    stabilities = stabilities or [0.96] * len(masks)
    height, width = masks[0].shape if masks else (2, 2)
    annotations = [
        {
            "id": index + 1,
            "segmentation": {"size": [height, width], "counts": single.encode(mask).counts},
            "area": int(mask.sum()),
            "predicted_iou": float(np.float32(score)),
            "stability_score": float(np.float32(stability)),
        }
        for index, (mask, score, stability) in enumerate(zip(masks, scores, stabilities, strict=True))
    ]
    return {"key": "a.png", "height": height, "width": width, "annotations": annotations}


def rectangle(x0, y0, x1, y1, size=(8, 10)):
    mask = np.zeros(size, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def ids(annotations):
    return [annotation["id"] for annotation in annotations]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"predicted_iou": 1.5}, "predicted_iou: expected a number from 0 to 1, got 1.5"),
        ({"stability_score": -0.1}, "stability_score: expected a number from 0 to 1"),
        ({"mask_nms": float("nan")}, "mask_nms: expected a number from 0 to 1, got nan"),
        ({"min_area": -1}, "min_area: expected a number of pixels of at least 0, got -1"),
        ({"min_area": 9, "max_area": 8}, "max_area: expected at least min_area, 9, got 8"),
    ],
)
def test_values_out_of_range(values, says):
    with pytest.raises(ValueError, match=says):
        View(**values)


@pytest.mark.parametrize("counts", ["", "o", "ooooo", "é", "\0"])
def test_a_damaged_code_is_an_error_and_not_a_crash(counts):
    row = row_of([rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 5)])
    row["annotations"][1]["segmentation"]["counts"] = counts
    for work in (View(mask_nms=0.5).annotations, lambda row: label_map(row, row["annotations"])):
        with pytest.raises(CorpusError, match=r"a\.png: mask 1: "):
            work(row)
    row["annotations"][1]["segmentation"]["size"] = [4, 4]
    with pytest.raises(CorpusError, match=r"a\.png: mask 1 is for \[4, 4\], not \[8, 10\]"):
        label_map(row, row["annotations"])


def test_a_code_with_runs_of_nothing_is_an_empty_mask():
    row = row_of([rectangle(0, 0, 1, 1, (3, 4))])
    row["annotations"][0]["segmentation"]["counts"] = "507"  # five pixels out, none in, seven out
    found = cutout(row, 0)
    assert (found.x, found.y, found.mask_HW.shape) == (0, 0, (0, 0))
    row["annotations"][0]["segmentation"]["counts"] = "5043"  # and after four of those, three in
    found = cutout(row, 0)
    assert (found.x, found.y, found.mask_HW.tolist()) == (3, 0, [[True]] * 3)


def test_a_label_map_of_nothing():
    assert not label_map(row_of([]), []).any()
    with pytest.raises(ValueError, match="expected a priority out of area, predicted_iou, got 'size'"):
        label_map(row_of([]), [], "size")
    with pytest.raises(ValueError, match="a rejected image has no masks"):
        label_map({"key": "a.png", "height": None, "width": None}, [])


def test_each_test_by_itself():
    masks = [rectangle(0, 0, 1, side) for side in (1, 3, 5, 7)]
    row = row_of(masks, [0.88, 0.9, 0.6, 0.95], [0.95, 0.9, 1, 0.97])
    assert View().annotations(row) == row["annotations"]
    assert ids(View(min_area=3).annotations(row)) == [2, 3, 4]
    assert ids(View(min_area=3, max_area=5).annotations(row)) == [2, 3]
    # As in the generator: more than one threshold, at least the other, both in 32 bits; 0 is off.
    assert ids(View(predicted_iou=0.88).annotations(row)) == [2, 4]
    assert ids(View(stability_score=0.95).annotations(row)) == [1, 3, 4]
    assert View(predicted_iou=0, stability_score=0).annotations(row) == row["annotations"]
    assert ids(View(predicted_iou=0.7, stability_score=0.95, min_area=2).annotations(row)) == [4]


def test_near_duplicates_by_hand():
    # IoU of 1 and 2: 32/40 = 0.8; of 2 and 3: 24/40 = 0.6; of 1 and 3: 24/40. 4 is apart, and twice there.
    masks = [
        rectangle(0, 0, 5, 8),
        rectangle(0, 0, 4, 8),
        rectangle(0, 2, 4, 8),
        *[rectangle(8, 0, 10, 8)] * 2,
    ]
    row = row_of(masks, [0.8, 0.9, 0.7, 0.5, 0.5])
    assert ids(View(mask_nms=0.9).annotations(row)) == [1, 2, 3, 4]
    assert ids(View(mask_nms=0.79).annotations(row)) == [2, 3, 4]
    assert ids(View(mask_nms=0.5).annotations(row)) == [2, 4]
    assert ids(View(mask_nms=1).annotations(row)) == [1, 2, 3, 4, 5]
    # What another test drops suppresses nothing.
    assert ids(View(mask_nms=0.5, max_area=30).annotations(row)) == [3, 4]
    assert View(mask_nms=0.5).annotations(row_of([])) == []


drawn = st.lists(
    st.tuples(*[st.integers(0, 7)] * 4, st.sampled_from([0.5, 0.6, 0.7])).map(
        lambda v: (
            rectangle(min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1),
            v[4],
        )
    ),
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(drawn, st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]))
def test_near_duplicates_against_bitmaps(drawn, threshold):
    """Greedy over all pairs of bitmaps, in the order of the scores."""
    row = row_of([mask for mask, _ in drawn], [score for _, score in drawn])
    kept: list[int] = []
    for index in sorted(range(len(drawn)), key=lambda index: -drawn[index][1]):
        mask = drawn[index][0]
        overlaps = [(mask & drawn[k][0]).sum() / (mask | drawn[k][0]).sum() for k in kept]
        if all(iou <= threshold for iou in overlaps):
            kept.append(index)
    assert mask_nms(row, row["annotations"], threshold) == sorted(kept)


@settings(max_examples=60, deadline=None)
@given(drawn, st.sampled_from(["area", "predicted_iou"]))
def test_a_label_map_against_bitmaps(drawn, priority):
    """Each pixel's label is the best, by the stated priority, of the masks that cover it."""
    row = row_of([mask for mask, _ in drawn], [score for _, score in drawn])
    labels_HW = label_map(row, row["annotations"], priority)
    assert labels_HW.dtype == np.int32
    assert labels_HW.shape == (row["height"], row["width"])
    for y, x in np.ndindex(labels_HW.shape):
        over = [index for index, (mask, _) in enumerate(drawn) if mask[y, x]]
        best = {
            "area": lambda index: (drawn[index][0].sum(), index),
            "predicted_iou": lambda index: (-drawn[index][1], index),
        }[priority]
        assert labels_HW[y, x] == (min(over, key=best) + 1 if over else 0)


def test_more_masks_than_pycocotools_takes_at_once():
    """Some of its functions fail on more than 255 codes."""
    row = row_of([rectangle(0, 0, 5, 8)] * 400)
    assert ids(View(mask_nms=0.9).annotations(row)) == [1]


RUN = {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "crop_n_layers": 0, "min_mask_region_area": 0}


@pytest.mark.parametrize(
    ("view", "changes", "says"),
    [
        (View(min_area=9, mask_nms=0.9, predicted_iou=0.88, stability_score=0.95), {"crop_n_layers": 1}, []),
        (View(predicted_iou=0.9), {}, []),
        (View(predicted_iou=0.5), {}, ["the run's was 0.88: masks between the two are missing"]),
        (View(predicted_iou=0.9), {"crop_n_layers": 1}, ["the run had crops"]),
        (View(predicted_iou=0.9), {"min_mask_region_area": 100}, ["the run cleaned masks up"]),
        (View(stability_score=0.97), {}, ["kept the one of higher predicted IoU, however stable"]),
        (View(stability_score=0.9), {}, ["the run's was 0.95"]),
    ],
)
def test_why_a_run_could_have_other_masks(view, changes, says):
    found = view.caveats({"generator": {**RUN, **changes}})
    assert len(found) == len(says)
    assert all(text in caveat for text, caveat in zip(says, found, strict=True))


def test_a_corpus_that_does_not_say_how_it_was_made():
    assert View(min_area=9).caveats({}) == []
    assert "does not say by which thresholds" in View(predicted_iou=0.9).caveats({})[0]

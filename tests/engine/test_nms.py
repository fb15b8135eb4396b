import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskmill.engine.nms import non_maximal_suppression
from maskmill.pipelines.bench.released import batched_nms

BOX = (0, 0, 10, 10)


def suppress(boxes, scores, threshold=0.7):
    keep = non_maximal_suppression(
        np.array(boxes, np.int64).reshape(-1, 4), np.array(scores, np.float32), threshold
    )
    return keep.tolist()


def naive(boxes, scores, threshold):
    """Pair by pair, in the order of falling score."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def iou(a, b):
    sides = [min(a[2 + axis], b[2 + axis]) - max(a[axis], b[axis]) for axis in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / union if union else 0.0


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([BOX], [0.5], [0]),
        ([BOX, BOX], [0.5, 0.9], [1]),
        ([BOX, BOX], [0.5, 0.5], [0]),  # equal scores keep their order
        ([BOX, (0, 0, 10, 7)], [0.9, 0.5], [0, 1]),  # IoU 0.7 is not above 0.7
        ([BOX, (0, 0, 10, 8)], [0.9, 0.5], [0]),
        ([(3, 3, 3, 9), (3, 3, 3, 9)], [0.9, 0.5], [0, 1]),  # one pixel wide: no area, so no IoU
        ([BOX, (20, 20, 30, 30), (21, 20, 30, 30)], [0.1, 0.2, 0.3], [2, 0]),
        # The second falls to the first and so spares the third.
        ([(0, 0, 100, 10), (0, 0, 80, 10), (0, 0, 60, 10)], [0.9, 0.8, 0.7], [0, 2]),
    ],
)
def test_hand_made_boxes(boxes, scores, kept):
    assert suppress(boxes, scores) == kept


coordinate = st.integers(0, 12)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(
    st.lists(st.tuples(boxes, st.sampled_from([0.25, 0.5, 0.75])), max_size=30),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_agrees_with_comparing_all_pairs(scored, threshold):
    found, scores = [box for box, _ in scored], [score for _, score in scored]
    assert suppress(found, scores, threshold) == naive(found, scores, threshold)


@given(st.lists(st.tuples(boxes, st.sampled_from([0.25, 0.5, 0.75])), max_size=30))
def test_the_oracle_of_the_parity_tests_agrees_too(scored):
    found, scores = [box for box, _ in scored], [score for _, score in scored]
    boxes_N4 = torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
    kept = batched_nms(boxes_N4, torch.tensor(scores), torch.zeros(len(scores)), 0.7)
    assert kept.tolist() == suppress(found, scores)

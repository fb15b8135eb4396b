"""What a model's scores are: clicks and discs by hand, automatic masks by cases worked out on paper."""

import json

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as mask_utils

from maskmill.model import load_sam
from maskmill.pipelines.cli import main
from maskmill.pipelines.evaluation.automatic import automatic_scores
from maskmill.pipelines.evaluation.click_points import centre, correction
from maskmill.pipelines.evaluation.interactive import evaluate, score_image
from maskmill.pipelines.labelled.load import read_labelled


def square(left, top, side, size=200):
    """A mask of one square."""
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def coded(mask, score=1.0):
    """As COCO writes it."""
    return {**mask_utils.encode(np.asfortranarray(mask)), "score": score}


def test_the_click_is_the_point_farthest_from_the_edge():
    mask = np.zeros((20, 30), np.uint8)
    mask[:7, 10:17] = 1  # touches the upper border, which is an edge too
    assert centre(mask).tolist() == [13, 3]


def test_a_disc_is_scored_as_a_disc(tiny_weights):
    mask = np.zeros((1, 256, 256), np.uint8)
    cv2.circle(mask[0], (128, 128), 20, 1, -1)
    [row], pairs = score_image(load_sam("nano", tiny_weights), np.zeros((256, 256, 3), np.uint8), mask, 128)
    assert row["iou_calibration_mae"] == pytest.approx(np.abs(pairs[:, 0] - pairs[:, 1]).mean())
    assert row["disc"] > 0.97
    assert 0 <= row["miou_1click_chosen"] <= row["miou_1click_oracle"] <= 1


def test_scores_are_means_over_masks(shapes, tiny_weights):
    images = read_labelled(shapes)[:3]
    result = evaluate(load_sam("nano", tiny_weights), images, masks_per_image=1)
    assert result.by_source["drawn"] == result.scores
    assert set(result.scores) >= {
        "miou_1click_oracle",
        "miou_1click_chosen",
        "miou_box",
        "iou_calibration_mae",
    }


def test_evaluate_command_prints_json_last(shapes, tiny_weights, tmp_path, capsys):
    command = ["evaluate", "--data", str(shapes), "--checkpoint", str(tiny_weights), "--json"]
    every = ["points_per_side=4", "pred_iou_thresh=0", "stability_score_thresh=0"]
    grid = [word for value in every for word in ("--set", f"generator.{value}")]
    assert main([*command, "--masks-per-image", "1", *grid]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["images"] == 20
    names = {"miou_1click_oracle", "miou_1click_chosen", "miou_3click", "miou_5click", "miou_box"}
    for name in names | {"iou_calibration_mae", "ar_10", "ar_100", "ar_1000", "precision"}:
        assert 0 <= scores[name] <= 1, name
        assert scores["by_source"]["drawn"][name] == scores[name]
    assert sum(one["masks"] for one in scores["reliability"]) == 60, "three answers for each of 20 masks"
    more = [
        "--masks-per-image",
        "1",
        "--no-automatic",
        "--mask-prompts",
        "--plot",
        str(tmp_path / "plot.png"),
    ]
    assert main([*command, *more]) == 0
    prompted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "ar_100" not in prompted
    assert prompted["miou_1click_oracle"] == scores["miou_1click_oracle"]
    assert prompted["miou_5click"] != scores["miou_5click"], "the last answer makes a difference"
    assert cv2.imread(str(tmp_path / "plot.png")).shape[0] > 300


def test_of_pixels_equally_far_from_the_edge_a_click_takes_the_first():
    """By comparing each pixel with each: no distance transform."""
    rng = np.random.default_rng(0)
    ties = 0
    for _ in range(300):
        mask = cv2.blur(rng.random((24, 31), np.float32), (9, 9)) > 0.48
        edge = np.argwhere(~np.pad(mask, 1)) - 1
        inside = np.argwhere(mask)
        squared = np.square(inside[:, None] - edge[None]).sum(-1).min(1)
        ties += (squared == squared.max()).sum() > 1
        assert centre(mask.astype(np.uint8)).tolist() == inside[squared.argmax()][::-1].tolist()
    assert ties > 50


def test_the_weights_of_the_configuration_are_the_ones_that_are_scored(shapes, tiny_weights, capsys):
    command = ["evaluate", "--data", str(shapes), "--masks-per-image", "1", "--no-automatic", "--json"]
    said = []
    for given in (["--checkpoint", str(tiny_weights)], ["--set", f"model.checkpoint={tiny_weights}"]):
        assert main([*command, *given]) == 0
        said.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert said[0] == said[1]


def test_images_in_a_store_are_to_be_brought_here_first(capsys):
    assert main(["evaluate", "--data", "s3://bucket/images"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "s3://bucket/images: a model is scored on a local folder" in line


def test_evaluate_on_no_validation_image_is_refused(shapes, tiny_weights, tmp_path, capsys):
    training = [not image.validates for image in read_labelled(shapes)]
    pq.write_table(pq.read_table(shapes / "drawn.parquet").filter(training), tmp_path / "drawn.parquet")
    command = ["evaluate", "--data", str(tmp_path), "--checkpoint", str(tiny_weights)]
    assert main([*command, "--validation"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "images is set aside for validation" in line


def test_a_plot_that_cannot_be_written_is_refused_before_the_scoring(
    shapes, tiny_weights, capsys, monkeypatch
):
    monkeypatch.setattr("maskmill.pipelines.evaluation.scoring.evaluate", None)
    command = ["evaluate", "--data", str(shapes), "--checkpoint", str(tiny_weights)]
    assert main([*command, "--plot", "/nowhere/plot.png"]) == 2
    assert "--plot /nowhere/plot.png: /nowhere is not a folder that can be" in capsys.readouterr().err


def test_a_correction_goes_to_the_middle_of_what_is_most_wrong():
    true = square(10, 10, 41)
    drawn = square(10, 10, 41).astype(bool)
    assert correction(drawn, true)[1] == 1
    assert correction(drawn, true)[0].tolist() == centre(true).tolist(), "nothing is wrong"
    drawn[10:51, 30:51] = False
    (x, y), label = correction(drawn, true)
    assert (x, label) == (40, 1)
    assert 20 <= y <= 40
    drawn |= square(100, 100, 61).astype(bool)
    point, label = correction(drawn, true)
    assert (point.tolist(), label) == ([130, 130], 0)


def test_recall_and_precision_of_a_case_worked_out_by_hand():
    drawn = [coded(square(0, 0, 40)), coded(square(100, 100, 100))]
    # The first exactly; of the second 62 of 100 columns; and one that nobody drew.
    part = square(100, 100, 100)
    part[:, 162:] = 0
    found = [coded(drawn_one, score) for drawn_one, score in ((square(0, 0, 40), 0.9), (part, 0.8))]
    found.append(coded(square(60, 0, 30), 0.7))
    scores = automatic_scores([(drawn, found)])
    # 0.62 passes three of the ten thresholds 0.50, 0.55, … 0.95.
    assert scores["ar_100"] == pytest.approx((10 + 3) / 20)
    assert scores["ar_1000_medium"] == scores["ar_10_medium"] == pytest.approx(1.0)
    assert scores["ar_100_large"] == pytest.approx(3 / 10)
    assert scores["ar_1000_large"] == pytest.approx(3 / 10)
    assert "ar_1000_small" not in scores, "nothing small was drawn"
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["masks_per_image"] == 3


def test_only_the_masks_of_highest_predicted_iou_count_and_each_finds_one():
    drawn = [coded(square(0, 0, 40)), coded(square(0, 0, 40))]
    noise = [coded(square(50 + 10 * n, 50, 9), 0.9) for n in range(10)]
    scores = automatic_scores([(drawn, [*noise, coded(square(0, 0, 40), 0.5)])])
    assert scores["ar_10"] == 0
    assert scores["ar_100"] == pytest.approx(0.5), "one mask, drawn twice"


def test_an_image_in_which_nothing_is_found_counts():
    drawn = [coded(square(0, 0, 40))]
    scores = automatic_scores([(drawn, [coded(square(0, 0, 40))]), (drawn, [])])
    assert scores["ar_100"] == pytest.approx(0.5)
    assert scores["masks_per_image"] == 0.5
    nothing = automatic_scores([(drawn, [])])
    assert nothing["ar_100"] == 0
    assert "precision" not in nothing

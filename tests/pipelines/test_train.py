"""Training and evaluation on a handful of drawn shapes: resuming, determinism, and what a bad folder says."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools import mask as mask_utils

from model import load_sam
from pipelines.cli import main
from pipelines.errors import ConfigError
from pipelines.evaluate import centre, evaluate, score_image
from pipelines.train import StageConfig, TrainConfig, Trainer, train
from pipelines.training_data import TrainingBatches, read_labelled


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Twenty pictures of two ellipses each, laid out as labelled data."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images" / "drawn").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        picture = np.full((96, 128, 3), rng.integers(0, 255, 3), np.uint8)
        masks = []
        for _ in range(2):
            mask = np.zeros((96, 128), np.uint8)
            middle, axes = rng.integers(20, 76, 2), rng.integers(8, 20, 2)
            cv2.ellipse(mask, middle.tolist(), axes.tolist(), 0, 0, 360, 1, -1)
            picture[mask > 0] = rng.integers(0, 255, 3)
            rle = mask_utils.encode(np.asfortranarray(mask))
            masks.append({"size": rle["size"], "counts": rle["counts"].decode()})
        name = f"images/drawn/{number}.png"
        cv2.imwrite(str(folder / name), picture)
        rows.append(
            {"image_id": str(number), "file_name": name, "height": 96, "width": 128, "source": "drawn"}
            | {"masks": masks}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "drawn.parquet")
    return folder


def configuration(shapes, out, **changes):
    values = {
        "data": shapes,
        "out": out,
        "stages": (
            StageConfig(steps=2, size=64, images=2, masks=2),
            StageConfig(steps=2, size=128, images=1),
        ),
        "precision": "fp32",
        "loader_workers": 0,
        "warmup_steps": 1,
        "checkpoint_every": 1,
        "evaluate_every": 4,
        "validation_images": 1,
    }
    return TrainConfig(**values | changes)


def test_a_folder_without_labels_says_what_was_expected(tmp_path):
    with pytest.raises(ConfigError, match=r"\{source\}\.parquet"):
        read_labelled(tmp_path)


def test_a_missing_picture_names_its_file(shapes, tmp_path):
    (tmp_path / "drawn.parquet").write_bytes((shapes / "drawn.parquet").read_bytes())
    with pytest.raises(ConfigError, match=r"0\.png"):
        read_labelled(tmp_path)[0].pixels()


def test_more_masks_than_pycocotools_counts_at_once(shapes):
    image = read_labelled(shapes)[0]
    many = type(image)(image.image_id, image.path, image.source, image.rles * 150)
    assert many.areas().tolist() == image.areas().tolist() * 150


def test_a_batch_depends_on_seed_and_step_alone(shapes):
    images = read_labelled(shapes)
    options = {
        "size": 64,
        "images_per_step": 3,
        "masks_per_image": 4,
        "zoom": (0.8, 2.0),
        "area_power": 0.5,
        "source_weights": {},
    }
    early = TrainingBatches(images, seed=1, steps=range(10), **options)
    late = TrainingBatches(images, seed=1, steps=range(7, 10), **options)
    again, first = late[0], early[7]
    for name in ("pixels_BCHW", "valid_BHW", "masks_BPHW", "points_BP2"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    x, y = first.points_BP2.long().unbind(-1)
    inside = first.masks_BPHW.flatten(2).gather(2, (y * 64 + x)[..., None])
    assert inside.all(), "every point lies in its mask"


def test_resumed_training_ends_where_undisturbed_training_ends(shapes, tmp_path):
    whole = train(configuration(shapes, tmp_path / "whole"))

    stopped = configuration(shapes, tmp_path / "resumed")
    trainer = Trainer.start(stopped)
    stopped.out.mkdir()
    images = [image for image in read_labelled(shapes) if not image.validates]
    stage = stopped.stages[0]
    batches = TrainingBatches(
        images,
        seed=0,
        steps=range(1),
        size=stage.size,
        images_per_step=stage.images,
        masks_per_image=stage.masks,
        zoom=stage.zoom,
        area_power=stage.area_power,
        source_weights={},
    )
    trainer.train_step(batches[0], stage)
    trainer.save()
    resumed = train(stopped)

    ours, theirs = (load_sam("nano", path).state_dict() for path in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_lowers_the_loss_and_keeps_every_prompt_kind(shapes, tmp_path):
    config = configuration(shapes, tmp_path, box_share=0.4, points_share=0.4, learning_rate=1e-3)
    torch.manual_seed(0)
    trainer = Trainer.start(config)
    images = read_labelled(shapes)
    batch = TrainingBatches(
        images,
        seed=0,
        steps=range(1),
        size=64,
        images_per_step=4,
        masks_per_image=2,
        zoom=(1.0, 1.0),
        area_power=0.5,
        source_weights={},
    )[0]
    measured = [trainer.train_step(batch, config.stages[0]) for _ in range(12)]
    assert {"mask_oracle", "mask_single"} <= set().union(*measured)
    contrasts = [m["contrast"] for m in measured]
    assert np.mean(contrasts[-3:]) < np.mean(contrasts[:3]) - 0.05


def test_a_stage_may_leave_the_encoder_alone(shapes, tmp_path):
    stage = StageConfig(steps=1, size=64, images=2, masks=2, train_encoder=False)
    config = configuration(shapes, tmp_path, stages=(stage,), iou_target="image")
    before = Trainer.start(config).average.state_dict()
    after = load_sam("nano", train(config)).state_dict()
    half = {name: value.half().float() for name, value in before.items()}  # as the file keeps them
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], half[name])}
    assert moved == {"mask_decoder", "prompt_encoder"}


def test_the_click_is_the_point_farthest_from_the_edge():
    mask = np.zeros((20, 30), np.uint8)
    mask[:7, 10:17] = 1  # touches the upper border, which is an edge too
    assert centre(mask).tolist() == [13, 3]


def test_a_disc_is_scored_as_a_disc(tiny_weights):
    mask = np.zeros((1, 256, 256), np.uint8)
    cv2.circle(mask[0], (128, 128), 20, 1, -1)
    [row] = score_image(load_sam("nano", tiny_weights), np.zeros((256, 256, 3), np.uint8), mask, 128)
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


def test_evaluate_command_prints_json_last(shapes, tiny_weights, capsys):
    command = ["evaluate", "--data", str(shapes), "--checkpoint", str(tiny_weights)]
    assert main([*command, "--masks-per-image", "1", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["images"] == 20
    assert 0 <= scores["miou_1click_oracle"] <= 1
    assert set(scores["by_source"]) == {"drawn"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate"], "--data"),
        (["evaluate", "--data", "nowhere"], "nowhere"),
        (["train"], "--config"),
        (["train", "--config", "train_nano", "--set", "data=nowhere"], "nowhere"),
        (["train", "--config", "train_nano", "--set", "learning_rte=1"], "learning_rate"),
        (
            ["train", "--config", "train_nano", "--set", "learning_rate=.inf"],
            "learning_rate: should be a finite",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line

"""Training and evaluation on a handful of drawn shapes: resuming, determinism, and what a bad folder says."""

import json
import resource
import shutil
import sys
from collections import defaultdict
from dataclasses import fields, replace
from itertools import cycle, product
from unittest.mock import Mock

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools import mask as mask_utils
from safetensors.torch import save_file
from torch.utils.data import get_worker_info

from maskmill.model import load_sam
from maskmill.model.checkpoints.zoo import bundled as bundled_weights
from maskmill.model.training.interaction import Round
from maskmill.model.training.losses import mask_iou
from maskmill.model.training.simulated_prompts import Draws
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.loading import load_settings
from maskmill.pipelines.errors import ConfigError, IncompleteRun
from maskmill.pipelines.labelled.image import LabelledImage
from maskmill.pipelines.labelled.load import read_labelled
from maskmill.pipelines.training import batches as training_data
from maskmill.pipelines.training import recorder
from maskmill.pipelines.training import train as training
from maskmill.pipelines.training.batches import TrainingBatches, read_ahead
from maskmill.pipelines.training.config import StageConfig, TrainConfig
from maskmill.pipelines.training.distributed import Processes
from maskmill.pipelines.training.objective import Objective, best_meant
from maskmill.pipelines.training.recorder import Recorder, prompts_and_masks
from maskmill.pipelines.training.teacher import TeacherFeatures
from maskmill.pipelines.training.train import batches, images_digest, to_learn_from, train
from maskmill.pipelines.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


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
        "prompts": "simple",
        "contrast_weight": 1.0,
        "checkpoint_every": 1,
        "evaluate_every": 4,
        "validation_images": 1,
    }
    return TrainConfig(**values | changes)


def batches_of(images, /, *, kind=TrainingBatches, steps=range(12), teacher=None, processes=None, **changes):
    """Batches of one image as it comes, six masks each; `changes` are options of the stage or of the run.

    A stage may be smaller here than in a run, which looks at whole patches.
    """
    options = {
        "seed": 3,
        "size": 128,
        "images": 1,
        "masks": 6,
        "zoom": (1.0, 1.0),
        "area_power": 0.5,
    } | changes
    of_stage = {name: options.pop(name) for name in [*options] if name in StageConfig.model_fields}
    stage = StageConfig(steps=max(steps) + 1, size=64).model_copy(update=of_stage)
    config = TrainConfig(data="nowhere", out="nowhere", stages=(stage,), **options)
    return kind(images, config, stage, steps, teacher, processes or Processes())


def started(config):
    """The trainer as `train` starts it."""
    images = to_learn_from(config, read_labelled(config.data))
    return Trainer.start(config, images_digest=images_digest(images))


def test_a_folder_without_labels_says_what_was_expected(tmp_path):
    with pytest.raises(ConfigError, match=r"\{source\}\.parquet"):
        read_labelled(tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, r"bad\.parquet: cannot be read as Parquet"),
        (
            {"image_id": "1", "file_name": "1.png"},
            r"bad\.parquet: no column source, masks; expected image_id",
        ),
        ({"image_id": "1", "file_name": "1.png", "source": "bad", "masks": [7]}, r"\{size, counts\}"),
        ({"image_id": "1", "file_name": "1.png", "source": "bad", "masks": [{"size": [1, 1]}]}, "'counts'"),
        ({"image_id": "1", "file_name": None, "source": "bad", "masks": []}, "expected text as file_name"),
    ],
)
def test_a_table_of_something_else_is_named(row, expected, tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"no table")
    if row:
        pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(ConfigError, match=expected):
        read_labelled(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"stages": (StageConfig(steps=1, size=64, images=21),)},
            r"a step draws 21 images \(stages\), but only",
        ),
        ({"source_weights": {"drawn": 0}}, r"only 0 are for training .*\(source_weights\)"),
        ({"largest_mask": 0.001}, r"only 0 are for training .*\(largest_mask\)"),
        ({"source_weights": {"drown": 2}}, "source_weights: .* has no drown; its sources: drawn"),
        ({"device": "cuda:99"}, "device: cuda:99: PyTorch sees"),
        ({"out": __file__}, "out: .*test_train.py: no folder can be made there"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_first_step(shapes, tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        train(configuration(shapes, **{"out": tmp_path / "out", **changes}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages=[{steps: 1, size: 100}]", "stages.0.size: should be a multiple of 16, got 100"),
        ("stages=[{steps: 1, size: 64, zoom: [0, 1]}]", "stages.0.zoom.0: should be greater than 0"),
        ("stages=[{steps: 1, size: 64, zoom: [2, 1]}]", "stages.0.zoom: expected the smaller number first"),
        ("source_weights={drawn: -1}", "source_weights.drawn: should be greater than or equal to 0"),
        ("device=gpu", "device: String should match pattern"),
        ("out=s3://bucket/run", "out: expected a path on this machine, got s3://bucket/run"),
        ("data=hf://datasets/a/b", "data: expected a path on this machine"),
        ("initial=https://host/a.safetensors", "initial: expected a path on this machine"),
        ("learning_rate=.inf", "learning_rate: should be a finite number"),
        (f"seed={2**64}", "seed: should be less than"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tmp_path, override, expected):
    settings = tmp_path / "settings.yaml"
    settings.write_text("{data: a, out: b, stages: [{steps: 1, size: 64}]}")
    with pytest.raises(ConfigError, match=expected):
        load_settings(TrainConfig, settings, [override])


def test_training_without_tensorboard_says_what_to_install(shapes, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as Python marks what cannot be imported
    out = tmp_path / "out"
    assert main(["train", "--config", str(train_yaml(shapes, out, tmp_path))]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line == "maskmill: training needs TensorBoard: pip install 'matplotlib>=3.8' 'tensorboard>=2.16'"
    assert not out.exists()


def train_yaml(shapes, out, folder):
    """A file of settings for one short step."""
    path = folder / "settings.yaml"
    path.write_text(f"{{data: {shapes}, out: {out}, stages: [{{steps: 1, size: 64, images: 1}}]}}")
    return path


@pytest.fixture
def stopped(shapes, tmp_path):
    """The configuration of a run that was stopped before its first step."""
    config = configuration(shapes, tmp_path / "run")
    started(config).save()
    return config


def test_another_configuration_does_not_go_on_from_a_checkpoint(stopped):
    longer = (stopped.stages[0].model_copy(update={"steps": 9}), stopped.stages[1])
    changed = stopped.model_copy(update={"stages": longer, "learning_rate": 1e-5})
    with pytest.raises(ConfigError) as caught:
        started(changed)
    assert str(caught.value).startswith(str(stopped.out / "checkpoint.pt"))
    assert "stages.0.steps was 2, now 9; learning_rate was 0.0008, now 1e-05;" in str(caught.value)
    assert "give the old values, or another out" in str(caught.value)


def test_what_decides_no_step_may_change(stopped):
    changes = {"loader_workers": 1, "checkpoint_every": 7, "evaluate_every": 9, "validation_images": 3}
    assert started(stopped.model_copy(update=changes)).step == 0


def test_other_masks_are_another_run(stopped, tmp_path):
    """Also where they lie in the same place: a corpus that has grown since."""
    table = pq.read_table(stopped.data / "drawn.parquet")
    shutil.copytree(stopped.data, tmp_path / "moved")
    moved = stopped.model_copy(update={"data": tmp_path / "moved"})
    assert started(moved).step == 0
    pq.write_table(table.slice(0, table.num_rows - 1), tmp_path / "moved" / "drawn.parquet")
    with pytest.raises(ConfigError, match="is of another run: the images that data holds was"):
        train(moved)


@pytest.mark.parametrize("content", [b"x", b"{}", b"[]"])
def test_scores_that_are_damaged_are_made_again(shapes, tmp_path, content):
    config = configuration(shapes, tmp_path, stages=(StageConfig(steps=1, size=64, images=1, masks=1),))
    train(config)
    written = json.loads((tmp_path / "scores.json").read_bytes())
    (tmp_path / "scores.json").write_bytes(content)
    train(config)
    assert json.loads((tmp_path / "scores.json").read_bytes()) == written


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_old_one(stopped):
    before = (stopped.out / "checkpoint.pt").read_bytes()
    trainer = started(stopped)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(IncompleteRun, match=r"checkpoint\.pt: cannot be written: File too large"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in stopped.out.iterdir()] == ["checkpoint.pt"]
    assert (stopped.out / "checkpoint.pt").read_bytes() == before


def test_names_that_are_taken_in_the_output_folder(shapes, tmp_path):
    config = configuration(shapes, tmp_path, stages=(StageConfig(steps=1, size=64, images=1, masks=1),))
    (tmp_path / "tensorboard").touch()
    with pytest.raises(ConfigError, match="tensorboard: cannot be written: a file is in the place of a fo"):
        train(config)
    (tmp_path / "tensorboard").unlink()
    (tmp_path / "nano.safetensors").mkdir()
    with pytest.raises(IncompleteRun, match=r"nano\.safetensors: cannot be written: Is a directory"):
        train(config)
    (tmp_path / "nano.safetensors").rmdir()
    assert train(config) == tmp_path / "nano.safetensors"


def test_scores_of_a_run_are_of_every_source(shapes, tmp_path):
    images = [replace(image, source=source) for source in "abcd" for image in read_labelled(shapes) * 30]
    images = [replace(image, image_id=str(number)) for number, image in enumerate(images)]
    record = Recorder(configuration(shapes, tmp_path, validation_images=20), Mock(), images, Mock())
    assert len(record.validation) == 20
    assert all(image.validates for image in record.validation)
    assert {image.source for image in record.validation} == set("abcd")


def test_a_ribbon_can_be_shown(shapes):
    mask = mask_utils.encode(np.asfortranarray(np.ones((1, 4000), np.uint8)))
    ribbon = Mock(pixels=lambda: np.zeros((1, 4000, 3), np.uint8))
    image = LabelledImage("1", ribbon, "drawn", (mask,))
    assert prompts_and_masks(load_sam("nano").eval(), image, 64).shape == (1, 768, 3)


def test_half_a_torchrun_is_named(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK is not set: start them by torchrun, or unset WORLD_SIZE"):
        train(configuration(shapes, tmp_path))


@pytest.mark.parametrize("kind", ["junk", "cut short", "state dict"])
def test_a_file_that_is_no_checkpoint_is_named(stopped, kind):
    path = stopped.out / "checkpoint.pt"
    if kind == "state dict":
        torch.save({"weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(b"junk" if kind == "junk" else path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is damaged or no checkpoint .*remove it"):
        started(stopped)


def test_training_that_diverges_stops_and_leaves_the_checkpoint(shapes, stopped, monkeypatch):
    before = (stopped.out / "checkpoint.pt").read_bytes()
    start = Trainer.start

    def poisoned(*arguments):
        trainer = start(*arguments)
        with torch.no_grad():
            trainer.sam.mask_decoder.iou_token.weight.fill_(torch.nan)
        return trainer

    monkeypatch.setattr(Trainer, "start", poisoned)
    with pytest.raises(IncompleteRun, match="training diverged at step 1: loss nan, gradient norm nan"):
        train(stopped)
    assert (stopped.out / "checkpoint.pt").read_bytes() == before
    assert not list(stopped.out.glob("*.safetensors"))


def test_a_missing_picture_names_its_file(shapes, tmp_path):
    (tmp_path / "drawn.parquet").write_bytes((shapes / "drawn.parquet").read_bytes())
    with pytest.raises(ConfigError, match=r"0\.png"):
        read_labelled(tmp_path)[0].pixels()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_picture_is_one_line_whoever_reads_it(shapes, tmp_path, workers):
    (tmp_path / "drawn.parquet").write_bytes((shapes / "drawn.parquet").read_bytes())
    with pytest.raises(ConfigError) as raised:
        next(read_ahead(batches_of(read_labelled(tmp_path)), workers))
    assert ".png" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


class _WithoutRoom(TrainingBatches):
    """Of which a worker process has no room in shared memory."""

    def __getitem__(self, index):
        if get_worker_info() is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [TrainingBatches, _WithoutRoom])
def test_batches_arrive_with_and_without_shared_memory(shapes, kind):
    images = read_labelled(shapes)
    arrived = list(read_ahead(batches_of(images, kind=kind), 1))
    made = batches_of(images)
    assert len(arrived) == len(made)
    for index, batch in enumerate(arrived):
        for field in fields(batch):
            assert torch.equal(getattr(batch, field.name), getattr(made[index], field.name))


def test_the_choice_of_a_photograph_does_not_choose_its_mask(shapes):
    plain = {"masks": 1, "augment": False, "area_power": 0.0}
    data = batches_of(read_labelled(shapes)[:5], steps=range(200), **plain)
    masks = defaultdict(set)
    for step in range(len(data)):
        batch = data[step]
        masks[batch.pixels_BCHW.numpy().tobytes()].add(batch.masks_BPHW.numpy().tobytes())
    assert len(masks) == 5
    assert sorted(map(len, masks.values())) == sorted(len(image.rles) for image in data.images)


def test_more_masks_than_pycocotools_counts_at_once(shapes):
    image = read_labelled(shapes)[0]
    many = type(image)(image.image_id, image.photograph, image.source, image.rles * 150)
    assert many.areas().tolist() == image.areas().tolist() * 150


def test_a_batch_depends_on_seed_and_step_alone(shapes):
    images = read_labelled(shapes)
    options = {"seed": 1, "size": 64, "images": 3, "masks": 4, "zoom": (0.8, 2.0)}
    early = batches_of(images, steps=range(10), **options)
    late = batches_of(images, steps=range(7, 10), **options)
    again, first = late[0], early[7]
    for name in ("pixels_BCHW", "valid_BHW", "masks_BPHW", "points_BP2"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    x, y = first.points_BP2.long().unbind(-1)
    inside = first.masks_BPHW.flatten(2).gather(2, (y * 64 + x)[..., None])
    assert inside.all(), "every point lies in its mask"


def test_a_pasted_object_hides_what_is_below(shapes, teacher_file, monkeypatch):
    images = read_labelled(shapes)
    monkeypatch.setattr(training_data, "colour_jitter", lambda pixels, _: pixels)
    teacher = TeacherFeatures(teacher_file, images)
    bare_batches = list(batches_of(images, teacher=teacher))
    negatives = cycle([False, True])  # the photograph as it is, and the one that lends its objects inverted
    jitter = lambda pixels, _: 255 - pixels if next(negatives) else pixels  # noqa: E731
    monkeypatch.setattr(training_data, "colour_jitter", jitter)
    kinds = {"pasted": 0, "of the photograph": 0}
    pasted_batches = batches_of(images, teacher=teacher, paste_share=1.0)
    for bare, batch in zip(bare_batches, pasted_batches, strict=True):
        difference = batch.pixels_BCHW[0].int() - bare.pixels_BCHW[0].int()
        changed = (difference.abs() > 8).any(0).numpy()  # the soft edge of an object fades out further away
        unknown = batch.teacher_BCHW[0, 0].isnan().numpy()
        unexplained = changed.copy()
        for mask in batch.masks_BPHW[0].numpy():
            core = cv2.erode(mask, np.ones((7, 7))).astype(bool)
            pasted = changed[core if core.any() else mask > 0]
            assert pasted.all() or not (core & changed).any(), "no mask goes on below an object"
            kinds["pasted" if pasted.all() else "of the photograph"] += 1
            if pasted.all():
                unexplained &= ~cv2.dilate(mask, np.ones((9, 9))).astype(bool)
                assert unknown[core[8::16, 8::16]].all(), "the teacher did not see it"
        left = cv2.erode(unexplained.astype(np.uint8), np.ones((5, 5)))
        assert not left.any(), "each object that was pasted, but for specks, has its mask"
        assert not changed[~batch.valid_BHW[0].numpy()].any(), "nothing lies on the padding"
    assert min(kinds.values()) >= 5, kinds


def test_a_photograph_that_gets_smaller_is_averaged_in_place(tmp_path):
    """Stripes a pixel wide become grey, and an edge stays where its mask's is."""
    striped = np.full((256, 256, 3), 200, np.uint8)
    striped[:, ::2] = 0
    mask = np.zeros((256, 256), np.uint8)
    mask[64:192, 96:160] = 1
    striped[mask > 0] = 255
    photograph = Mock(pixels=lambda: striped)
    image = LabelledImage("1", photograph, "drawn", (mask_utils.encode(np.asfortranarray(mask)),))
    batch = batches_of([image], size=64, masks=1, augment=False)[0]
    pixels, drawn = batch.pixels_BCHW[0, 0].float(), batch.masks_BPHW[0, 0] > 0
    inside, outside = cv2.erode(drawn.numpy().astype(np.uint8), np.ones((3, 3))) > 0, ~drawn.numpy()
    outside = cv2.erode(outside.astype(np.uint8), np.ones((3, 3))) > 0
    assert (pixels.numpy()[inside] == 255).all()
    assert np.abs(pixels.numpy()[outside] - 100).max() <= 1, "by nearest or linear: 0 or 200"


def test_a_pasted_object_that_gets_smaller_is_averaged_too(monkeypatch):
    """Stripes of a large object, turned and shrunk, become grey; outside of it all is white."""
    striped = np.zeros((400, 400, 3), np.uint8)
    striped[:, ::2] = 200
    mask = np.zeros((400, 400), np.uint8)
    mask[50:250, 50:250] = 1
    donor = Mock(pixels=lambda: striped)
    image = LabelledImage("1", donor, "drawn", (mask_utils.encode(np.asfortranarray(mask)),))
    monkeypatch.setattr(training_data, "colour_jitter", lambda pixels, _: pixels)
    monkeypatch.setattr(training_data, "PASTED_SIZE", (0.3, 0.4))
    batches = batches_of([image])
    white, valid = np.full((128, 128, 3), 255, np.uint8), np.ones((128, 128), np.uint8)
    looked_at = 0
    for seed in range(5):
        square, [seen] = batches._pasted(white, valid, np.random.default_rng(seed))
        core = cv2.erode(seen, np.ones((9, 9)), borderValue=0) > 0
        assert np.abs(square[core].astype(int) - 100).max() <= 25, "linear alone: from 0 to 200"
        looked_at += int(core.sum())
    assert looked_at > 1000


def test_the_largest_weights_there_are(shapes):
    assert len(batches_of(read_labelled(shapes), source_weights={"drawn": 1.7e308})[0]) == 1


def test_large_scale_jitter_goes_from_a_corner_to_a_part_of_the_photograph(shapes):
    """96 × 128 pixels on a square of 128: a tenth of it is 13 × 10, stretched by 15 % at most either way."""
    small = batches_of(read_labelled(shapes), zoom=(0.1, 0.1))
    for batch in list(small)[:4]:
        assert batch.valid_BHW[0, :8, :10].all(), "at the top left"
        assert not batch.valid_BHW[0, 13:].any()
        assert not batch.valid_BHW[0, :, 16:].any()
    large = batches_of(read_labelled(shapes), zoom=(2.0, 2.0))
    assert all(batch.valid_BHW[0, 1:-1, 1:-1].all() for batch in list(large)[:4])
    mirrored = {bool(large._jitter(96, 128, np.random.default_rng(seed))[0, 0] < 0) for seed in range(20)}
    assert mirrored == {True, False}


def test_without_augmentation_the_photograph_is_as_it_is(shapes):
    images = read_labelled(shapes)[:1]
    for batch in list(batches_of(images, augment=False))[:3]:
        assert (batch.pixels_BCHW[0, :, :96].permute(1, 2, 0).numpy() == images[0].pixels()).all()
        true = images[0].masks([0, 1])
        drawn = batch.masks_BPHW[0, :2, :96].numpy()
        assert sorted(mask.sum() for mask in drawn) == sorted(mask.sum() for mask in true)


def test_processes_make_their_own_part_of_the_same_batch(shapes):
    images, options = read_labelled(shapes), {"images": 4, "size": 64}
    whole = batches_of(images, **options)[5]
    halves = [batches_of(images, **options, processes=Processes(rank, 2))[5] for rank in range(2)]
    for name in ("pixels_BCHW", "masks_BPHW", "points_BP2", "objects_BQhw"):
        parts = [getattr(half, name) for half in halves]
        assert torch.equal(torch.cat(parts), getattr(whole, name))
        assert torch.equal(torch.cat([getattr(part, name) for part in whole.split(2)]), getattr(whole, name))


def test_masks_of_nearly_the_whole_photograph_are_left_out(shapes):
    image = read_labelled(shapes)[0]
    whole, most = np.ones((96, 128), np.uint8), np.ones((96, 128), np.uint8)
    most[:10] = 0  # 86 rows of 96: 0.896 of it
    rles = tuple(mask_utils.encode(np.asfortranarray(mask)) for mask in (whole, most))
    image = replace(image, rles=(*rles, *image.rles))
    assert image.up_to(0.9).rles == image.rles[1:]
    assert image.up_to(1.0).rles == image.rles
    assert replace(image, rles=rles[:1]).up_to(0.9) is None


def test_only_training_goes_without_the_largest_masks(shapes, tmp_path, monkeypatch, caplog):
    whole = mask_utils.encode(np.ones((96, 128), np.uint8, order="F"))
    images = [replace(image, rles=(*image.rles, whole)) for image in read_labelled(shapes)]
    given = [image for image in images if not image.validates]
    images[images.index(given[0])] = replace(given[0], rles=(whole,))
    seen = {}

    def spy(module, name, at):
        function = getattr(module, name)

        def called(*arguments, **options):
            seen[name] = arguments[at]
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, called)

    spy(training, "batches", 1)
    spy(recorder, "evaluate", 1)
    monkeypatch.setattr(training, "read_labelled", lambda *_: images)
    caplog.set_level("INFO")
    train(configuration(shapes, tmp_path, stages=(StageConfig(steps=1, size=64, images=2, masks=2),)))
    assert [image.name for image in seen["batches"]] == [image.name for image in given[1:]]
    assert all(len(image.rles) == 2 for image in seen["batches"])
    assert all(whole in image.rles for image in seen["evaluate"])
    assert f"left out {len(given)} masks" in caplog.text
    assert "and 1 images" in caplog.text


def test_a_share_of_squares_has_no_colour(shapes):
    grey = [
        bool((batch.pixels_BCHW.amax(1) == batch.pixels_BCHW.amin(1)).all())
        for batch in batches_of(read_labelled(shapes), grey_share=0.5)
    ]
    assert 2 <= sum(grey) <= 10


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.0, 0, 0), (0.5, 20, 52), (1.0, 72, 72)])
def test_a_share_of_clicks_is_where_the_mask_is_deepest(shapes, share, fewest, most):
    deepest = put = 0
    for batch in batches_of(read_labelled(shapes), size=48, centre_share=share):
        columns = (batch.masks_BPHW[0].numpy(), batch.points_BP2[0].tolist(), batch.centred_BP[0].tolist())
        for mask, click, middle in zip(*columns, strict=True):
            inside, outside = np.argwhere(mask), np.argwhere(np.pad(mask, 1) == 0) - 1
            depth = ((inside[:, None] - outside[None]) ** 2).sum(2).min(1)
            (here,) = np.flatnonzero((inside == click[::-1]).all(1))
            deepest += bool(depth[here] == depth.max())
            assert depth[here] == depth.max() or not middle
            put += bool(middle)
    assert fewest <= put <= most, "of 12 squares with six masks each"
    assert put <= deepest <= put + 7, "of the clicks that may be anywhere, few are"


def test_a_click_in_the_middle_means_its_mask_and_elsewhere_any_that_holds_it(shapes):
    """A quarter of a square is asked for, and drawn is the square, which is labelled, too."""
    whole, quarter = torch.zeros(2, 16, 16)
    whole[:8, :8] = quarter[:4, :4] = 1
    batch = replace(
        batches_of(read_labelled(shapes), size=64, masks=2)[0],
        masks_BPHW=quarter.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(1, 2, -1, -1),
        points_BP2=torch.tensor([[[9.0, 9.0], [9.0, 9.0]]]),
        centred_BP=torch.tensor([[False, True]]),
        objects_BQhw=torch.stack([quarter, whole])[None],
    )
    logits = (whole - 0.5).expand(1, 2, 3, -1, -1)
    yes = torch.ones(1, 2, 3, dtype=torch.bool)
    asked = mask_iou(logits, quarter.expand_as(logits))
    target = best_meant(Round(logits, yes.float(), yes, yes[..., 0]), asked, batch)
    assert target.tolist() == [[[1.0] * 3, [0.25] * 3]]


def test_a_stage_may_hold_the_predicted_iou_against_another_mask(shapes, tmp_path):
    """The run's and the stage's: the same step, with the loss of the one that the stage says."""
    losses = {}
    for run, of_stage in product(("prompt", "point"), (None, "prompt", "point")):
        stage = StageConfig(steps=1, size=64, images=4, masks=4, iou_target=of_stage)
        clicks = {"stages": (stage,), "box_share": 0, "points_share": 0}
        trainer = Trainer.start(configuration(shapes, tmp_path, iou_target=run, **clicks))
        batch, _ = next(batches(trainer.config, read_labelled(shapes), 0))
        losses[run, of_stage] = trainer.train_step(batch, stage)["iou_loss_oracle"]
    prompt, point = losses["prompt", None], losses["point", None]
    assert prompt != point
    assert losses["prompt", "prompt"] == losses["point", "prompt"] == prompt
    assert losses["prompt", "point"] == losses["point", "point"] == point


def test_blocks_are_left_out_while_the_encoder_learns_and_at_no_other_time(shapes, tiny_weights, tmp_path):
    without = configuration(shapes, tmp_path, initial=tiny_weights, drop_path=0.0)
    some = without.model_copy(update={"drop_path": 0.9})
    sam = Trainer.start(without).sam
    batch, stage = next(batches(without, read_labelled(shapes), done=0))

    def losses(config, stage):
        _, parts = Objective(config, sam)(batch, stage, Draws(0, 1, range(len(batch))))
        return {name: value.item() for name, value in parts.items()}

    assert losses(some, stage)["contrast"] != losses(without, stage)["contrast"]
    decoder = stage.model_copy(update={"train": "decoder"})
    assert losses(some, decoder) == losses(without, decoder)


def test_training_lowers_the_loss_and_keeps_every_prompt_kind(shapes, tmp_path, monkeypatch):
    config = configuration(shapes, tmp_path, box_share=0.4, points_share=0.4, learning_rate=1e-3)
    torch.manual_seed(0)
    trainer = Trainer.start(config)
    kinds, attend = set(), trainer.sam.attend

    def watched(images, points_BPN2=None, labels=None, **boxes):
        kinds.add("box" if boxes else "point" if points_BPN2.shape[2] == 1 else "points")
        return attend(images, points_BPN2, labels, **boxes)

    monkeypatch.setattr(trainer.sam, "attend", watched)
    images = read_labelled(shapes)
    batch = batches_of(images, seed=0, size=64, images=4, masks=2)[0]
    measured = [trainer.train_step(batch, config.stages[0]) for _ in range(12)]
    assert {"mask_oracle", "mask_single"} <= set().union(*measured)
    assert kinds == {"box", "point", "points"}
    contrasts = [m["contrast"] for m in measured]
    assert np.mean(contrasts[-3:]) < np.mean(contrasts[:3]) - 0.05


def test_training_may_start_from_weights(shapes, tmp_path):
    bundled = bundled_weights("nano")
    begun = Trainer.start(configuration(shapes, tmp_path, initial=bundled))
    expected = load_sam("nano").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in begun.sam.state_dict().items())


def test_a_stage_may_leave_the_encoder_alone(shapes, tmp_path):
    stage = StageConfig(steps=1, size=64, images=2, masks=2, train="decoder")
    config = configuration(shapes, tmp_path, stages=(stage,), iou_target="point")
    before = Trainer.start(config).average.state_dict()
    after = load_sam("nano", train(config)).state_dict()
    half = {name: value.half().float() for name, value in before.items()}  # as the file keeps them
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], half[name])}
    assert moved == {"mask_decoder", "prompt_encoder"}


@pytest.fixture
def teacher_file(shapes, tmp_path):
    """Each cell's own column, row and image for features: 96 × 128 pixels are 6 × 8 cells."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    maps = {
        image.name: torch.stack([columns, rows, torch.full((6, 8), float(image.image_id))])
        for image in read_labelled(shapes)
    }
    save_file(maps, tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_a_teachers_map_goes_where_the_pixels_go(shapes, teacher_file):
    images = read_labelled(shapes)
    teacher = TeacherFeatures(teacher_file, images)
    image = next(image for image in images if image.image_id == "7")
    whole = teacher.warped(image, np.array([[1.0, 0, 0], [0, 1, 0]]), 128)
    np.testing.assert_allclose(whole[0, 2], np.arange(8), atol=1e-5)
    np.testing.assert_allclose(whole[1, :6, 3], np.arange(6), atol=1e-5)
    assert (whole[2, :6] == 7).all()
    assert np.isnan(whole[:, 6:]).all()  # below the photograph
    # Twice as large, mirrored, and the left half cut off: cells are half as far apart, in reverse order.
    mirrored = teacher.warped(image, np.array([[-2.0, 0, 2 * 127 - 128], [0, 2, 0]]), 128)
    expected = 8 - (128 + np.arange(8) * 16 + 7.5) / 32 - 0.5
    np.testing.assert_allclose(mirrored[0, 0], expected.clip(0), atol=0.05)


def test_the_encoder_learns_from_its_teacher_alone_where_a_stage_says_so(shapes, teacher_file, tmp_path):
    stage = StageConfig(steps=3, size=64, images=2, masks=2, train="encoder")
    config = configuration(shapes, tmp_path, stages=(stage,), teacher_features=teacher_file)
    start = Trainer.start(config, 3)
    before = {name: value.half().float() for name, value in start.average.state_dict().items()}
    after = load_sam("nano", train(config)).state_dict()
    assert {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])} == {
        "image_encoder"
    }
    trainer = Trainer.start(config.model_copy(update={"out": tmp_path / "other"}), 3)
    images = read_labelled(shapes)
    options = {"seed": 0, "size": 64, "images": 2, "masks": 2, "zoom": (1.0, 1.2)}
    batch = batches_of(images, teacher=TeacherFeatures(teacher_file, images), **options)[0]
    imitation = [trainer.train_step(batch, stage)["imitation"] for _ in range(10)]
    assert imitation[-1] < imitation[0]
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is of another run: teacher_features was"):
        Trainer.start(config.model_copy(update={"teacher_features": None}))


def test_a_teacher_that_does_not_know_every_image_is_refused(shapes, tmp_path):
    path = tmp_path / "teacher.safetensors"
    config = configuration(shapes, tmp_path / "out", teacher_features=path)
    with pytest.raises(ConfigError, match="not a safetensors file"):
        train(config)
    save_file({"drawn/0": torch.zeros(3, 6, 8)}, path)
    with pytest.raises(ConfigError, match=r"no map of drawn/1 \(\d+ missing\)"):
        train(config)
    save_file({image.name: torch.zeros(6, 8) for image in read_labelled(shapes)}, path)
    with pytest.raises(ConfigError, match="expected C×h×w maps of one C"):
        train(config)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate"], "--data"),
        (["evaluate", "--data", "nowhere"], "nowhere"),
        (["evaluate", "--data", "nowhere", "--model", "vit_x"], "did you mean vit_"),
        (["train"], "--config"),
        (["train", "--config", "train_nano", "--set", "data=nowhere"], "nowhere"),
        (["train", "--config", "train_nano", "--set", "learning_rte=1"], "learning_rate"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line

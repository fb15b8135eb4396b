"""What must come out the same: resumed, in parts, in two processes; a tiny network on drawn shapes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from maskmill.model.checkpoints.loading import load_sam
from maskmill.model.networks.attention import in_parts
from maskmill.pipelines.config.loading import load_settings, to_yaml
from maskmill.pipelines.errors import ConfigError
from maskmill.pipelines.labelled.load import read_labelled
from maskmill.pipelines.training.config import StageConfig, TrainConfig
from maskmill.pipelines.training.optimizers import Muon, layer_scale, make_optimizers, orthogonal
from maskmill.pipelines.training.train import batches, images_digest, to_learn_from, train
from maskmill.pipelines.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = (
    StageConfig(steps=2, size=64, images=4, masks=2, zoom=(0.8, 1.5)),
    StageConfig(steps=2, size=128, images=2, masks=2, zoom=(0.8, 1.5)),
)


def configuration(shapes, tiny_weights, out, **changes):
    """The paper's recipe, in little: five rounds of interaction, AdamW, drop path, layer-wise decay."""
    values = {
        "data": shapes,
        "out": out,
        "initial": tiny_weights,
        "stages": STAGES,
        "clicks": 2,
        "precision": "fp32",
        "loader_workers": 0,
        "warmup_steps": 1,
        "evaluate_every": 1000,
        "validation_images": 1,
        "checkpoint_every": 1000,
    }
    return TrainConfig(**values | changes)


def started(config):
    """The trainer as `train` starts it."""
    images = to_learn_from(config, read_labelled(config.data))
    return Trainer.start(config, images_digest=images_digest(images))


def kept(out):
    """Everything a checkpoint holds, by dotted name."""
    return dict(flat("", torch.load(out / "checkpoint.pt", weights_only=True)))


def flat(name, value):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from flat(f"{name}.{key}", part)
    else:
        yield name, value


def assert_same(ours, theirs):
    ours, theirs = kept(ours), kept(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[name]), name
        elif not name.startswith(".config."):
            assert value == theirs[name], name


def steps(trainer, config, count=None):
    """Train on from where the trainer is."""
    images = [image for image in read_labelled(config.data) if not image.validates]
    for number, (batch, stage) in enumerate(batches(config, images, trainer.step)):
        if number == count:
            break
        trainer.train_step(batch, stage)
    return trainer


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("accumulate=3", r"stages\.0\.images: expected a multiple of accumulate 3"),
        (
            "stages=[{steps: 1, size: 64, train: encoder}]",
            r"stages\.0\.train: the encoder alone learns from contrast_weight or teacher_features",
        ),
        ("layer_decay=0", "layer_decay: should be greater than 0"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(shapes, tiny_weights, tmp_path, override, expected):
    (tmp_path / "good.yaml").write_text(to_yaml(configuration(shapes, tiny_weights, tmp_path)))
    with pytest.raises(ConfigError, match=expected):
        load_settings(TrainConfig, tmp_path / "good.yaml", [override])


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "fp32"), ("muon", "fp32"), ("muon", "bf16")])
def test_resumed_training_keeps_every_number(shapes, tiny_weights, tmp_path, optimizer, precision):
    changes = {"optimizer": optimizer, "precision": precision}
    whole = configuration(shapes, tiny_weights, tmp_path / "whole", **changes)
    train(whole)
    halves = configuration(shapes, tiny_weights, tmp_path / "halves", **changes)
    steps(started(halves), halves, 1).save()
    torch.manual_seed(99)  # what others draw meanwhile is of no account
    steps(started(halves), halves, 2).save()
    train(halves)
    assert_same(whole.out, halves.out)

    written = EventAccumulator(str(whole.out / "tensorboard")).Reload()
    tags = written.Tags()
    assert {"train/loss", "train/learning_rate", "train/iou_last", "validation/miou_box"} <= {
        *tags["scalars"]
    }
    assert [event.step for event in written.Scalars("train/loss")] == [1, 2, 3, 4]
    picture = np.frombuffer(written.Images("prompts/0")[0].encoded_image_string, np.uint8)
    assert cv2.imdecode(picture, cv2.IMREAD_COLOR).shape == (96, 256, 3), "the photograph, twice"


def test_scores_that_a_kill_prevented_are_made_when_the_run_goes_on(
    shapes, tiny_weights, tmp_path, monkeypatch
):
    """The checkpoint comes first, so that an evaluation that fails loses no step."""
    config = configuration(shapes, tiny_weights, tmp_path / "run", evaluate_every=3, checkpoint_every=1)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maskmill.pipelines.training.recorder.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert started(config).step == 3
    for _ in range(2):  # the second time nothing is left to do
        time.sleep(1)  # TensorBoard reads files of one second in the order of 10 before 9
        train(config)
        written = EventAccumulator(str(config.out / "tensorboard")).Reload()
        assert [event.step for event in written.Scalars("validation/miou_box")] == [3, 4]
        assert json.loads((config.out / "scores.json").read_bytes())["step"] == 4
        assert torch.tensor(1e-45).mul(1) > 0, "this process computes with denormals as before"


def test_a_step_draws_from_no_random_state_of_the_process(shapes, tiny_weights, tmp_path):
    config = configuration(shapes, tiny_weights, tmp_path)
    trainer = Trainer.start(config)
    batch, stage = next(batches(config, read_labelled(shapes), 0))
    before = torch.get_rng_state()
    trainer.train_step(batch, stage)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(next(batches(config, read_labelled(shapes), 0))[0].pixels_BCHW, batch.pixels_BCHW)


@pytest.mark.parametrize(
    ("prompts", "single_mask_for_boxes"), [("interaction", False), ("interaction", True), ("simple", False)]
)
def test_parts_add_up_to_the_step_of_the_whole(
    shapes, tiny_weights, tmp_path, prompts, single_mask_for_boxes
):
    gradients = []
    for accumulate in (1, 2, 4):
        options = {"accumulate": accumulate, "prompts": prompts, "contrast_weight": 1.0, "stages": STAGES[:1]}
        options |= {"single_mask_for_boxes": True} if single_mask_for_boxes else {}
        config = configuration(shapes, tiny_weights, tmp_path / str(accumulate), **options)
        trainer = steps(Trainer.start(config), config, 1)
        gradients.append({name: p.grad for name, p in trainer.sam.named_parameters() if p.grad is not None})
    whole, *others = gradients
    assert len(whole) > 50
    for parts in others:
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(parts[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("iou_target", ["prompt", pytest.param("point", marks=pytest.mark.slow)])
def test_an_interaction_is_learnt(shapes, tiny_weights, tmp_path, iou_target):
    changes = {
        "iou_target": iou_target,
        "focal_weight": 2,
        "learning_rate": 3e-3,
        "single_mask_for_boxes": True,
    }
    stages = (STAGES[0].model_copy(update={"images": 2}),)
    config = configuration(shapes, tiny_weights, tmp_path, stages=stages, layer_decay=1, clicks=1, **changes)
    trainer = Trainer.start(config)
    batch, stage = next(batches(config, read_labelled(shapes), 0))
    measured = []
    for _ in range(12):
        measured.append(trainer.train_step(batch, stage))
        trainer.step = 1  # past the warm-up, and the same prompts each time
    for name in ("loss", "mask_first", "mask_last"):
        first, last = (np.mean([m[name] for m in some]) for some in (measured[:3], measured[-3:]))
        assert last < 0.9 * first, name


def test_blocks_learn_the_slower_the_earlier_they_are(shapes, tiny_weights, tmp_path):
    assert layer_scale("mask_decoder.iou_token.weight", 12, 0.8) == 1
    assert layer_scale("image_encoder.neck.0.weight", 12, 0.8) == 1
    assert layer_scale("image_encoder.blocks.11.attn.qkv.weight", 12, 0.8) == pytest.approx(0.8)
    assert layer_scale("image_encoder.blocks.0.attn.qkv.weight", 12, 0.8) == pytest.approx(0.8**12)
    assert layer_scale("image_encoder.patch_embed.proj.bias", 12, 0.8) == pytest.approx(0.8**13)
    assert layer_scale("image_encoder.pos_embed", 12, 0.8) == pytest.approx(0.8**13)
    # And it is what the step makes of it: AdamW's first step is the learning rate, for each number.
    config = configuration(shapes, tiny_weights, tmp_path, weight_decay=0, layer_decay=0.5, clip_norm=1e6)
    before = load_sam("nano", tiny_weights).state_dict()
    trainer = steps(Trainer.start(config), config, 1)
    after = trainer.sam.state_dict()
    for name, scale in (
        ("image_encoder.blocks.0.norm1.weight", 0.25),
        ("image_encoder.blocks.1.norm1.weight", 0.5),
        ("image_encoder.neck.1.weight", 1),
    ):
        moved = (after[name] - before[name]).abs().median().item()
        assert moved == pytest.approx(config.learning_rate * scale, rel=0.01), name


def test_every_parameter_is_in_one_group(shapes, tiny_weights, tmp_path):
    for optimizer in ("adamw", "muon"):
        trainer = Trainer.start(configuration(shapes, tiny_weights, tmp_path, optimizer=optimizer))
        found = [
            id(parameter)
            for one in make_optimizers(trainer.config, trainer.sam, trainer.auxiliary)
            for group in one.param_groups
            for parameter in group["params"]
        ]
        expected = [*trainer.sam.parameters(), *trainer.auxiliary.parameters()]
        assert sorted(found) == sorted(map(id, expected))


def test_in_bf16_attention_and_muon_are_the_ones_for_it(shapes, tiny_weights, tmp_path, monkeypatch):
    """Both would work in fp32, too, and only take longer."""
    config = configuration(shapes, tiny_weights, tmp_path, optimizer="muon", precision="bf16")
    attended, made_orthogonal = [], []

    def watched(q, k, v):
        attended.append(q.dtype)
        return in_parts(q, k, v)

    monkeypatch.setattr("maskmill.model.networks.attention.in_parts", watched)
    monkeypatch.setattr(
        "maskmill.pipelines.training.optimizers.orthogonal", lambda x: made_orthogonal.append(x.dtype) or x
    )
    trainer = steps(Trainer.start(config), config, 1)
    assert attended == [torch.bfloat16] * trainer.sam.config.depth
    assert {*made_orthogonal} == {torch.bfloat16}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no Muon to compare with")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_muon_is_torchs(precision):
    """Steps of wide, tall and square matrices, by gradients that have nothing in common; torch's are bf16."""
    noise = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=noise) for shape in ((8, 24), (24, 8), (16, 16))]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    group = {"params": ours, "lr": 0.01, "weight_decay": 0.05}
    optimizers = (
        Muon([group], precision),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=noise)
        for optimizer in optimizers:
            optimizer.step()
    for before, one, other in zip(start, ours, theirs, strict=True):
        assert (one - other).norm() < 0.04 * (other - before).norm()
        assert (other - before).norm() > 0.01


def test_an_orthogonal_matrix_keeps_the_directions():
    for shape in ((8, 24), (24, 8)):
        matrix = torch.randn(shape, generator=torch.manual_seed(1))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        found = left.T @ orthogonal(matrix) @ right.T
        assert ((found.diagonal() > 0.65) & (found.diagonal() < 1.25)).all()
        assert (found - found.diagonal().diag()).abs().max() < 1e-4
        assert values.max() > 2 * values.min()
    assert not orthogonal(torch.zeros(3, 4)).any()


def test_the_rate_warms_up_and_falls_in_steps(shapes, tiny_weights, tmp_path):
    stage = StageConfig(steps=90, size=64)
    config = configuration(
        shapes, tiny_weights, tmp_path, stages=(stage,), warmup_steps=4, learning_rate=8e-4
    )
    rates = [config.learning_rate_at(step) / 8e-4 for step in (0, 1, 3, 4, 59, 60, 86, 87, 89)]
    assert rates == pytest.approx([0.25, 0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def two_processes(arguments, log):
    """Under torchrun, from a shell of its own; fails with what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["torch.distributed.run", "--nproc-per-node=2", "--nnodes=1", f"--master-port={port}"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-m", "maskmill", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    log.write_text(done.stdout + done.stderr)
    assert done.returncode == 0, log.read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("train_part", ["all", "decoder"])
def test_two_processes_make_the_step_of_one(shapes, tiny_weights, tmp_path, train_part):
    stages = (STAGES[0].model_copy(update={"train": train_part, "steps": 3}),)
    one = configuration(shapes, tiny_weights, tmp_path / "one", stages=stages)
    train(one)
    two = one.model_copy(update={"out": tmp_path / "two", "checkpoint_every": 1})
    (tmp_path / "two.yaml").write_text(to_yaml(two))
    two_processes(["train", "--config", str(tmp_path / "two.yaml")], tmp_path / "log")
    ours, theirs = kept(one.out), kept(two.out)
    for name, value in ours.items():
        if name.startswith((".sam.", ".average.")):
            assert torch.allclose(value, theirs[name], rtol=1e-3, atol=2e-4), name
    assert len(list((two.out / "tensorboard").iterdir())) == 1, "only the first process writes"
    assert sorted(path.name for path in two.out.iterdir()) == [
        "checkpoint.pt",
        "nano.safetensors",
        "scores.json",
        "tensorboard",
    ]

    # And they go on from a checkpoint, to the very same numbers as without a stop.
    stopped = one.model_copy(update={"out": tmp_path / "stopped"})
    steps(started(stopped), stopped, 0).save()
    (tmp_path / "stopped.yaml").write_text(to_yaml(stopped))
    two_processes(["train", "--config", str(tmp_path / "stopped.yaml")], tmp_path / "log")
    assert_same(two.out, stopped.out)


@pytest.mark.slow
def test_images_that_do_not_divide_among_the_processes_are_refused(shapes, tiny_weights, tmp_path):
    stages = (STAGES[0].model_copy(update={"images": 3}),)
    odd = configuration(shapes, tiny_weights, tmp_path / "out", stages=stages)
    (tmp_path / "odd.yaml").write_text(to_yaml(odd))
    with pytest.raises(AssertionError, match="3 images per step cannot be divided among 2 processes"):
        two_processes(["train", "--config", str(tmp_path / "odd.yaml")], tmp_path / "log")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_ends_where_it_would_have(shapes, tiny_weights, tmp_path):
    stages = (STAGES[0].model_copy(update={"steps": 40}),)
    whole = configuration(shapes, tiny_weights, tmp_path / "whole", stages=stages)
    train(whole)
    killed = whole.model_copy(update={"out": tmp_path / "killed", "checkpoint_every": 1})
    (tmp_path / "killed.yaml").write_text(to_yaml(killed))
    command = [sys.executable, "-m", "maskmill", "train", "--config", str(tmp_path / "killed.yaml")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    kills = 0
    for after in (3, 11, 40):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            time.sleep(0.02)
            if (killed.out / "checkpoint.pt").exists() and kept(killed.out)[".step"] >= after and after < 40:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        said = process.communicate()[1]
    assert kills == 2
    assert re.search(r"resuming at step \d+", said)
    assert_same(whole.out, killed.out)

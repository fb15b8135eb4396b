"""Masked autoencoding: what is hidden stays hidden, the loss falls, training starts from what it gives."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from maskmill.model.config import MODELS, SamConfig
from maskmill.model.networks.image_encoder import ImageEncoderViT
from maskmill.model.networks.sam import Sam
from maskmill.model.training.initialisation import initialise
from maskmill.model.training.masked_autoencoder import MaskedAutoencoder, attend_globally, patches
from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import ConfigError, UsageError
from maskmill.pipelines.training.config import StageConfig, TrainConfig
from maskmill.pipelines.training.pretrain import Learner, PretrainConfig, Squares, pretrain
from maskmill.pipelines.training.trainer import Trainer
from tests.support.corpora import make_photos

pytestmark = pytest.mark.usefixtures("one_thread")


def configuration(data, out, **changes):
    values = {"data": data, "out": out, "steps": 2, "size": 64, "images": 2, "precision": "fp32"}
    return PretrainConfig(
        **values | {"loader_workers": 0, "warmup_steps": 1, "checkpoint_every": 1} | changes
    )


def test_a_folder_of_nothing_and_photographs_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        pretrain(configuration(tmp_path / "empty", tmp_path / "out"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no photograph")
    with pytest.raises(ConfigError, match=r"20 images in a row cannot be read, the last of them .*a\.png"):
        pretrain(configuration(tmp_path / "bad", tmp_path / "out"))
    assert main(["pretrain"]) == 2


def test_a_gpu_that_is_not_there_and_a_share_that_hides_nothing(tmp_path):
    photos = make_photos(tmp_path / "photos", 2)
    with pytest.raises(ConfigError, match="device: cuda:99: PyTorch sees"):
        pretrain(configuration(photos, tmp_path / "out", device="cuda:99"))
    for share in (0.001, 0.999):  # of 16 patches one is hidden, or all but one
        learner = Learner(configuration(photos, tmp_path / "out", hidden_share=share))
        assert math.isfinite(learner.learn(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))


def test_patches_are_cut_row_by_row():
    pixels = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    cut = patches(pixels.float(), 2)
    assert cut.shape == (2, 6, 12)
    assert cut[1, 4].tolist() == pixels[1, :, 2:4, 2:4].flatten().tolist()  # the second row's second


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    shapes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 4, "global_attn_indexes": (0, 1)}
    encoder = ImageEncoderViT(SamConfig(img_size=64, out_chans=32, **shapes))
    return MaskedAutoencoder(encoder, 4, width=32, depth=1)


def test_what_is_hidden_does_not_reach_the_encoder(learner):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[0, 5, 10]])
    changed = pixels.clone()
    changed[:, :, 16:32, :16] = 7  # patch 4: the second row's first
    first, same, other = (learner(p, visible)[1] for p in (pixels, changed, changed.mul(2)))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_with_all_patches_visible_a_block_is_the_encoders_own(learner):
    x = torch.randn(2, 4, 4, 32, generator=torch.Generator().manual_seed(1))
    block = learner.encoder.blocks[0]  # global, and its relative positions are zeros
    assert torch.allclose(attend_globally(block, x.flatten(1, 2)), block(x).flatten(1, 2), atol=1e-5)


def test_only_hidden_patches_count(learner):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    visible = torch.tensor([[0, 1, 2], [3, 7, 9]])
    loss, said = learner(pixels, visible)
    true = patches(pixels, 16)
    true = (true - true.mean(-1, keepdim=True)) / true.std(-1, keepdim=True)
    hidden = [(b, n) for b in range(2) for n in range(16) if n not in visible[b].tolist()]
    by_hand = np.mean([(said[b, n] - true[b, n]).square().mean().item() for b, n in hidden])
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def test_the_loss_falls_and_training_starts_from_what_was_learnt(photos, tmp_path):
    config = configuration(photos, tmp_path / "out", steps=30, images=4, learning_rate=2e-3)
    learner = Learner(config)
    batch = Squares([str(path) for path in sorted(photos.rglob("*.png"))], config, range(1))[0]
    losses = [learner.learn(batch) for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    weights = pretrain(configuration(photos, tmp_path / "run"))
    stages = (StageConfig(steps=1, size=64),)
    trainer = Trainer.start(TrainConfig(data=photos, out=tmp_path / "train", stages=stages, initial=weights))
    torch.manual_seed(0)
    fresh = Sam(MODELS["nano"])
    initialise(fresh)
    moved = {
        name
        for name, value in trainer.sam.state_dict().items()
        if not torch.equal(value, fresh.state_dict()[name].half().float())
    }
    assert any(name.startswith("image_encoder.blocks.7.") for name in moved)
    assert not any("rel_pos" in name or "neck" in name or "decoder" in name for name in moved)


def test_a_stopped_run_goes_on_to_the_same_weights(photos, tmp_path):
    whole = pretrain(configuration(photos, tmp_path / "whole"))
    config = configuration(photos, tmp_path / "stopped")
    config.out.mkdir()
    learner = Learner(config)
    uris = [str(path) for path in sorted(photos.rglob("*.png"))]
    learner.learn(Squares(uris, config, range(1))[0])
    learner.save()
    assert pretrain(config).read_bytes() == whole.read_bytes()
    with pytest.raises(ConfigError, match=r"pretraining\.pt is of another run: seed was 0, now 3"):
        pretrain(config.model_copy(update={"seed": 3}))
    (config.out / "pretraining.pt").write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"pretraining\.pt is damaged"):
        pretrain(config)


def test_a_photograph_that_cannot_be_read_is_passed_over(tmp_path):
    Image.new("RGB", (80, 60), (200, 10, 10)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no photograph")
    config = configuration(tmp_path, tmp_path / "out", images=6)
    squares = Squares([str(tmp_path / "bad.png"), str(tmp_path / "good.png")], config, range(1))[0]
    assert squares.shape == (6, 3, 64, 64)
    assert (squares[:, 0] == 200).all()

"""`maskmill pretrain`: the encoder learns from images without masks (`model.training.masked_autoencoder`).

The result is a file of weights like any other, in which the decoder is as training from nothing starts it:
`maskmill train --set initial=FILE` goes on from there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...model.checkpoints.loading import save_sam
from ...model.config import MODELS, THRESHOLDS
from ...model.networks.image_encoder import ImageEncoderViT
from ...model.networks.sam import Sam
from ...model.training.initialisation import initialise
from ...model.training.masked_autoencoder import MaskedAutoencoder
from ...model.training.simulated_prompts import Draws
from ..config.loading import Section
from ..config.run import IMAGE_EXTENSIONS
from ..decoding.image import MAX_PIXELS, decode_image
from ..errors import ConfigError, IncompleteRun, InputRejected
from ..inputs.listing import list_inputs
from ..inputs.reader import read_input
from ..opencv import cv2
from ..storage import atomic
from .batches import read_ahead
from .checkpoints import read_checkpoint, write_checkpoint, writing
from .config import LocalPath
from .distributed import check_device
from .optimizers import without_denormals

log = logging.getLogger("maskmill.train")

CROP_AREA = (0.2, 1.0)
"""The smallest and the largest share of an image that a square is cut from."""

TRIES = 20
"""How many images in a row may be unreadable before that counts as an error."""


class PretrainConfig(Section):
    """Everything `maskmill pretrain` can be told."""

    data: LocalPath = Field(description="Folder of images; its subfolders are read, too.")
    out: LocalPath = Field(description="Folder for the checkpoint and the weights.")
    model: Literal["nano", "vit_b", "vit_l", "vit_h"] = Field(
        default="nano", description="Size of the network."
    )
    steps: int = Field(ge=1, description="Optimiser steps.")
    size: int = Field(default=256, ge=64, multiple_of=16, description="Side of the squares, in pixels.")
    images: int = Field(default=64, ge=1, description="Images per step.")
    hidden_share: float = Field(default=0.75, gt=0, lt=1, description="Share of patches that are hidden.")
    learning_rate: float = Field(
        default=6e-4, gt=0, description="Peak, after a linear warm-up; then a cosine falls to 0."
    )
    warmup_steps: int = Field(default=100, ge=1, description="Steps of linear warm-up.")
    weight_decay: float = Field(
        default=0.05,
        ge=0,
        description="Weight decay of parameters with two or more axes, so not of biases and norms.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="bf16 runs matrix products in bfloat16."
    )
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Decides initial weights, squares and what is hidden."
    )
    loader_workers: int = Field(default=1, ge=0, description="Processes that prepare batches.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between checkpoints.")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then a cosine."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@without_denormals()
def pretrain(config: PretrainConfig) -> Path:
    """Run to the end, from the last checkpoint if there is one; returns the weights' path.

    Raises UsageError if there is no image, ConfigError if images cannot be read or the checkpoint belongs to
    another run, IncompleteRun if training diverges.
    """
    check_device(config.device)
    uris = list_inputs([config.data], IMAGE_EXTENSIONS).column("uri").to_pylist()
    with atomic.failing_as(ConfigError, config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    atomic.sweep(config.out)
    learner = Learner(config)
    learner.load()
    log.info("%s: %d images, from step %d of %d", config.model, len(uris), learner.step, config.steps)
    squares = Squares(uris, config, range(learner.step, config.steps))
    for pixels_BCHW in read_ahead(squares, config.loader_workers):
        loss = learner.learn(pixels_BCHW)
        if learner.step % 20 == 0:
            log.info("step %d loss=%.4g", learner.step, loss)
        if learner.step % config.checkpoint_every == 0 or learner.step == config.steps:
            learner.save()
    weights = config.out / f"{config.model}.safetensors"
    with writing(weights):
        save_sam(learner.sam, weights)
    return weights


@dataclass(frozen=True)
class Squares(Dataset[Tensor]):
    """The batches of these steps for a PyTorch loader, uint8 B×3×S×S: pure functions of seed and step."""

    uris: Sequence[str]
    config: PretrainConfig
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.config.seed, self.steps[index]))
        squares = [self._square(rng) for _ in range(self.config.images)]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)

    def _square(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A part of a random image, resized to the square and perhaps mirrored."""
        pixels = self._photograph(rng)
        height, width = pixels.shape[:2]
        side = math.sqrt(rng.uniform(*CROP_AREA) * height * width)
        stretch = math.exp(rng.uniform(-0.25, 0.25))
        tall, wide = (
            max(1, min(most, round(s))) for most, s in ((height, side / stretch), (width, side * stretch))
        )
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        cut = pixels[top : top + tall, left : left + wide]
        square = cv2.resize(cut, (self.config.size, self.config.size), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square, dtype=np.uint8)

    def _photograph(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """An image drawn at random; images that cannot be read are skipped."""
        for _ in range(TRIES):
            uri = self.uris[int(rng.integers(len(self.uris)))]
            try:
                return decode_image(read_input(uri), MAX_PIXELS).pixels_HW3
            except InputRejected as error:
                log.warning("%s: skipped: %s", uri, error)
        raise ConfigError(f"data: {TRIES} images in a row cannot be read, the last of them {uri}")


class Learner:
    """The state of a run, which its checkpoint keeps."""

    def __init__(self, config: PretrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        self.sam = Sam(MODELS[config.model]).to(config.device)
        self.sam.thresholds = THRESHOLDS[config.model]
        initialise(self.sam)
        encoder = cast(ImageEncoderViT, self.sam.image_encoder)
        self.model = MaskedAutoencoder(encoder, config.size // MODELS[config.model].patch_size)
        self.model.to(config.device)
        learnt = [
            p for name, p in self.model.named_parameters() if "rel_pos" not in name and "neck" not in name
        ]
        groups = [
            {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    def learn(self, pixels_BCHW: Tensor) -> float:
        """Take one step and return its loss. Raises IncompleteRun if the loss is not finite."""
        config = self.config
        patches = self.model.side**2
        generator = Draws(config.seed, self.step, range(0)).of_step
        order_BL = torch.rand(len(pixels_BCHW), patches, generator=generator).argsort(1)
        visible = min(max(1, round(patches * (1 - config.hidden_share))), patches - 1)
        visible_BV = order_BL[:, :visible].to(config.device)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        device = torch.device(config.device).type
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, _ = self.model(self.sam.normalise(pixels_BCHW), visible_BV)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not (loss.isfinite() and norm.isfinite()):
            raise IncompleteRun(
                f"diverged at step {self.step + 1}; try a lower learning_rate with another out"
            )
        self.optimizer.step()
        self.step += 1
        value: float = loss.item()
        return value

    def save(self) -> None:
        """Replace the checkpoint. Raises IncompleteRun if it cannot be written."""
        state = {
            "config": self._deciding,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(self._path, state)

    def load(self) -> None:
        """Go on from the checkpoint, if there is one. Raises ConfigError if it belongs to another run."""
        if not self._path.exists():
            return
        with read_checkpoint(self._path, torch.device(self.config.device), self._deciding) as state:
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])

    @property
    def _deciding(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude=_DECIDES_NO_STEP)

    @property
    def _path(self) -> Path:
        return self.config.out / "pretraining.pt"


_DECIDES_NO_STEP = {"data", "out", "device", "loader_workers", "checkpoint_every"}

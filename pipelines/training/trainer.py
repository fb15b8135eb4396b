"""One training step, and all that the next one depends on: the `Trainer`.

A checkpoint holds everything that decides the next step. There are no random states in it: batches and
prompts are drawn from (seed, step, place in the step) alone. So a run that is killed goes on from its last
checkpoint, and on a CPU in fp32, with as many threads, it ends at the very same weights. Weights are averaged
over time (EMA), and the average is evaluated and saved.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...model.checkpoints.loading import load_sam
from ...model.config import MODELS, THRESHOLDS
from ...model.networks.sam import Sam
from ...model.training.initialisation import initialise
from ...model.training.simulated_prompts import Draws
from ..errors import IncompleteRun
from .batches import Batch
from .checkpoints import read_checkpoint, write_checkpoint
from .config import StageConfig, TrainConfig
from .distributed import Processes
from .objective import Objective
from .optimizers import make_optimizers

log = logging.getLogger("maskmill.train")


@dataclass
class Trainer:
    """The state of a run, which a checkpoint keeps."""

    config: TrainConfig
    objective: Objective
    average: Sam
    optimizers: tuple[torch.optim.Optimizer, ...]
    processes: Processes = field(default_factory=Processes)
    images_digest: str = ""
    step: int = 0

    def __post_init__(self) -> None:
        self.sam = self.objective.sam
        self.auxiliary = self.objective.auxiliary
        self.learner: nn.Module = self.objective
        if self.processes.count > 1:
            # Which parameters a step does not use depends on the kind of its prompts.
            self.learner = DistributedDataParallel(
                self.objective, broadcast_buffers=False, find_unused_parameters=True
            )

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        teacher_channels: int = 0,
        processes: Processes | None = None,
        device: str | None = None,
        images_digest: str = "",
    ) -> Trainer:
        """Begin a run, or go on with the one whose checkpoint lies in the output folder.

        With `teacher_channels`, batches have a teacher's features of so many channels to imitate. `device`
        replaces the configured one; `images_digest` is that of the images that are learnt from.
        """
        torch.manual_seed(config.seed)
        if config.initial is None:
            sam = Sam(MODELS[config.model])
            sam.thresholds = THRESHOLDS[config.model]
            initialise(sam)
        else:
            sam = load_sam(config.model, config.initial).train()
        average = copy.deepcopy(sam)
        objective = Objective(config, sam, teacher_channels).to(device or config.device)
        optimizers = make_optimizers(config, sam, objective.auxiliary)
        trainer = cls(
            config,
            objective,
            average.to(objective.sam.device),
            optimizers,
            processes or Processes(),
            images_digest,
        )
        if trainer.checkpoint_path.exists():
            trainer.load()
        return trainer

    @property
    def checkpoint_path(self) -> Path:
        """The path of the run's only checkpoint."""
        return self.config.out / "checkpoint.pt"

    @property
    def _deciding(self) -> dict[str, Any]:
        return self.config.deciding() | {"the images that data holds": self.images_digest}

    def save(self) -> None:
        """Replace the checkpoint. Raises IncompleteRun if it cannot be written."""
        state = {
            "config": self._deciding,
            "step": self.step,
            "sam": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_checkpoint(self.checkpoint_path, state)

    def load(self) -> None:
        """Go on from the checkpoint. Raises ConfigError if it is none, or of another configuration."""
        path = self.checkpoint_path
        with read_checkpoint(path, self.sam.device, self._deciding) as state:
            self.step = state["step"]
            for name in ("sam", "average", "auxiliary"):
                getattr(self, name).load_state_dict(state[name])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        log.info("resuming at step %d from %s", self.step, path)

    def train_step(self, batch: Batch, stage: StageConfig) -> dict[str, float]:
        """Take a step from this process's share of the images; returns the mean of what all have measured.

        Raises IncompleteRun, and leaves the weights as they were, if loss or gradient is not finite.
        """
        config = self.config
        rate = config.learning_rate_at(self.step)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = rate * group["scale"]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.sam.image_encoder.requires_grad_(stage.train != "decoder")
        measured = self.processes.mean(self._backward(batch, stage))
        norm = nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], config.clip_norm)
        if not (math.isfinite(measured["loss"]) and norm.isfinite()):
            raise IncompleteRun(
                f"training diverged at step {self.step + 1}: loss {measured['loss']:g}, gradient norm "
                f"{norm.item():g}; the last checkpoint stays, try a lower learning_rate with another out"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.sam.parameters()], 1 - decay)
        return measured | {"gradient_norm": norm.item(), "learning_rate": rate}

    def _backward(self, batch: Batch, stage: StageConfig) -> dict[str, float]:
        """Compute the step's gradient, part by part; returns the mean of what the parts measured.

        Prompts depend on the step and on an image's place in it, so that a run that is resumed, or works in
        smaller parts or in more processes, draws the same ones.
        """
        config = self.config
        parts = batch.split(config.accumulate)
        size, begin = len(parts[0]), self.processes.rank * len(batch)
        sums: defaultdict[str, float] = defaultdict(float)
        for number, part in enumerate(parts, start=1):
            places = range(begin + (number - 1) * size, begin + number * size)
            draws = Draws(config.seed, self.step, places)
            together: AbstractContextManager[None] = nullcontext()
            if isinstance(self.learner, DistributedDataParallel) and number < len(parts):
                together = self.learner.no_sync()
            with together:
                with torch.autocast(self.sam.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    loss, measured = self.learner(part, stage, draws)
                (loss / len(parts)).backward()
            for name, value in {**measured, "loss": loss}.items():
                sums[name] += value.item() / len(parts)
        return dict(sums)

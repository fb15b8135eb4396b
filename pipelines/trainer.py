"""One training step, and all that the next one depends on: the `Trainer`.

A checkpoint holds everything that decides the next step, and batches depend on (seed, step) alone, so a run
that is killed goes on where its last checkpoint was. Weights are averaged over time (EMA) and the average is
what is evaluated and saved.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import load_sam
from model.config import MODELS
from model.initialise import initialise
from model.losses import FeatureContrast, FeatureImitation, best_iou, dice_loss, focal_loss, mask_iou
from model.mask_decoder import Decoded
from model.prompts import holding, noisy_boxes, points_in_and_around
from model.sam import EncodedImages, Sam
from model.tensor_file import DAMAGE
from pipelines import storage
from pipelines.errors import ConfigError, IncompleteRun
from pipelines.training_config import StageConfig, TrainConfig
from pipelines.training_data import Batch

log = logging.getLogger("maskmill.train")


@dataclass
class Trainer:
    """The state of a run: what a checkpoint keeps."""

    config: TrainConfig
    sam: Sam
    average: Sam
    auxiliary: nn.ModuleDict
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0

    @classmethod
    def start(cls, config: TrainConfig, teacher_channels: int = 0) -> Trainer:
        """A new run, or the one whose checkpoint lies in the output folder.

        With `teacher_channels`, batches bring a teacher's features of so many channels to imitate.
        """
        torch.manual_seed(config.seed)
        sam, average = (Sam(MODELS[config.model]).to(config.device) for _ in range(2))
        initialise(sam)
        if config.initial is not None:
            sam.load_state_dict(load_sam(config.model, config.initial).state_dict())
        average.load_state_dict(sam.state_dict())
        losses: dict[str, nn.Module] = {"contrast": FeatureContrast()}
        if teacher_channels:
            losses["imitation"] = FeatureImitation(sam.config.out_chans, teacher_channels)
        auxiliary = nn.ModuleDict(losses).to(config.device)
        trainer = cls(config, sam, average, auxiliary, make_optimizers(config, sam, auxiliary))
        if trainer.checkpoint_path.exists():
            trainer.load()
        return trainer

    @property
    def checkpoint_path(self) -> Path:
        """Where the run's only checkpoint lies."""
        return self.config.out / "checkpoint.pt"

    def save(self) -> None:
        """Replace the checkpoint in one step, so that a kill leaves the old one or the new one."""
        state = {
            "config": self.config.deciding(),
            "step": self.step,
            "sam": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        storage.replace(self.checkpoint_path, lambda file: torch.save(state, file))

    def load(self) -> None:
        """Go on from the checkpoint. Raises ConfigError: no checkpoint, or one of another configuration."""
        path = self.checkpoint_path
        try:
            state = torch.load(path, map_location=self.config.device, weights_only=True)
            changed = list(_differences(state["config"], self.config.deciding()))
            if changed:
                raise ConfigError(
                    f"{path} is of another run: {'; '.join(changed)}; give the old values, or another out"
                )
            self.step = state["step"]
            for name in ("sam", "average", "auxiliary"):
                getattr(self, name).load_state_dict(state[name])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (OSError, pickle.UnpicklingError, *DAMAGE) as error:
            raise ConfigError(
                f"{path} is damaged or no checkpoint of this program: {type(error).__name__}; "
                f"remove it to start anew, or give another out"
            ) from error
        log.info("resuming at step %d from %s", self.step, path)

    def train_step(self, batch: Batch, stage: StageConfig) -> dict[str, float]:
        """One optimiser step; returns what it measured.

        Raises IncompleteRun, with the weights as they were, when loss or gradient are not finite.
        """
        config = self.config
        rate = config.learning_rate_at(self.step)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = rate
        # Prompts and their kind depend on the step alone, so that a resumed run draws the same ones.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        with torch.autocast(
            torch.device(config.device).type, torch.bfloat16, enabled=config.precision == "bf16"
        ):
            loss, measured = self.loss(batch, stage, generator)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], config.clip_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise IncompleteRun(
                f"training diverged at step {self.step + 1}: loss {loss.item():g}, gradient norm "
                f"{norm.item():g}; the last checkpoint stays, try a lower learning_rate with another out"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.sam.parameters()], 1 - decay)
        return measured | {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}

    def loss(
        self, batch: Batch, stage: StageConfig, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """What one batch costs: masks, predicted IoU, and the encoder's auxiliary loss."""
        sam, config = self.sam, self.config
        pixels = sam.normalise(batch.pixels_BCHW) * batch.valid_BHW[:, None].to(config.device)
        sam.image_encoder.requires_grad_(stage.train != "decoder")
        images = sam.encode_padded(pixels)
        measured: dict[str, Tensor] = {}
        total = torch.zeros((), device=config.device)
        if stage.train != "decoder":
            total = total + self._auxiliary_loss(images.embedding_BCHW, batch, measured)
        if stage.train != "encoder":
            total = total + self._mask_loss(images, batch, stage, generator, measured)
        return total, {name: value.item() for name, value in measured.items()}

    def _auxiliary_loss(self, embedding_BCHW: Tensor, batch: Batch, measured: dict[str, Tensor]) -> Tensor:
        """What the encoder's features cost, with no decoder in between."""
        config = self.config
        cells = nn.functional.avg_pool2d(
            batch.masks_BPHW.to(config.device).float(), self.sam.config.patch_size
        )
        relative = (batch.points_BP2.to(config.device) + 0.5) / batch.pixels_BCHW.shape[-1]
        measured["contrast"] = self.auxiliary["contrast"](embedding_BCHW, relative, cells)
        total: Tensor = config.contrast_weight * measured["contrast"]
        if "imitation" in self.auxiliary:
            teacher = batch.teacher_BCHW.to(config.device)
            measured["imitation"] = self.auxiliary["imitation"](embedding_BCHW, teacher)
            total = total + config.teacher_weight * measured["imitation"]
        return total

    def _prompted(
        self, images: EncodedImages, batch: Batch, generator: torch.Generator
    ) -> tuple[Decoded, list[int]]:
        """The decoder's answers to one kind of prompt for each mask, and the mask tokens to train."""
        sam, config = self.sam, self.config
        to_input = sam.config.img_size / batch.pixels_BCHW.shape[-1]  # prompts are in pixels of the input
        kind = torch.rand((), generator=generator).item()
        if kind < config.box_share:
            boxes = noisy_boxes(batch.masks_BPHW, generator).to(config.device)
            return sam.attend(images, boxes_BP4=boxes * to_input), [0]
        if kind < config.box_share + config.points_share:
            points, labels = points_in_and_around(batch.masks_BPHW, generator)
            tokens = [0]
        else:
            points = batch.points_BP2[:, :, None]
            labels = torch.ones(points.shape[:3], dtype=torch.long)
            tokens = [1, 2, 3]
        points, labels = points.to(config.device), labels.to(config.device)
        return sam.attend(images, (points + 0.5) * to_input - 0.5, labels), tokens

    def _mask_loss(
        self,
        images: EncodedImages,
        batch: Batch,
        stage: StageConfig,
        generator: torch.Generator,
        measured: dict[str, Tensor],
    ) -> Tensor:
        """What the drawn masks and their predicted IoU cost; the best mask of each prompt is trained."""
        sam, config = self.sam, self.config
        decoded, tokens = self._prompted(images, batch, generator)
        prompts = decoded.iou_BPM[..., 0].numel()
        prompt_K = torch.arange(prompts, device=config.device).repeat_interleave(len(tokens))
        token_K = torch.tensor(tokens, device=config.device).repeat(prompts)
        logits = sam.draw(decoded, prompt_K, token_K).float().unflatten(0, (prompts, len(tokens)))

        masks_BPHW = batch.masks_BPHW.to(config.device)
        cell = masks_BPHW.shape[-1] // logits.shape[-1]
        shares = nn.functional.avg_pool2d(masks_BPHW.flatten(0, 1)[:, None].float(), cell)
        targets = shares.expand_as(logits)
        weight = config.focal_weight if stage.focal_weight is None else stage.focal_weight
        mask_losses = weight * focal_loss(logits, targets) + dice_loss(logits, targets)
        iou = iou_target = mask_iou(logits.detach(), targets)
        if config.iou_target == "point" and len(tokens) > 1:
            objects_BQhw = batch.objects_BQhw.to(config.device).float()
            holds_BPQ = holding(objects_BQhw, batch.points_BP2.to(config.device) // cell)
            drawn_BKhw = logits.detach().flatten(0, 1).unflatten(0, (len(objects_BQhw), -1))
            best_BK = best_iou(drawn_BKhw, objects_BQhw, holds_BPQ.repeat_interleave(len(tokens), dim=1))
            iou_target = best_BK.reshape(iou.shape).maximum(iou)
        iou_loss = (decoded.iou_BPM.flatten(0, 1)[:, tokens].float() - iou_target).square().mean()
        mask_loss = mask_losses.min(1).values.mean()

        name = "oracle" if len(tokens) > 1 else "single"
        measured[f"mask_{name}"] = mask_loss
        measured[f"iou_{name}"] = iou.max(1).values.mean()
        measured["iou_loss"] = iou_loss
        return mask_loss + config.iou_weight * iou_loss


def make_optimizers(config: TrainConfig, sam: Sam, auxiliary: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for everything, or Muon for the matrices of the transformers and AdamW for the rest."""
    rest = [*sam.parameters(), *auxiliary.parameters()]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; use adamw"
            )
        transformers = nn.ModuleList(
            [sam.image_encoder.get_submodule("blocks"), sam.mask_decoder.transformer]
        )
        matrices = [module.weight for module in transformers.modules() if isinstance(module, nn.Linear)]
        taken = {id(matrix) for matrix in matrices}
        rest = [parameter for parameter in rest if id(parameter) not in taken]
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True))
    return tuple(optimizers)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """`a.b was 1, now 2` for every value that differs between two trees of JSON."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key} was {json.dumps(old)}, now {json.dumps(new)}"

"""`maskmill train`: teach the promptable model from labelled masks (paper, section 3 and appendix A).

Each step encodes a few photographs once and asks about several masks of each. A step's prompts are of one
kind: a point in the mask (three masks drawn, the best one trained), or a box, or several points (the
single-mask token). Stages run one after another, small squares first: a small model learns objects sooner
from 256-pixel squares and needs only a short time at full size afterwards.

A checkpoint holds everything that the next step depends on, and batches depend on (seed, step) alone, so a
run that is killed goes on where its last checkpoint was. Weights are averaged over time (EMA) and the
average is what is evaluated and saved.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from model.checkpoint import load_sam, save_sam
from model.config import MODELS
from model.initialise import initialise
from model.losses import FeatureContrast, best_iou, dice_loss, focal_loss, mask_iou
from model.prompts import noisy_boxes, points_in_and_around
from model.sam import Sam
from model.tensor_file import DAMAGE
from pipelines import storage
from pipelines.errors import ConfigError, IncompleteRun
from pipelines.evaluate import evaluate
from pipelines.training_config import StageConfig, TrainConfig
from pipelines.training_data import Batch, LabelledImage, TrainingBatches, read_labelled

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("maskmill.train")


@dataclass
class Trainer:
    """The state of a run: what a checkpoint keeps."""

    config: TrainConfig
    sam: Sam
    average: Sam
    contrast: FeatureContrast
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0

    @classmethod
    def start(cls, config: TrainConfig) -> Trainer:
        """A new run, or the one whose checkpoint lies in the output folder."""
        torch.manual_seed(config.seed)
        sam, average = (Sam(MODELS[config.model]).to(config.device) for _ in range(2))
        initialise(sam)
        if config.initial is not None:
            sam.load_state_dict(load_sam(config.model, config.initial).state_dict())
        average.load_state_dict(sam.state_dict())
        contrast = FeatureContrast().to(config.device)
        trainer = cls(config, sam, average, contrast, make_optimizers(config, sam, contrast))
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
            "contrast": self.contrast.state_dict(),
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
            for name in ("sam", "average", "contrast"):
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
        size = batch.pixels_BCHW.shape[-1]
        masks_BPHW = batch.masks_BPHW.to(config.device)
        pixels = sam.normalise(batch.pixels_BCHW) * batch.valid_BHW[:, None].to(config.device)
        sam.image_encoder.requires_grad_(stage.train_encoder)
        images = sam.encode_padded(pixels)

        kind = torch.rand((), generator=generator).item()
        to_input = sam.config.img_size / size  # prompts are given in pixels of the full-size input
        if kind < config.box_share:
            boxes = noisy_boxes(masks_BPHW, generator).to(config.device)
            decoded = sam.attend(images, boxes_BP4=boxes * to_input)
            tokens = [0]
        elif kind < config.box_share + config.points_share:
            points, labels = points_in_and_around(masks_BPHW, generator)
            points, labels = points.to(config.device), labels.to(config.device)
            decoded = sam.attend(images, (points + 0.5) * to_input - 0.5, labels)
            tokens = [0]
        else:
            points = batch.points_BP2.to(config.device)[:, :, None]
            labels = torch.ones(points.shape[:3], dtype=torch.long, device=config.device)
            decoded = sam.attend(images, (points + 0.5) * to_input - 0.5, labels)
            tokens = [1, 2, 3]

        prompts = decoded.iou_BPM[..., 0].numel()
        prompt_K = torch.arange(prompts, device=config.device).repeat_interleave(len(tokens))
        token_K = torch.tensor(tokens, device=config.device).repeat(prompts)
        logits = sam.draw(decoded, prompt_K, token_K).float().unflatten(0, (prompts, len(tokens)))

        shares = nn.functional.avg_pool2d(masks_BPHW.flatten(0, 1)[:, None].float(), size // logits.shape[-1])
        targets = shares.expand_as(logits)
        weight = config.focal_weight
        if self.step < config.focal_warmup_steps:
            weight = 1 + (weight - 1) * self.step / config.focal_warmup_steps
        mask_losses = weight * focal_loss(logits, targets) + dice_loss(logits, targets)
        iou = iou_target = mask_iou(logits.detach(), targets)
        if config.iou_target == "image":
            per_image = (masks_BPHW.shape[0], -1)
            drawn_BKHW = logits.detach().flatten(0, 1).unflatten(0, per_image)
            iou_target = best_iou(drawn_BKHW, shares[:, 0].unflatten(0, per_image)).reshape(iou.shape)
        iou_loss = (decoded.iou_BPM.flatten(0, 1)[:, tokens].float() - iou_target).square().mean()
        mask_loss = mask_losses.min(1).values.mean()

        cells = nn.functional.avg_pool2d(masks_BPHW.float(), sam.config.patch_size)
        relative = (batch.points_BP2.to(config.device) + 0.5) / size
        contrast = self.contrast(images.embedding_BCHW, relative, cells)
        total = mask_loss + config.iou_weight * iou_loss + config.contrast_weight * contrast
        name = "oracle" if len(tokens) > 1 else "single"
        return total, {
            f"mask_{name}": mask_loss.item(),
            f"iou_{name}": iou.max(1).values.mean().item(),
            "iou_loss": iou_loss.item(),
            "contrast": contrast.item(),
        }


def make_optimizers(
    config: TrainConfig, sam: Sam, contrast: FeatureContrast
) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for everything, or Muon for the matrices of the transformers and AdamW for the rest."""
    rest = [*sam.parameters(), *contrast.parameters()]
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


def train(config: TrainConfig) -> Path:
    """Run the schedule to its end, from the last checkpoint if there is one; returns the weights' path.

    Raises ConfigError, before the first step, for what cannot be trained; IncompleteRun when it diverges.
    """
    open_writer = _tensorboard()
    torch.set_flush_denormal(True)  # AdamW's moments of what is rarely used decay into slow denormals
    images = read_labelled(config.data)
    _check(config, images)
    training = [image for image in images if not image.validates]
    validation = [image for image in images if image.validates][: config.validation_images]
    trainer = Trainer.start(config)
    log.info(
        "%s: %.2f M parameters, %d training images, %d for validation",
        config.model,
        sum(p.numel() for p in trainer.sam.parameters()) / 1e6,
        len(training),
        len(validation),
    )
    _make_folder(config.out)
    with open_writer(str(config.out / "tensorboard"), purge_step=trainer.step) as writer:
        for batch, stage in batches(config, training, trainer.step):
            started = time.monotonic()
            measured = trainer.train_step(batch, stage)
            measured["step_seconds"] = time.monotonic() - started
            for name, value in measured.items():
                writer.add_scalar(f"train/{name}", value, trainer.step)
            if trainer.step % 20 == 0:
                log.info("step %d %s", trainer.step, " ".join(f"{k}={v:.4g}" for k, v in measured.items()))
            last = trainer.step == config.total_steps
            if trainer.step % config.checkpoint_every == 0 or last:
                trainer.save()
            if trainer.step % config.evaluate_every == 0 or last:
                scores = evaluate(trainer.average.eval(), validation, size=stage.size).scores
                log.info("step %d validation %s", trainer.step, json.dumps(scores))
                for name, value in scores.items():
                    writer.add_scalar(f"validation/{name}", value, trainer.step)
    weights = config.out / f"{config.model}.safetensors"
    save_sam(trainer.average, weights)
    return weights


def _tensorboard() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("training needs TensorBoard: pip install 'maskmill[train]'") from None
    return SummaryWriter


def _check(config: TrainConfig, images: Sequence[LabelledImage]) -> None:
    """Raise ConfigError where the configuration asks for what the data or the machine do not have."""
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device}: PyTorch sees {torch.cuda.device_count()} GPUs here")
    sources = sorted({image.source for image in images})
    unknown = sorted(set(config.source_weights) - set(sources))
    if unknown:
        raise ConfigError(
            f"source_weights: {config.data} has no {', '.join(unknown)}; its sources: {', '.join(sources)}"
        )
    drawn = [i for i in images if not i.validates and config.source_weights.get(i.source, 1) > 0]
    needed = max(stage.images for stage in config.stages)
    if len(drawn) < needed:
        raise ConfigError(
            f"{config.data}: a step draws {needed} images (stages), but only {len(drawn)} are for training "
            f"and have a weight above 0 (source_weights)"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder}: no folder can be made there: {error.strerror}") from error
    storage.sweep(folder)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """`a.b was 1, now 2` for every value that differs between two trees of JSON."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key} was {json.dumps(old)}, now {json.dumps(new)}"


def batches(
    config: TrainConfig, images: list[LabelledImage], done: int
) -> Iterator[tuple[Batch, StageConfig]]:
    """The batches still to come after `done` steps, each with its stage."""
    begin = 0
    for stage in config.stages:
        steps = range(max(begin, done), begin + stage.steps)
        begin += stage.steps
        if not steps:
            continue
        dataset = TrainingBatches(
            images,
            seed=config.seed,
            steps=steps,
            size=stage.size,
            images_per_step=stage.images,
            masks_per_image=stage.masks,
            zoom=stage.zoom,
            area_power=stage.area_power,
            source_weights=config.source_weights,
        )
        loader: DataLoader[Batch] = DataLoader(dataset, batch_size=None, num_workers=config.loader_workers)
        for batch in loader:
            yield batch, stage

"""`maskmill train`: teach the promptable model from labelled masks (paper, section 3 and appendix A).

Each step encodes a few photographs once and asks about several masks of each. A step's prompts are of one
kind: a point in the mask (three masks drawn, the best one trained), or a box, or several points (the
single-mask token). Stages run one after another, small squares first: a small model learns objects sooner
from 256-pixel squares and needs only a short time at full size afterwards.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from model.checkpoint import save_sam
from pipelines import storage
from pipelines.errors import ConfigError
from pipelines.evaluate import evaluate
from pipelines.labelled import LabelledImage, read_labelled
from pipelines.trainer import Trainer
from pipelines.training_config import StageConfig, TrainConfig
from pipelines.training_data import Batch, TeacherFeatures, TrainingBatches

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("maskmill.train")


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
    teacher = None
    if config.teacher_features is not None:
        teacher = TeacherFeatures(config.teacher_features, training)
    trainer = Trainer.start(config, teacher.channels if teacher else 0)
    log.info(
        "%s: %.2f M parameters, %d training images, %d for validation",
        config.model,
        sum(p.numel() for p in trainer.sam.parameters()) / 1e6,
        len(training),
        len(validation),
    )
    _make_folder(config.out)
    with open_writer(str(config.out / "tensorboard"), purge_step=trainer.step) as writer:
        for batch, stage in batches(config, training, trainer.step, teacher):
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


def batches(
    config: TrainConfig, images: list[LabelledImage], done: int, teacher: TeacherFeatures | None = None
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
            paste_share=config.paste_share,
            grey_share=config.grey_share,
            teacher=teacher,
        )
        loader: DataLoader[Batch] = DataLoader(dataset, batch_size=None, num_workers=config.loader_workers)
        for batch in loader:
            yield batch, stage

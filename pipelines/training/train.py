"""`maskmill train`: teach the promptable model from labelled masks (paper, section 3 and appendix A).

Each step encodes a few images once and asks about several masks of each
(`pipelines.training.objective`). Stages run one after another, small squares first: a small model learns
objects sooner from 256-pixel squares and needs only a short time at full size afterwards.

Several processes, started by `torchrun`, share each step's images; the first of them writes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ...model.checkpoints.loading import save_sam
from ..errors import ConfigError
from ..extras import pip_install
from ..labelled.image import LabelledImage
from ..labelled.load import read_labelled
from ..storage import atomic
from .batches import Batch, TrainingBatches, read_ahead
from .checkpoints import writing
from .config import StageConfig, TrainConfig
from .distributed import Processes, joined
from .optimizers import without_denormals
from .recorder import Recorder
from .teacher import TeacherFeatures
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("maskmill.train")


@without_denormals()
def train(config: TrainConfig) -> Path:
    """Run the schedule to its end, from the last checkpoint if there is one; returns the weights' path.

    Raises ConfigError, before the first step, if it cannot be trained; IncompleteRun if it diverges.
    """
    open_writer = _tensorboard()
    images = read_labelled(config.data, config.photographs, config.moved)
    with joined(config.device) as (processes, device):
        if not processes.first:
            log.setLevel(logging.WARNING)
        training = to_learn_from(config, images)
        _check(config, images, training, processes)
        teacher = None
        if config.teacher_features is not None:
            teacher = TeacherFeatures(config.teacher_features, training)
        if processes.first:
            _make_folder(config.out)
        processes.wait()
        channels = teacher.channels if teacher else 0
        trainer = Trainer.start(config, channels, processes, device, images_digest(training))
        log.info(
            "%s: %.2f M parameters, %d training images, %d for validation, process %d of %d",
            config.model,
            sum(p.numel() for p in trainer.sam.parameters()) / 1e6,
            len(training),
            sum(image.validates for image in images),
            processes.rank + 1,
            processes.count,
        )
        with ExitStack() as opened:
            record = None
            if processes.first:
                logs = config.out / "tensorboard"
                with atomic.failing_as(ConfigError, logs):
                    writer = open_writer(str(logs), purge_step=trainer.step + 1)
                record = Recorder(config, trainer, images, opened.enter_context(writer))
                record.go_on()
            for batch, stage in batches(config, training, trainer.step, teacher, processes):
                started = time.monotonic()
                measured = trainer.train_step(batch, stage)
                if record is not None:
                    record.step(measured | {"step_seconds": time.monotonic() - started}, stage)
        weights = config.out / f"{config.model}.safetensors"
        if processes.first:
            with writing(weights):
                save_sam(trainer.average, weights)
        processes.wait()
    return weights


def _tensorboard() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(f"training needs TensorBoard: {pip_install('train')}") from None
    return SummaryWriter


def to_learn_from(config: TrainConfig, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """The images to learn from, without masks that are too large."""
    given = [image for image in images if not image.validates]
    training = [kept for image in given if (kept := image.up_to(config.largest_mask)) is not None]
    if left_out := sum(len(image.rles) for image in given) - sum(len(image.rles) for image in training):
        log.info(
            "left out %d masks that cover more than %g of their image (largest_mask) and %d images that "
            "have no other mask",
            left_out,
            config.largest_mask,
            len(given) - len(training),
        )
    return training


def images_digest(images: Sequence[LabelledImage]) -> str:
    """A digest of the images' names, their order and their masks."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.name}\n{image.rles}\n".encode())
    return digest.hexdigest()[:16]


def _check(
    config: TrainConfig,
    images: Sequence[LabelledImage],
    training: Sequence[LabelledImage],
    processes: Processes,
) -> None:
    """Raise ConfigError if the configuration asks for what the data do not have."""
    parts = processes.count * config.accumulate
    if odd := [stage.images for stage in config.stages if stage.images % parts]:
        raise ConfigError(
            f"stages: {odd[0]} images per step cannot be divided among {processes.count} processes"
            f" of {config.accumulate} parts each (accumulate)"
        )
    sources = sorted({image.source for image in images})
    unknown = sorted(set(config.source_weights) - set(sources))
    if unknown:
        raise ConfigError(
            f"source_weights: {config.data} has no {', '.join(unknown)}; its sources: {', '.join(sources)}"
        )
    drawn = [image for image in training if config.source_weights.get(image.source, 1) > 0]
    needed = max(stage.images for stage in config.stages)
    if len(drawn) < needed:
        raise ConfigError(
            f"{config.data}: a step draws {needed} images (stages), but only {len(drawn)} are for training "
            f"and have a weight above 0 (source_weights) and a mask that is not too large (largest_mask)"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder}: no folder can be made there: {error.strerror}") from error
    atomic.sweep(folder)


def batches(
    config: TrainConfig,
    images: list[LabelledImage],
    done: int,
    teacher: TeacherFeatures | None = None,
    processes: Processes | None = None,
) -> Iterator[tuple[Batch, StageConfig]]:
    """The batches still to come after `done` steps, each with its stage; of each this process's share."""
    processes = processes or Processes()
    begin = 0
    for stage in config.stages:
        steps = range(max(begin, done), begin + stage.steps)
        begin += stage.steps
        if not steps:
            continue
        dataset = TrainingBatches(images, config, stage, steps, teacher, processes)
        for batch in read_ahead(dataset, config.loader_workers):
            yield batch, stage

"""`maskmill train`: teach the promptable model from labelled masks (paper, section 3 and appendix A).

Each step encodes a few photographs once and asks about several masks of each (`training.objective`).
Stages run one after another, small squares first: a small model learns objects sooner from 256-pixel squares
and needs only a short time at full size afterwards.

Several processes, started by `torchrun`, share each step's photographs; the first of them writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ...model.checkpoints.loading import save_sam
from ..errors import ConfigError
from ..evaluation.interactive import evaluate
from ..labelled.load import LabelledImage, read_labelled
from ..storage import atomic
from ..storage.json_files import write_json
from .batches import Batch, TeacherFeatures, TrainingBatches, read_ahead
from .checkpoints import writing
from .config import StageConfig, TrainConfig
from .distributed import Processes, joined
from .optimizers import without_denormals
from .recorder import prompts_and_masks
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("maskmill.train")

PICTURES = 4
"""Validation images that TensorBoard shows."""


@without_denormals()
def train(config: TrainConfig) -> Path:
    """Run the schedule to its end, from the last checkpoint if there is one; returns the weights' path.

    Raises ConfigError, before the first step, for what cannot be trained; IncompleteRun when it diverges.
    """
    open_writer = _tensorboard()
    images = read_labelled(config.data, config.photographs)
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
                record = _Record(config, trainer, images, opened.enter_context(writer))
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


class _Record:
    """What the first process leaves of a run: log, TensorBoard, checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        images: Sequence[LabelledImage],
        writer: SummaryWriter,
    ) -> None:
        self.config, self.trainer, self.writer = config, trainer, writer
        validation = [image for image in images if image.validates]
        # in the order of their hashes, which mixes the sources
        self.validation = sorted(validation, key=lambda image: image.digest)[: config.validation_images]
        self.shown = self.validation or images
        self.scores = config.out / "scores.json"

    def go_on(self) -> None:
        """Score the step that the run goes on from, if a kill came between its checkpoint and its scores."""
        step = self.trainer.step
        if not step:
            self.scores.unlink(missing_ok=True)
        elif self._scored() != step:
            self._score(self.config.stage_of(step))

    def _scored(self) -> int | None:
        """The step that the scores there are of, if there are any that can be read."""
        try:
            return int(json.loads(self.scores.read_bytes())["step"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def step(self, measured: Mapping[str, float], stage: StageConfig) -> None:
        """Write what was measured, and at its times a checkpoint, the validation scores and pictures."""
        config, trainer = self.config, self.trainer
        self._scalars("train", measured)
        if trainer.step % 20 == 0:
            log.info("step %d %s", trainer.step, " ".join(f"{k}={v:.4g}" for k, v in measured.items()))
        last = trainer.step == config.total_steps
        if trainer.step % config.checkpoint_every == 0 or last:
            trainer.save()
        self._score(stage)

    def _score(self, stage: StageConfig) -> None:
        """The validation scores and pictures, where the step is one that has them."""
        config, trainer = self.config, self.trainer
        if trainer.step % config.evaluate_every and trainer.step != config.total_steps:
            return
        model = trainer.average.eval()
        scores = evaluate(model, self.validation, size=stage.size).scores
        log.info("step %d validation %s", trainer.step, json.dumps(scores))
        self._scalars("validation", scores)
        for number, image in enumerate(self.shown[:PICTURES]):
            picture_HW3 = prompts_and_masks(model, image, stage.size)
            self.writer.add_image(f"prompts/{number}", picture_HW3, trainer.step, dataformats="HWC")
        with writing(self.scores):
            found = {"step": trainer.step, "scores": scores}
            atomic.replace(self.scores, lambda file: write_json(file, found))

    def _scalars(self, group: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, self.trainer.step)


def _tensorboard() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("training needs TensorBoard: pip install 'maskmill[train]'") from None
    return SummaryWriter


def to_learn_from(config: TrainConfig, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """The images that are for training, without masks that are too large."""
    given = [image for image in images if not image.validates]
    training = [kept for image in given if (kept := image.up_to(config.largest_mask)) is not None]
    if left_out := sum(len(image.rles) for image in given) - sum(len(image.rles) for image in training):
        log.info(
            "%d masks left out that cover more than %g of their photograph (largest_mask), and %d "
            "photographs that have no other",
            left_out,
            config.largest_mask,
            len(given) - len(training),
        )
    return training


def images_digest(images: Sequence[LabelledImage]) -> str:
    """Of which images there are, in which order, and their masks."""
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
    """Raise ConfigError where the configuration asks for what the data do not have."""
    parts = processes.count * config.accumulate
    if odd := [stage.images for stage in config.stages if stage.images % parts]:
        raise ConfigError(
            f"stages: {odd[0]} images a step do not divide among {processes.count} processes"
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
    """The batches still to come after `done` steps, this process's share of each, with its stage."""
    processes = processes or Processes()
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
            augment=stage.augment,
            source_weights=config.source_weights,
            paste_share=config.paste_share,
            grey_share=config.grey_share,
            centre_share=config.centre_share,
            teacher=teacher,
            rank=processes.rank,
            processes=processes.count,
        )
        for batch in read_ahead(dataset, config.loader_workers):
            yield batch, stage

"""What training records while it runs: its log, TensorBoard's curves and images, its scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ...model.networks.sam import Sam
from ..evaluation.click_points import centre
from ..evaluation.interactive import encode_square, evaluate, to_photograph
from ..labelled.image import LabelledImage
from ..opencv import cv2
from ..storage import atomic
from ..storage.json_files import as_bytes
from .checkpoints import writing
from .config import StageConfig, TrainConfig
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("maskmill.train")

PICTURES = 4
"""The number of validation images that TensorBoard shows."""

MEANT, GIVEN, CLICK = (40, 220, 90), (250, 90, 40), (255, 235, 60)
LONGEST_SIDE = 384


class Recorder:
    """Writes the records of a run, in its first process: log, TensorBoard, checkpoints."""

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
        """Score the step from which the run goes on, if a kill came between its checkpoint and its scores."""
        step = self.trainer.step
        if not step:
            self.scores.unlink(missing_ok=True)
        elif self._scored() != step:
            self._score(self.config.stage_of(step))

    def _scored(self) -> int | None:
        """The step that was scored last, if its scores can be read."""
        try:
            return int(json.loads(self.scores.read_bytes())["step"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def step(self, measured: Mapping[str, float], stage: StageConfig) -> None:
        """Record what was measured; also, at their times, a checkpoint, validation scores and images."""
        config, trainer = self.config, self.trainer
        self._scalars("train", measured)
        if trainer.step % 20 == 0:
            log.info("step %d %s", trainer.step, " ".join(f"{k}={v:.4g}" for k, v in measured.items()))
        last = trainer.step == config.total_steps
        if trainer.step % config.checkpoint_every == 0 or last:
            trainer.save()
        self._score(stage)

    def _score(self, stage: StageConfig) -> None:
        """Record validation scores and images, if they are due at this step."""
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
            atomic.replace(self.scores, as_bytes({"step": trainer.step, "scores": scores}))

    def _scalars(self, group: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, self.trainer.step)


@torch.inference_mode()
def prompts_and_masks(sam: Sam, image: LabelledImage, size: int) -> NDArray[np.uint8]:
    """The image twice, side by side, RGB: with its largest mask, and with the most confident answer.

    The prompt is a click in the mask's middle, shown in both. The image is encoded at `size` pixels.
    """
    pixels_HW3 = image.pixels()
    mask_HW = image.masks([int(image.areas().argmax())])[0]
    height, width = mask_HW.shape
    encoded, shape = encode_square(sam, pixels_HW3, size)
    click = centre(mask_HW)
    place = (torch.from_numpy(click) + 0.5) * sam.config.img_size / max(height, width) - 0.5
    points = place.to(sam.device, torch.float32).view(1, 1, 1, 2)
    answer = sam.attend(encoded, points, torch.ones(1, 1, 1, dtype=torch.long, device=sam.device))
    best = 1 + int(answer.iou_BPM[0, 0, 1:].argmax())
    logits = sam.draw(answer, torch.tensor([0]), torch.tensor([best]))
    given_HW = to_photograph(logits, shape, (height, width))[0].numpy()
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    sides = [_drawn(pixels_HW3, mask_HW > 0, MEANT, click), _drawn(pixels_HW3, given_HW, GIVEN, click)]
    shown = max(1, round(2 * width * scale)), max(1, round(height * scale))
    both = cv2.resize(np.hstack(sides), shown, interpolation=cv2.INTER_AREA)
    return np.asarray(both, np.uint8)


def _drawn(
    pixels_HW3: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_],
    colour: tuple[int, int, int],
    click: NDArray[np.float64],
) -> NDArray[np.uint8]:
    picture = pixels_HW3.copy()
    picture[mask_HW] = (picture[mask_HW] * 0.5 + np.array(colour) * 0.5).astype(np.uint8)
    radius = max(3, max(mask_HW.shape) // 80)
    x, y = (round(float(value)) for value in click)
    cv2.circle(picture, (x, y), radius, (0, 0, 0), -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), max(2, radius - 2), CLICK, -1, cv2.LINE_AA)
    return picture

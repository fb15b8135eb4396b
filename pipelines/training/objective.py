"""What a step of training minimises: masks, predicted IoU, and the encoder's auxiliary losses.

`Objective` is one module that holds all that is learnt, so that DistributedDataParallel can wrap it; its
`forward` gives the loss. A mask is asked for by the paper's interaction (`model.training.interaction`), or by
one simple prompt, of one kind in each step, for which a small model on few images has the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...model.networks.image_encoder import drop_paths
from ...model.networks.sam import EncodedImages, Sam
from ...model.training.interaction import BOX_NOISE, Round, interact
from ...model.training.losses import (
    FeatureContrast,
    FeatureImitation,
    best_iou,
    dice_loss,
    focal_loss,
    mask_iou,
)
from ...model.training.simulated_prompts import MAX_POINTS, Draws, holding, noisy_boxes, points_in_and_around
from .batches import Batch
from .config import StageConfig, TrainConfig


class Objective(nn.Module):
    """The model in training, its auxiliary losses, and how their sum is made."""

    def __init__(self, config: TrainConfig, sam: Sam, teacher_channels: int = 0) -> None:
        super().__init__()
        self.config = config
        self.sam = sam
        losses: dict[str, nn.Module] = {"contrast": FeatureContrast()}
        if teacher_channels:
            losses["imitation"] = FeatureImitation(sam.config.out_chans, teacher_channels)
        self.auxiliary = nn.ModuleDict(losses)

    def forward(self, batch: Batch, stage: StageConfig, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts by name; everything is a mean over images and masks.

        `draws` are those of the batch's own images. Parts have the same names in all batches of a step.
        """
        sam = self.sam
        pixels = sam.normalise(batch.pixels_BCHW) * batch.valid_BHW[:, None].to(sam.device)
        images = sam.encode_padded(pixels, self._paths(stage, draws))
        measured: dict[str, Tensor] = {}
        total = torch.zeros((), device=sam.device)
        if stage.train != "decoder":
            total = total + self._auxiliary_loss(images.embedding_BCHW, batch, measured)
        if stage.train != "encoder":
            total = total + self._mask_loss(images, batch, stage, draws, measured)
        return total, {name: value.detach() for name, value in measured.items()}

    def _paths(self, stage: StageConfig, draws: Draws) -> Tensor | None:
        """Which blocks are skipped for each image; None if none are."""
        if stage.train == "decoder" or not self.config.drop_path:
            return None
        uniform_BL2 = draws.uniform(self.sam.config.depth, 2)
        return drop_paths(uniform_BL2, self.config.drop_path).to(self.sam.device)

    def _auxiliary_loss(self, embedding_BCHW: Tensor, batch: Batch, measured: dict[str, Tensor]) -> Tensor:
        """The loss of the encoder's features, without the decoder."""
        config, device = self.config, self.sam.device
        total = torch.zeros((), device=device)
        if config.contrast_weight:
            cells = nn.functional.avg_pool2d(batch.masks_BPHW.to(device).float(), self.sam.config.patch_size)
            relative = (batch.points_BP2.to(device) + 0.5) / batch.pixels_BCHW.shape[-1]
            measured["contrast"] = self.auxiliary["contrast"](embedding_BCHW, relative, cells)
            total = total + config.contrast_weight * measured["contrast"]
        if "imitation" in self.auxiliary:
            measured["imitation"] = self.auxiliary["imitation"](embedding_BCHW, batch.teacher_BCHW.to(device))
            total = total + config.teacher_weight * measured["imitation"]
        return total

    def _mask_loss(
        self,
        images: EncodedImages,
        batch: Batch,
        stage: StageConfig,
        draws: Draws,
        measured: dict[str, Tensor],
    ) -> Tensor:
        """The loss of the masks and their predicted IoU, a mean over the rounds."""
        config, device = self.config, self.sam.device
        masks_BPHW = batch.masks_BPHW.to(device)
        if config.prompts == "interaction":
            points_BP2 = batch.points_BP2.to(device)
            rounds = [*interact(self.sam, images, masks_BPHW, points_BP2, config.interaction, draws)]
            names = ["first", *["later"] * (len(rounds) - 2), "last"] if len(rounds) > 1 else ["first"]
        else:
            rounds = [self._simple_round(images, batch, draws)]
            names = ["oracle" if rounds[0].iou_BPK.shape[2] > 1 else "single"]
        weight = config.focal_weight if stage.focal_weight is None else stage.focal_weight
        targets_BPhw = nn.functional.avg_pool2d(
            masks_BPHW.float(), masks_BPHW.shape[-1] // rounds[0].logits_BPKhw.shape[-1]
        )
        by_point = (stage.iou_target or config.iou_target) == "point"
        total = torch.zeros((), device=device)
        for name, answer in zip(names, rounds, strict=True):
            mask_loss, iou_loss, iou = self._round_loss(answer, targets_BPhw, batch, weight, by_point)
            total = total + (mask_loss + config.iou_weight * iou_loss) / len(rounds)
            if name != "later":
                measured |= {f"mask_{name}": mask_loss, f"iou_{name}": iou, f"iou_loss_{name}": iou_loss}
        return total

    def _round_loss(
        self, answer: Round, targets_BPhw: Tensor, batch: Batch, focal_weight: float, by_point: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of a round: of each prompt's best mask, and of the predicted IoU of all its masks.

        With `by_point`, a click's predicted IoU is compared with the best mask that the click may mean.
        Returns the masks' loss, the predicted IoU's, and the IoU of the best masks.
        """
        logits, counts = answer.logits_BPKhw.float(), answer.trained_BPK
        targets = targets_BPhw[:, :, None].expand_as(logits)
        mask_losses = focal_weight * focal_loss(logits, targets) + dice_loss(logits, targets)
        iou = mask_iou(logits.detach(), targets)
        target_BPK = best_meant(answer, iou, batch) if by_point else iou
        error = (answer.iou_BPK.float() - target_BPK).square()
        return (
            mask_losses.masked_fill(~counts, torch.inf).amin(2).mean(),
            # of each prompt first: the mean over parts of a step is that over the step
            (error.masked_fill(~counts, 0).sum(2) / counts.sum(2)).mean(),
            iou.masked_fill(~counts, 0).amax(2).mean(),
        )

    def _simple_round(self, images: EncodedImages, batch: Batch, draws: Draws) -> Round:
        """The answers to one kind of prompt for each mask; only a single point gets several masks."""
        sam, config = self.sam, self.config
        masks_BPHW = batch.masks_BPHW
        to_input = sam.config.img_size / masks_BPHW.shape[-1]  # prompts are in pixels of the input
        kind = torch.rand((), generator=draws.of_step).item()
        tokens = [0]
        if kind < config.box_share:
            noise = BOX_NOISE / to_input
            boxes = draws.each(lambda b, generator: noisy_boxes(masks_BPHW[b], generator, noise))
            decoded = sam.attend(images, boxes_BP4=boxes.to(sam.device) * to_input)
        else:
            if kind < config.box_share + config.points_share:
                count = int(torch.randint(2, MAX_POINTS + 1, (), generator=draws.of_step))
                points, labels = self._scattered(masks_BPHW, count, draws)
            else:
                points = batch.points_BP2[:, :, None]
                labels = torch.ones(points.shape[:3], dtype=torch.long)
                tokens = [1, 2, 3]
            points, labels = points.to(sam.device), labels.to(sam.device)
            decoded = sam.attend(images, (points + 0.5) * to_input - 0.5, labels)
        prompts = masks_BPHW.shape[:2].numel()
        prompt_K = torch.arange(prompts).repeat_interleave(len(tokens))
        logits = sam.draw(decoded, prompt_K, torch.tensor(tokens).repeat(prompts))
        iou_BPK = decoded.iou_BPM[..., tokens]
        trained_BPK = torch.ones_like(iou_BPK, dtype=torch.bool)
        one_click_BP = torch.full_like(trained_BPK[..., 0], len(tokens) > 1)
        return Round(logits.unflatten(0, iou_BPK.shape), iou_BPK, trained_BPK, one_click_BP)

    @staticmethod
    def _scattered(masks_BPHW: Tensor, count: int, draws: Draws) -> tuple[Tensor, Tensor]:
        generators = zip(masks_BPHW, draws.of_images, strict=True)
        drawn = [points_in_and_around(masks_PHW, count, generator) for masks_PHW, generator in generators]
        points, labels = zip(*drawn, strict=True)
        return torch.stack(points), torch.stack(labels)


def best_meant(answer: Round, iou_BPK: Tensor, batch: Batch) -> Tensor:
    """The IoU of each mask with the best labelled mask that its click may mean.

    A click in the middle of a mask means that mask, and a click elsewhere any mask that contains it; other
    prompts mean the mask that was asked for, with which `iou_BPK` is the IoU.
    """
    if iou_BPK.shape[2] == 1:
        return iou_BPK
    logits = answer.logits_BPKhw.detach()
    objects_BQhw = batch.objects_BQhw.to(logits.device).float()
    cell = batch.masks_BPHW.shape[-1] // logits.shape[-1]
    holds_BPQ = holding(objects_BQhw, batch.points_BP2.to(logits.device) // cell)
    holds_BKQ = holds_BPQ.repeat_interleave(logits.shape[2], dim=1)
    best = best_iou(logits.flatten(1, 2), objects_BQhw, holds_BKQ)
    best_BPK = best.reshape(iou_BPK.shape).maximum(iou_BPK)
    any_will_do_BP = answer.one_click_BP & ~batch.centred_BP.to(logits.device)
    return torch.where(any_will_do_BP[..., None], best_BPK, iou_BPK)

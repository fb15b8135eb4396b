"""Simulated interaction: a mask is asked for again and again (paper, appendix A, "Training algorithm").

The first prompt is a point in the mask or a noisy box around it. Then come clicks, each drawn from where the
last answer was wrong, and the last answer itself as a mask prompt, its logits not thresholded; of the three
readings of the first prompt the most confident one is passed on. Two rounds bring no new point, so that the
model learns to better its own mask: one at a random place among the clicks, one at the end.

What is passed on is a prompt and nothing else: no gradient runs back through it, into the round before. (The
paper does not say.) The mask prompt's own layers learn from the round that it enters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..networks.sam import EncodedImages, Sam
from .simulated_prompts import Draws, corrections, noisy_boxes

BOX_NOISE = 20.0
"""Most that a side of a box is off, in pixels of the model's input."""


@dataclass(frozen=True)
class Interaction:
    """What is asked of a mask; the defaults are the paper's, 11 rounds.

    `single_mask_for_boxes` has the single-mask token answer a box, which leaves little in doubt; the paper's
    rule is that it answers from the second prompt on. `recompute` keeps no activations of a round for the
    backward pass: less memory for a second forward pass.
    """

    clicks: int = 8
    refine: bool = True
    box_share: float = 0.5
    single_mask_for_boxes: bool = False
    recompute: bool = False


@dataclass(frozen=True)
class Round:
    """What a prompt was answered: K masks each, of which some may be trained."""

    logits_BPKhw: Tensor
    iou_BPK: Tensor  # as predicted
    trained_BPK: Tensor  # bool
    one_click_BP: Tensor  # bool: whether nothing but a click was given, which several masks may answer

    def most_confident(self) -> Tensor:
        """Logits of the mask of highest predicted IoU, out of those that may be trained: B×P×h×w."""
        best_BP = self.iou_BPK.masked_fill(~self.trained_BPK, -torch.inf).argmax(2)
        index = best_BP[..., None, None, None].expand(-1, -1, 1, *self.logits_BPKhw.shape[3:])
        return self.logits_BPKhw.gather(2, index)[:, :, 0]


def rounds_after_the_first(clicks: int, refine: bool, generator: torch.Generator) -> list[bool]:
    """Whether each round brings a new point."""
    rounds = [True] * clicks
    if refine and clicks:
        rounds.insert(int(torch.randint(clicks, (), generator=generator)), False)
    return [*rounds, False] if refine else rounds


def interact(
    sam: Sam, images: EncodedImages, masks_BPHW: Tensor, points_BP2: Tensor, how: Interaction, draws: Draws
) -> Iterator[Round]:
    """The rounds, one after another: three masks in the first, one in the others.

    `masks_BPHW` are the true masks, 0 and 1, on the square that was encoded; `points_BP2` is a pixel (x, y)
    inside each. The rounds' order is the step's, the same for all images; the rest is drawn for each.
    """
    scale = sam.config.img_size / masks_BPHW.shape[-1]
    boxed_BP = (draws.uniform(masks_BPHW.shape[1]) < how.box_share).to(masks_BPHW.device)
    places_BPT2, labels_BPT = _first_prompts(masks_BPHW, points_BP2, boxed_BP, scale, draws)
    tokens = [0, 1, 2, 3] if how.single_mask_for_boxes else [1, 2, 3]
    trained_BPK = torch.ones(*boxed_BP.shape, len(tokens), dtype=torch.bool, device=masks_BPHW.device)
    if how.single_mask_for_boxes:
        trained_BPK = torch.cat([boxed_BP[..., None], ~boxed_BP[..., None].expand(-1, -1, 3)], 2)
    answer = _ask(sam, images, places_BPT2, labels_BPT, None, tokens, how.recompute)
    given = Round(*answer, trained_BPK, ~boxed_BP)
    yield given

    for new_point in rounds_after_the_first(how.clicks, how.refine, draws.of_step):
        previous_BPhw = given.most_confident().detach()
        if new_point:
            upright = F.interpolate(previous_BPhw.float(), masks_BPHW.shape[-2:], mode="bilinear") > 0
            points_BP2, label_BP = corrections(upright, masks_BPHW, draws.uniform(masks_BPHW.shape[1]))
            place_BP12 = ((points_BP2 + 0.5) * scale - 0.5)[:, :, None]
            places_BPT2 = torch.cat([places_BPT2, place_BP12], 2)
            labels_BPT = torch.cat([labels_BPT, label_BP[..., None]], 2)
        answer = _ask(sam, images, places_BPT2, labels_BPT, previous_BPhw[:, :, None], [0], how.recompute)
        given = Round(*answer, torch.ones_like(boxed_BP)[..., None], torch.zeros_like(boxed_BP))
        yield given


def _first_prompts(
    masks_BPHW: Tensor, points_BP2: Tensor, boxed_BP: Tensor, scale: float, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Two tokens each, in pixels of the model's input: a point and padding, or a box's two corners."""
    boxes_BP4 = draws.each(lambda b, generator: noisy_boxes(masks_BPHW[b], generator, BOX_NOISE / scale))
    corners_BP22 = boxes_BP4.to(masks_BPHW.device).unflatten(-1, (2, 2)) * scale
    clicks_BP12 = ((points_BP2 + 0.5) * scale - 0.5)[:, :, None]
    clicked_BP22 = torch.cat([clicks_BP12, torch.zeros_like(clicks_BP12)], 2)
    corner, click = torch.tensor([[2, 3], [1, -1]], device=masks_BPHW.device)
    boxed = boxed_BP[..., None]
    return torch.where(boxed[..., None], corners_BP22, clicked_BP22), torch.where(boxed, corner, click)


def _ask(
    sam: Sam,
    images: EncodedImages,
    places_BPT2: Tensor,
    labels_BPT: Tensor,
    masks_BP1hw: Tensor | None,
    tokens: list[int],
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Logits and predicted IoU of some of the mask tokens: B×P×K×h×w and B×P×K."""

    def answer() -> tuple[Tensor, Tensor]:
        decoded = sam.answer(images, sam.prompt_encoder.labelled(places_BPT2, labels_BPT), masks_BP1hw)
        prompts = places_BPT2.shape[:2].numel()
        prompt_K = torch.arange(prompts).repeat_interleave(len(tokens))
        logits = sam.draw(decoded, prompt_K, torch.tensor(tokens).repeat(prompts))
        shape = (*places_BPT2.shape[:2], len(tokens))
        return logits.unflatten(0, shape), decoded.iou_BPM[..., tokens]

    if not recompute:
        return answer()
    done: tuple[Tensor, Tensor] = checkpoint(answer, use_reentrant=False)
    return done

"""The generator's work on a GPU: stage by stage over all crop views that were encoded together.

    score all prompts → the host chooses → draw the chosen → measure → the host filters → keep those logits
          → … NMS … → paint the survivors → runs → the host writes them down

A device works through a queue, and every time the host reads a number the queue runs dry. So stages are as
large as `device_budget_bytes` allows, and what crosses are scalars and the ends of runs. The host waits

1. for the predicted IoUs of a pass (all prompts of all its views, if they fit): they decide what is drawn;
2. in each view for the number of tiles along its masks' edges (`Resampler.measured`);
3. for the measures of the pass;
4. in each job for the number of its final masks' runs, and for the runs (`engine.resampling.painting`).

The masks are `engine.backends.cpu`'s up to rounding; a record's area and box are those of the mask as
painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...model.networks.device_tensors import kept_on_device
from ...model.networks.mask_decoder import Decoded
from ...model.networks.sam import EncodedImages, Sam
from ..candidates import (
    Candidate,
    CropView,
    FinalMask,
    ImageJob,
    apply_filters,
    final_mask_of,
    without_duplicates,
)
from ..config import GeneratorConfig
from ..geometry import input_size, points_to_input
from ..grid import crop_points
from ..resampling.interpolation import Indexes, finite
from ..resampling.painting import run_ends
from ..resampling.tiles import Measures, Patch, Resampler
from ..runtime.accounting import Ledger
from ..runtime.batching import in_batches
from ..runtime.budget import budget_beside
from ..runtime.transfer import fetch, upload

TOKENS = 7
"""Of a grid's prompt in the decoder: IoU, four masks, the point and its padding."""

READINGS = 3
"""Masks of an ambiguous prompt."""


class DeviceBackend:
    """As many prompts at once as `device_budget_bytes` allows."""

    def __init__(self, sam: Sam, config: GeneratorConfig) -> None:
        self.sam = sam
        self.config = config
        self.budget_bytes = budget_beside(sam, config)
        shape = sam.config
        number_bytes = sam.prompt_encoder.no_mask_embed.weight.element_size()
        cells = shape.embedding_size**2
        exchange_bytes = shape.decoder_num_heads * TOKENS * cells * number_bytes
        # Two exchanges wait for the drawing, and so does what may be drawn, in fp32 and with two copies.
        self.prompt_bytes = 2 * exchange_bytes + READINGS * 3 * 4 * shape.low_res_size**2
        # Of scoring some ten such arrays live at once; of drawing some eight of the embedding's size.
        self.score_bytes, self.draw_bytes = 10 * exchange_bytes, 8 * shape.out_chans * cells * number_bytes

    @torch.inference_mode()
    def candidates(self, views: Sequence[CropView], encoded: EncodedImages) -> list[list[Candidate]]:
        """See `engine.candidates.Backend`. Views of one layer have grids alike and are asked together."""
        found: list[list[Candidate]] = []
        for _, alike in groupby(views, lambda view: view.crop.layer):
            group = list(alike)
            found += self._together(group, encoded.images(slice(len(found), len(found) + len(group))))
        return found

    def _together(self, views: list[CropView], encoded: EncodedImages) -> list[list[Candidate]]:
        points_BP2 = np.stack([crop_points(view.crop, self.config) for view in views])
        at_once = self.budget_bytes // 2 // (self.prompt_bytes * len(views))
        found: list[list[Candidate]] = [[] for _ in views]
        for kept, accounts in in_batches(
            points_BP2.shape[1],
            max(1, min(at_once, points_BP2.shape[1])),
            lambda part: self._ask(views, encoded, points_BP2[:, part]),
        ):
            for index, view in enumerate(views):
                found[index] += kept[index]
                view.job.ledger.add(accounts[index], 1)
        unique = [without_duplicates(view, one, self.config) for view, one in zip(views, found, strict=True)]
        for one in unique:
            _move_together(one)
        return unique

    def _ask(
        self, views: list[CropView], encoded: EncodedImages, points_BP2: npt.NDArray[np.float64]
    ) -> tuple[list[list[Candidate]], list[Ledger]]:
        """Prompt with P points of each of B views: candidates that pass, and the account of all."""
        config, watch, ledgers = self.config, Ledger(), [Ledger() for _ in views]
        with watch.stage("prompt"):
            decoded = self._attend(views, encoded, points_BP2)
            (iou_BP3,) = fetch(decoded.iou_BPM[..., 1:].float())  # token 0 is for unambiguous prompts
            prompts = iou_BP3.shape[1]
            chosen = [np.nonzero(iou_P3 > (config.pred_iou_thresh or -np.inf)) for iou_P3 in iou_BP3]

        drawn: list[tuple[int, Tensor, Tensor]] = []  # view, logits, measures
        for index, (prompt_K, token_K) in enumerate(chosen):
            ledgers[index].count(READINGS * prompts, {"predicted_iou": READINGS * prompts - len(prompt_K)})
            if len(prompt_K) == 0:
                continue
            with watch.stage("draw"):
                counted_K = torch.from_numpy(index * prompts + prompt_K)  # `draw` sorts them out here
                logits_Khw = self.sam.draw(decoded, counted_K, torch.from_numpy(token_K + 1))
                logits_Khw = finite(logits_Khw.float() - self.sam.mask_threshold)
            with watch.stage("resample"):
                resampler = self._resampler(views[index].crop.size)
                measured_K7 = resampler.measured(logits_Khw, config.stability_score_offset)
            drawn.append((index, logits_Khw, measured_K7))
        with watch.stage("resample"):
            tables = fetch(*(measured_K7 for *_, measured_K7 in drawn))

        kept: list[list[Candidate]] = [[] for _ in views]
        for (index, logits_Khw, _), table_K7 in zip(drawn, tables, strict=True):
            prompt_K, token_K = chosen[index]
            with watch.stage("filter"):
                kept[index], drops = apply_filters(
                    views[index],
                    points_BP2[index, prompt_K],
                    iou_BP3[index, prompt_K, token_K],
                    Measures.of(table_K7),
                    config,
                    partial(_chosen, logits_Khw),
                )
            ledgers[index].count(0, drops)
        for ledger in ledgers:
            ledger.add(watch, len(views))
        return kept, ledgers

    def _attend(
        self, views: list[CropView], encoded: EncodedImages, points_BP2: npt.NDArray[np.float64]
    ) -> Decoded:
        side, device = self.sam.config.img_size, self.sam.device
        inputs_BP2 = np.stack(
            [
                points_to_input(points_P2, view.crop.size, side)
                for points_P2, view in zip(points_BP2, views, strict=True)
            ]
        )
        points_BP12 = upload(inputs_BP2, device)[:, :, None]
        labels_BP1 = torch.ones(points_BP12.shape[:3], dtype=torch.int64, device=device)
        most_bytes = max(len(views) * self.score_bytes, self.draw_bytes)  # views are drawn one by one
        together = max(1, self.budget_bytes // 4 // most_bytes)
        return self.sam.attend(encoded, points_BP12, labels_BP1, together=together)

    @torch.inference_mode()
    def final_masks(self, job: ImageJob, found: Sequence[Candidate]) -> list[FinalMask]:
        """See `engine.candidates.Backend`. Masks of crops of one size are painted together."""
        final_masks: list[FinalMask] = []
        for some, account in in_batches(len(found), max(1, len(found)), lambda part: self._some(found[part])):
            final_masks += some
            job.ledger.add(account, 1)
        return final_masks

    def _some(self, found: Sequence[Candidate]) -> tuple[list[FinalMask], Ledger]:
        ledger = Ledger()
        final_masks: list[FinalMask | None] = [None] * len(found)
        sizes = [candidate.view.crop.size for candidate in found]
        for size in dict.fromkeys(sizes):
            places = [place for place, other in enumerate(sizes) if other == size]
            some = self._of_one_size(self._resampler(size), [found[place] for place in places], ledger)
            for place, final_mask in zip(places, some, strict=True):
                final_masks[place] = final_mask
        return [final_mask for final_mask in final_masks if final_mask is not None], ledger

    def _of_one_size(
        self, resampler: Resampler, found: list[Candidate], ledger: Ledger
    ) -> list[FinalMask | None]:
        with ledger.stage("resample"):
            ends = run_ends(resampler, _logits(found), _boxes_in_crop(found))
            splits = np.searchsorted(ends.mask_E, np.arange(1, len(found)))
            runs = zip(np.split(ends.x_E, splits), np.split(ends.y_E, splits), strict=True)
        return [
            final_mask_of(candidate, x_E, y_E, self.config, ledger)
            for candidate, (x_E, y_E) in zip(found, runs, strict=True)
        ]

    def _resampler(self, size: tuple[int, int]) -> Resampler:
        shape = self.sam.config
        budget_bytes = self.budget_bytes // 4
        return _resampler(shape.low_res_size, shape.img_size, size, budget_bytes, self.sam.device)


@kept_on_device(32)
def _resampler(
    low_size: int, img_size: int, size: tuple[int, int], budget_bytes: int, device: torch.device
) -> Resampler:
    resized = input_size(*size, img_size)
    return Resampler(low_size, img_size, resized, size, budget_bytes=budget_bytes, device=device)


def _chosen(logits_Khw: Tensor, keep: Indexes) -> list[Patch]:
    return _patches(logits_Khw[upload(keep, logits_Khw.device)])


def _patches(logits_Khw: Tensor) -> list[Patch]:
    return [Patch(logits_hw, 0, 0) for logits_hw in logits_Khw.unbind()]


def _logits(found: Sequence[Candidate]) -> Tensor:
    return torch.stack([candidate.patch.values_hw for candidate in found])


def _move_together(found: Sequence[Candidate]) -> None:
    """Copy the logits of these candidates, so that those beside them can go."""
    if found:
        for candidate, patch in zip(found, _patches(_logits(found)), strict=True):
            candidate.patch = patch


def _boxes_in_crop(found: Sequence[Candidate]) -> Indexes:
    return np.array([candidate.box_in_crop() for candidate in found], np.int64)

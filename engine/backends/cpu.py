"""The generator's work on a CPU: small batches, a core each (`engine.runtime.batching`).

The network and the compiled loops let go of the interpreter lock, so lanes go through all steps side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ...model.networks.sam import EncodedImages, Sam
from ..candidates import (
    Candidate,
    CropView,
    FinalMask,
    ImageJob,
    apply_filters,
    as_box,
    final_mask_of,
    without_duplicates,
)
from ..config import GeneratorConfig
from ..geometry import input_size, points_to_input
from ..grid import crop_points
from ..resampling.bands import CompiledResampler
from ..runtime.accounting import Ledger
from ..runtime.batching import in_batches, lanes_here


class CpuBackend:
    """A batch of prompts after the other, `points_per_batch` of them, in lanes."""

    def __init__(self, sam: Sam, config: GeneratorConfig) -> None:
        self.sam = sam
        self.config = config

    def candidates(self, views: Sequence[CropView], encoded: EncodedImages) -> list[list[Candidate]]:
        """See `engine.candidates.Backend`."""
        return [self._candidates(view, encoded.images(slice(n, n + 1))) for n, view in enumerate(views)]

    def _candidates(self, view: CropView, encoded: EncodedImages) -> list[Candidate]:
        points_N2 = crop_points(view.crop, self.config)
        found: list[Candidate] = []
        lanes = lanes_here()
        for kept, account in in_batches(
            len(points_N2),
            self.config.points_per_batch,
            lambda part: self._ask(view, encoded, points_N2[part]),
            lanes,
        ):
            found += kept
            view.job.ledger.add(account, lanes)
        return without_duplicates(view, found, self.config)

    @torch.inference_mode()
    def _ask(
        self, view: CropView, encoded: EncodedImages, points_N2: npt.NDArray[np.float64]
    ) -> tuple[list[Candidate], Ledger]:
        """Prompt with N points of the crop: candidates that pass, and the account of all."""
        sam, config, ledger = self.sam, self.config, Ledger()
        with ledger.stage("prompt"):
            inputs_N2 = points_to_input(points_N2, view.crop.size, sam.config.img_size)
            points_1N12 = torch.from_numpy(inputs_N2)[None, :, None]
            labels_1N1 = torch.ones(points_1N12.shape[:3], dtype=torch.int64)
            decoded = sam.attend(encoded, points_1N12, labels_1N1)
            iou_N3 = decoded.iou_BPM[0, :, 1:].float()  # token 0 is for prompts that are not ambiguous
            confident_N3 = iou_N3 > (config.pred_iou_thresh or -torch.inf)
            prompt_K, token_K = confident_N3.nonzero(as_tuple=True)
            iou_K = iou_N3[prompt_K, token_K].numpy()
        ledger.count(iou_N3.numel(), {"predicted_iou": iou_N3.numel() - len(iou_K)})
        if len(iou_K) == 0:
            return [], ledger

        with ledger.stage("draw"):
            logits_Khw = sam.draw(decoded, prompt_K, token_K + 1).float() - sam.mask_threshold
        with ledger.stage("resample"):
            resampler = self._resampler(view.crop.size)
            measures = resampler.measure(logits_Khw, config.stability_score_offset)
        with ledger.stage("filter"):
            kept, drops = apply_filters(
                view,
                points_N2[prompt_K.numpy()],
                iou_K,
                measures,
                config,
                lambda keep: [resampler.cut(logits_Khw[k], as_box(measures.box_N4[k])) for k in keep],
            )
        ledger.count(0, drops)
        return kept, ledger

    def final_masks(self, job: ImageJob, found: Sequence[Candidate]) -> list[FinalMask]:
        """See `engine.candidates.Backend`."""
        final_masks: list[FinalMask] = []
        lanes = lanes_here()
        for final_mask, account in in_batches(
            len(found), 1, lambda part: self._final_mask(found[part.start]), lanes
        ):
            final_masks += [final_mask] if final_mask else []
            job.ledger.add(account, lanes)
        return final_masks

    @torch.inference_mode()
    def _final_mask(self, candidate: Candidate) -> tuple[FinalMask | None, Ledger]:
        ledger = Ledger()
        with ledger.stage("resample"):
            resampler = self._resampler(candidate.view.crop.size)
            x_E, y_E = resampler.run_ends(candidate.patch, candidate.box_in_crop())
        return final_mask_of(candidate, x_E, y_E, self.config, ledger), ledger

    def _resampler(self, size: tuple[int, int]) -> CompiledResampler:
        return _resampler(self.sam.config.low_res_size, self.sam.config.img_size, size)


@lru_cache(maxsize=8)
def _resampler(low_size: int, img_size: int, size: tuple[int, int]) -> CompiledResampler:
    return CompiledResampler(low_size, img_size, input_size(*size, img_size), size)

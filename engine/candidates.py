"""What goes through the generator: an image's job, its crop views, candidates and final masks; and the steps
that every backend shares, wherever the network runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..model.networks.sam import EncodedImages
from .codes import single
from .codes.runs import Runs
from .config import GeneratorConfig
from .filters import filter_masks, stability_scores, too_large
from .geometry import inclusive_to_xywh
from .grid import Crop
from .nms import non_maximal_suppression
from .records import MaskRecord, Rle
from .resampling.interpolation import Indexes
from .resampling.tiles import Box, Measures, Patch
from .runtime.accounting import Ledger
from .small_regions import clean_up


@dataclass(slots=True)
class ImageJob:
    """One image in the generator: its pixels, its account and the candidates found in it so far."""

    image_HW3: npt.NDArray[np.uint8]
    input_hw3: npt.NDArray[np.uint8] | None = None
    """The whole image at the model's input size, where it was prepared."""
    ledger: Ledger = field(default_factory=Ledger)
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image_HW3.shape[0], self.image_HW3.shape[1]


@dataclass(slots=True)
class CropView:
    """What the model sees at once: one crop of a job's image."""

    job: ImageJob
    crop: Crop

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The crop's part of the image."""
        return self.job.image_HW3[self.crop.y0 : self.crop.y1, self.crop.x0 : self.crop.x1]

    @property
    def corner(self) -> Indexes:
        """(x, y) of the crop's top left pixel in the image."""
        return np.array([self.crop.x0, self.crop.y0])


@dataclass(slots=True)
class Candidate:
    """A mask that is still in the running: measured, not painted.

    Box (XYXY, both ends inside) and point (x, y) are in pixels of the image.
    """

    view: CropView
    patch: Patch
    box: Box
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]

    def box_in_crop(self) -> Box:
        """The box in pixels from the crop's top left corner."""
        (x0, y0, x1, y1), crop = self.box, self.view.crop
        return x0 - crop.x0, y0 - crop.y0, x1 - crop.x0, y1 - crop.y0


@dataclass(slots=True)
class FinalMask:
    """A candidate's final mask; `touched` by the clean-up or not."""

    candidate: Candidate
    segmentation: Rle
    box: Box
    area: int
    touched: bool

    def record(self) -> MaskRecord:
        """What is handed out."""
        candidate, crop = self.candidate, self.candidate.view.crop
        return MaskRecord(
            segmentation=self.segmentation,
            area=self.area,
            bbox=inclusive_to_xywh(self.box),
            predicted_iou=candidate.predicted_iou,
            stability_score=candidate.stability_score,
            crop_box=inclusive_to_xywh((crop.x0, crop.y0, crop.x1 - 1, crop.y1 - 1)),
            point_coords=(candidate.point,),
        )


class Backend(Protocol):
    """Does the work between the encoder and the records, on one kind of processor: `engine.backends.cpu`,
    `engine.backends.device`.

    Both enter every candidate and second into the jobs' ledgers.
    """

    def candidates(self, views: Sequence[CropView], encoded: EncodedImages) -> list[list[Candidate]]:
        """Prompt with each view's grid of points; return what passes the filters, once a view."""

    def final_masks(self, job: ImageJob, found: Sequence[Candidate]) -> list[FinalMask]:
        """Paint a job's candidates, clean them up and run-length code what is left, in order."""


def apply_filters(
    view: CropView,
    points_K2: npt.NDArray[np.float64],
    iou_K: npt.NDArray[np.float32],
    measures: Measures,
    config: GeneratorConfig,
    cut: Callable[[Indexes], Sequence[Patch]],
) -> tuple[list[Candidate], dict[str, int]]:
    """The candidates among K measured masks that pass the filters, and how many masks each filter drops.

    Points (x, y) and measures are in pixels from the crop's corner. `cut` returns the logits of those chosen.
    """
    boxes_K4 = measures.box_N4 + np.tile(view.corner, 2)
    keep, drops = filter_masks(measures, boxes_K4, view.crop, view.job.size, config)
    stability_K, points_K2 = stability_scores(measures), points_K2 + view.corner
    kept = [
        Candidate(
            view,
            patch,
            as_box(boxes_K4[k]),
            float(iou_K[k]),
            float(stability_K[k]),
            (float(points_K2[k, 0]), float(points_K2[k, 1])),
        )
        for k, patch in zip(keep, cut(keep), strict=True)
    ]
    return kept, drops


def without_duplicates(
    view: CropView, found: Sequence[Candidate], config: GeneratorConfig
) -> list[Candidate]:
    """A crop view's candidates after NMS by predicted IoU."""
    ledger = view.job.ledger
    with ledger.stage("nms"):
        scores = np.array([candidate.predicted_iou for candidate in found], np.float32)
        keep = non_maximal_suppression(boxes_of(found), scores, config.box_nms_thresh)
    ledger.count(0, {"nms": len(found) - len(keep)})
    return [found[index] for index in keep]


def final_mask_of(
    candidate: Candidate, x_E: Indexes, y_E: Indexes, config: GeneratorConfig, ledger: Ledger
) -> FinalMask | None:
    """Clean the painted mask up and encode it; None, and accounted for, if nothing is left of it.

    The mask comes as where its runs start and end in the crop: see `Runs.between`.
    """
    if len(x_E) == 0:  # measured by other sums than it is painted by, a pixel on the threshold may go
        ledger.count(0, {"empty": 1})
        return None
    size, crop, touched = candidate.view.job.size, candidate.view.crop, False
    mask = Runs.between(x_E + crop.x0, y_E + crop.y0, size)
    if config.min_mask_region_area > 0:
        with ledger.stage("filter"):
            cleaned, touched = clean_up(mask, config.min_mask_region_area, config.drop_small_masks)
        if cleaned is None:
            ledger.count(0, {"clean_up": 1})
            return None
        mask = cleaned
        if too_large(np.array(mask.area), size, config.max_mask_area_fraction):
            ledger.count(0, {"too_large": 1})
            return None
    with ledger.stage("rle"):
        segmentation = single.encode_runs(mask)
    return FinalMask(candidate, segmentation, mask.box(), mask.area, touched)


def boxes_of(found: Sequence[Candidate] | Sequence[FinalMask]) -> Indexes:
    """Their boxes, N×4."""
    return np.array([one.box for one in found], np.int64).reshape(-1, 4)


def as_box(box_4: Indexes) -> Box:
    """A row of boxes as plain numbers."""
    x0, y0, x1, y1 = box_4.tolist()
    return x0, y0, x1, y1

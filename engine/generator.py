"""Everything in an image: ask the model about a grid of points, keep what is confident, stable and new.

    image → crops → resize → encode once → prompt on a grid → predicted IoU → draw → stability, edges
          → NMS in each crop → NMS across crops → paint → clean up → run-length code

The semantics are the released automatic mask generator's, option by option and in the same order, so that
the same weights give the same masks. What differs is the order of the work: masks are drawn only where the
predicted IoU passes, measured at the image's size only along their edges, and painted only once they have
survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from engine import rle
from engine.batching import in_batches, lanes_for
from engine.config import GeneratorConfig
from engine.filters import filter_masks, stability_scores, too_large
from engine.geometry import inclusive_to_xywh, input_size, points_to_input, resize_to_input
from engine.grid import Crop, crop_points, crops_of
from engine.ledger import Ledger
from engine.nms import non_maximal_suppression
from engine.records import GeneratedMasks, MaskRecord, Rle
from engine.regions import BoxMask, clean_up
from engine.resample import Box, Patch, Resampler
from engine.resample_compiled import CompiledResampler
from model.sam import EncodedImages, Sam


@dataclass(slots=True)
class Page:
    """An image on its way through the generator."""

    image_HW3: npt.NDArray[np.uint8]
    ledger: Ledger = field(default_factory=Ledger)
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image_HW3.shape[0], self.image_HW3.shape[1]


@dataclass(slots=True)
class View:
    """What the model sees of a page: one crop."""

    page: Page
    crop: Crop


@dataclass(slots=True)
class Candidate:
    """A mask that is still in the running: measured, not painted.

    Box (XYXY, both ends inside) and point (x, y) are in pixels of the image.
    """

    view: View
    patch: Patch
    box: Box
    area: int
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]


@dataclass(slots=True)
class Outline:
    """A candidate's final mask; `touched` by the clean-up or not."""

    candidate: Candidate
    segmentation: Rle
    box: Box
    area: int
    touched: bool


class MaskGenerator:
    """Finds an image's masks with a promptable model: `MaskGenerator(load_sam("nano")).generate(image)`."""

    def __init__(self, sam: Sam, config: GeneratorConfig | None = None) -> None:
        self.sam = sam
        self.config = config or GeneratorConfig()

    def generate(self, image_HW3: npt.NDArray[np.uint8]) -> list[MaskRecord]:
        """All masks of one image: H×W×3 uint8 RGB. Raises ValueError for another kind of array."""
        return self.generate_batch([image_HW3])[0].masks

    @torch.inference_mode()
    def generate_batch(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[GeneratedMasks]:
        """All masks of several images, with counts and timings; `encode_batch` crops are encoded together."""
        config = self.config
        pages = [Page(checked_image(image)) for image in images]
        views = [
            View(page, crop)
            for page in pages
            for crop in crops_of(*page.size, config.crop_n_layers, config.crop_overlap_ratio)
        ]
        for together, encoded in in_batches(
            len(views), config.encode_batch, lambda part: (views[part], self._encode(views[part]))
        ):
            for index, view in enumerate(together):
                view.page.candidates += self._candidates(view, encoded[index])
        return [self._finish(page) for page in pages]

    def _encode(self, views: list[View]) -> EncodedImages:
        """Resize the crops to the model's input and encode them in one pass, its time shared among them."""
        inputs, watch = [], Ledger()
        for view in views:
            with view.page.ledger.stage("resize"):
                crop = view.crop
                pixels_HW3 = view.page.image_HW3[crop.y0 : crop.y1, crop.x0 : crop.x1]
                resized_HW3 = resize_to_input(pixels_HW3, self.sam.config.img_size)
                inputs.append(torch.from_numpy(resized_HW3).permute(2, 0, 1))
        with watch.stage("encode"):
            encoded = self.sam.encode(inputs)
        for view in views:
            view.page.ledger.seconds["encode"] += watch.seconds["encode"] / len(views)
        return encoded

    def _candidates(self, view: View, encoded: EncodedImages) -> list[Candidate]:
        """Ask about the crop's grid of points and drop duplicates within the crop."""
        config, ledger = self.config, view.page.ledger
        points_N2 = crop_points(view.crop, config)
        found: list[Candidate] = []
        lanes = lanes_for(self.sam.device)
        for kept, account in in_batches(
            len(points_N2),
            config.points_per_batch,
            lambda part: self._ask(view, encoded, points_N2[part]),
            lanes,
        ):
            found += kept
            ledger.add(account, lanes)
        with ledger.stage("nms"):
            scores = np.array([candidate.predicted_iou for candidate in found], np.float32)
            keep = non_maximal_suppression(_boxes(found), scores, config.box_nms_thresh)
        ledger.count(0, {"nms": len(found) - len(keep)})
        return [found[index] for index in keep]

    @torch.inference_mode()
    def _ask(
        self, view: View, encoded: EncodedImages, points_N2: npt.NDArray[np.float64]
    ) -> tuple[list[Candidate], Ledger]:
        """Prompt with N points of the crop: candidates that pass, and the account of all."""
        sam, config, ledger = self.sam, self.config, Ledger()
        with ledger.stage("prompt"):
            inputs_N2 = points_to_input(points_N2, view.crop.size, sam.config.img_size)
            points_1N12 = torch.from_numpy(inputs_N2).to(sam.device)[None, :, None]
            labels_1N1 = torch.ones(points_1N12.shape[:3], dtype=torch.int64, device=sam.device)
            decoded = sam.attend(encoded, points_1N12, labels_1N1)
            iou_N3 = decoded.iou_BPM[0, :, 1:].float()  # token 0 is for prompts that are not ambiguous
            confident_N3 = iou_N3 > (config.pred_iou_thresh or -torch.inf)
            prompt_K, token_K = confident_N3.nonzero(as_tuple=True)
            iou_K = iou_N3[prompt_K, token_K].cpu().numpy()
        ledger.count(iou_N3.numel(), {"predicted_iou": iou_N3.numel() - len(iou_K)})
        if len(iou_K) == 0:
            return [], ledger

        with ledger.stage("draw"):
            logits_Khw = sam.draw(decoded, prompt_K, token_K + 1).float() - sam.mask_threshold
        with ledger.stage("resample"):
            resampler = self._resampler(view.crop.size)
            measures = resampler.measure(logits_Khw, config.stability_score_offset)
        with ledger.stage("filter"):
            crop, corner = view.crop, np.array([view.crop.x0, view.crop.y0])
            boxes_K4 = measures.box_N4 + np.tile(corner, 2)
            keep, drops = filter_masks(measures, boxes_K4, crop, view.page.size, config)
            stability_K = stability_scores(measures)
            point_K2 = points_N2[prompt_K.cpu().numpy()] + corner
            kept = [
                Candidate(
                    view,
                    resampler.cut(logits_Khw[k], _box(measures.box_N4[k])),
                    _box(boxes_K4[k]),
                    int(measures.area_N[k]),
                    float(iou_K[k]),
                    float(stability_K[k]),
                    (float(point_K2[k, 0]), float(point_K2[k, 1])),
                )
                for k in keep
            ]
        ledger.count(0, drops)
        return kept, ledger

    def _finish(self, page: Page) -> GeneratedMasks:
        """Drop duplicates between crops, paint what is left, clean it up and write it down."""
        config, ledger, found = self.config, page.ledger, page.candidates
        if config.crop_n_layers > 0:
            with ledger.stage("nms"):
                small_first = np.array([1 / candidate.view.crop.area for candidate in found], np.float32)
                keep = non_maximal_suppression(_boxes(found), small_first, config.crop_nms_thresh)
            ledger.count(0, {"crop_nms": len(found) - len(keep)})
            found = [found[index] for index in keep]
        outlines: list[Outline] = []
        lanes = lanes_for(self.sam.device)
        for outline, account in in_batches(
            len(found), 1, lambda part: self._outline(found[part.start]), lanes
        ):
            outlines += [outline] if outline else []
            ledger.add(account, lanes)
        if config.min_mask_region_area > 0:
            untouched = np.array([not outline.touched for outline in outlines], np.float32)
            threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
            keep = non_maximal_suppression(_boxes(outlines), untouched, threshold)
            ledger.count(0, {"clean_up": len(outlines) - len(keep)})
            outlines = [outlines[index] for index in keep]
        return ledger.close([_record(outline) for outline in outlines])

    @torch.inference_mode()
    def _outline(self, candidate: Candidate) -> tuple[Outline | None, Ledger]:
        """Paint a candidate, clean it up and encode it; None, and accounted for, if nothing is left of it."""
        config, page, crop, ledger = self.config, candidate.view.page, candidate.view.crop, Ledger()
        box, area, touched = candidate.box, candidate.area, False
        with ledger.stage("resample"):
            x0, y0, x1, y1 = box
            in_crop = (x0 - crop.x0, y0 - crop.y0, x1 - crop.x0, y1 - crop.y0)
            mask = BoxMask(self._resampler(crop.size).paint(candidate.patch, in_crop).mask_hw, x0, y0)
        if config.min_mask_region_area > 0:
            with ledger.stage("filter"):
                cleaned, touched = clean_up(
                    mask, page.size, config.min_mask_region_area, config.drop_small_masks
                )
            if cleaned is None:
                ledger.count(0, {"clean_up": 1})
                return None, ledger
            if touched:
                mask, box, area = cleaned, cleaned.box(), int(np.count_nonzero(cleaned.mask_hw))
            if too_large(np.array(area), page.size, config.max_mask_area_fraction):
                ledger.count(0, {"too_large": 1})
                return None, ledger
        with ledger.stage("rle"):
            segmentation = rle.encode_box(mask.mask_hw, mask.x0, mask.y0, page.size)
        return Outline(candidate, segmentation, box, area, touched), ledger

    def _resampler(self, size: tuple[int, int]) -> Resampler | CompiledResampler:
        sam = self.sam.config
        return _cached_resampler(
            sam.low_res_size, sam.img_size, size, self.config.resample_budget_bytes, self.sam.device
        )


def checked_image(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image as it came; raises ValueError unless it is H×W×3 uint8 with at least one pixel."""
    if not isinstance(image_HW3, np.ndarray):
        raise ValueError(f"expected a numpy array H×W×3 uint8 (RGB), got {type(image_HW3).__name__}")
    shape, dtype = image_HW3.shape, image_HW3.dtype
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(
            f"expected an image H×W×3 uint8 (RGB) with H, W ≥ 1, got shape {shape}, dtype {dtype}"
        )
    return image_HW3


@lru_cache(maxsize=8)
def _cached_resampler(
    low_size: int, img_size: int, size: tuple[int, int], budget_bytes: int, device: torch.device
) -> Resampler | CompiledResampler:
    resized = input_size(*size, img_size)
    if device.type == "cpu":
        return CompiledResampler(low_size, img_size, resized, size)
    return Resampler(low_size, img_size, resized, size, budget_bytes=budget_bytes, device=device)


def _boxes(found: Sequence[Candidate] | Sequence[Outline]) -> npt.NDArray[np.int64]:
    return np.array([one.box for one in found], np.int64).reshape(-1, 4)


def _box(box_4: npt.NDArray[np.int64]) -> Box:
    x0, y0, x1, y1 = box_4.tolist()
    return x0, y0, x1, y1


def _record(outline: Outline) -> MaskRecord:
    candidate, crop = outline.candidate, outline.candidate.view.crop
    return MaskRecord(
        segmentation=outline.segmentation,
        area=outline.area,
        bbox=inclusive_to_xywh(outline.box),
        predicted_iou=candidate.predicted_iou,
        stability_score=candidate.stability_score,
        crop_box=inclusive_to_xywh((crop.x0, crop.y0, crop.x1 - 1, crop.y1 - 1)),
        point_coords=(candidate.point,),
    )

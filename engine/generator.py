"""Everything in an image: ask the model about a grid of points, keep what is confident, stable and new.

    image → crops → resize → encode once → prompt on a grid → predicted IoU → draw → stability, edges
          → NMS in each crop → NMS across crops → paint → clean up → run-length code

The semantics are the released automatic mask generator's, option by option and in the same order, so that the
same weights give the same masks. What differs is the order of the work: masks are drawn only where the
predicted IoU passes, measured at the image's size only along their edges, and painted only once they have
survived. How the steps between the encoder and the records are batched differs between a CPU (`backends.cpu`)
and a GPU (`backends.device`); both give the same masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..model.networks.sam import EncodedImages, Sam
from .backends.cpu import OnCpu
from .backends.device import OnDevice
from .candidates import Page, View, Way, boxes_of
from .config import GeneratorConfig
from .geometry import resize_to_input
from .grid import crops_of
from .nms import non_maximal_suppression
from .prepared import PreparedImage, checked_image, prepare
from .records import GeneratedMasks, MaskRecord
from .runtime.accounting import Ledger
from .runtime.batching import in_batches
from .runtime.transfer import upload


class MaskGenerator:
    """Finds an image's masks with a promptable model: `MaskGenerator(load_sam("nano")).generate(image)`.

    Thresholds that the configuration leaves open are the model's. `way` says how the work is done; by default
    as it suits the device that the model is on.
    """

    def __init__(self, sam: Sam, config: GeneratorConfig | None = None, way: Way | None = None) -> None:
        self.sam = sam
        self.config = (config or GeneratorConfig()).with_thresholds(sam.thresholds)
        kind = OnCpu if sam.device.type == "cpu" else OnDevice
        self.way: Way = way or kind(sam, self.config)

    def generate(self, image_HW3: npt.NDArray[np.uint8]) -> list[MaskRecord]:
        """All masks of one image: H×W×3 uint8 RGB. Raises ValueError for another kind of array."""
        return self.generate_batch([image_HW3])[0].masks

    def prepare(self, image_HW3: npt.NDArray[np.uint8]) -> PreparedImage:
        """Resize the whole image to the model's input, in the calling thread: `generate_batch` takes it then.

        Raises ValueError as `generate` does.
        """
        return prepare(image_HW3, self.sam.config.img_size)

    @torch.inference_mode()
    def generate_batch(self, images: Sequence[npt.NDArray[np.uint8] | PreparedImage]) -> list[GeneratedMasks]:
        """All masks of several images, prepared or as they are, with counts and timings.

        `encode_batch` crops are encoded together.
        """
        config = self.config
        pages = [page_of(image) for image in images]
        views = [
            View(page, crop)
            for page in pages
            for crop in crops_of(*page.size, config.crop_n_layers, config.crop_overlap_ratio)
        ]
        for together, encoded in in_batches(
            len(views), config.encode_batch, lambda part: (views[part], self._encode(views[part]))
        ):
            for view, found in zip(together, self.way.candidates(together, encoded), strict=True):
                view.page.candidates += found
        return [self._finish(page) for page in pages]

    def _encode(self, views: list[View]) -> EncodedImages:
        """Resize the crops to the model's input, unless that is done, and encode them in one pass.

        Its time is shared among them.
        """
        inputs, watch = [], Ledger()
        for view in views:
            with view.page.ledger.stage("resize"):
                resized_hw3 = view.page.input_hw3 if view.crop.layer == 0 else None
                if resized_hw3 is None:
                    resized_hw3 = resize_to_input(view.pixels, self.sam.config.img_size)
                inputs.append(upload(resized_hw3, self.sam.device).permute(2, 0, 1))
        with watch.stage("encode"):
            encoded = self.sam.encode(inputs)
        for view in views:
            view.page.ledger.add(watch, len(views))
        return encoded

    def _finish(self, page: Page) -> GeneratedMasks:
        """Drop duplicates between crops, paint what is left, clean it up and write it down."""
        config, ledger, found = self.config, page.ledger, page.candidates
        if config.crop_n_layers > 0:
            with ledger.stage("nms"):
                small_first = np.array([1 / candidate.view.crop.area for candidate in found], np.float32)
                keep = non_maximal_suppression(boxes_of(found), small_first, config.crop_nms_thresh)
            ledger.count(0, {"crop_nms": len(found) - len(keep)})
            found = [found[index] for index in keep]
        outlines = self.way.outlines(page, found)
        if config.min_mask_region_area > 0:
            untouched = np.array([not outline.touched for outline in outlines], np.float32)
            threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
            keep = non_maximal_suppression(boxes_of(outlines), untouched, threshold)
            ledger.count(0, {"clean_up": len(outlines) - len(keep)})
            outlines = [outlines[index] for index in keep]
        return ledger.close([outline.record() for outline in outlines])


def page_of(image: npt.NDArray[np.uint8] | PreparedImage) -> Page:
    """The image at the start of its way; raises ValueError for what is no image."""
    if not isinstance(image, PreparedImage):
        return Page(checked_image(image))
    page = Page(image.image_HW3, image.input_hw3)
    page.ledger.seconds["resize"] += image.seconds
    return page

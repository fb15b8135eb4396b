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
from .backends.cpu import CpuBackend
from .backends.device import DeviceBackend
from .candidates import Backend, CropView, ImageJob, boxes_of
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

    Thresholds that the configuration leaves open are the model's. The default backend is the one for the
    device that the model is on.
    """

    def __init__(
        self, sam: Sam, config: GeneratorConfig | None = None, backend: Backend | None = None
    ) -> None:
        self.sam = sam
        self.config = (config or GeneratorConfig()).with_thresholds(sam.thresholds)
        kind = CpuBackend if sam.device.type == "cpu" else DeviceBackend
        self.backend: Backend = backend or kind(sam, self.config)

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
        jobs = [job_of(image) for image in images]
        views = [
            CropView(job, crop)
            for job in jobs
            for crop in crops_of(*job.size, config.crop_n_layers, config.crop_overlap_ratio)
        ]
        for together, encoded in in_batches(
            len(views), config.encode_batch, lambda part: (views[part], self._encode(views[part]))
        ):
            for view, found in zip(together, self.backend.candidates(together, encoded), strict=True):
                view.job.candidates += found
        return [self._finish(job) for job in jobs]

    def _encode(self, views: list[CropView]) -> EncodedImages:
        """Resize the crops to the model's input, unless that is done, and encode them in one pass.

        Its time is shared among them.
        """
        inputs, watch = [], Ledger()
        for view in views:
            with view.job.ledger.stage("resize"):
                resized_hw3 = view.job.input_hw3 if view.crop.layer == 0 else None
                if resized_hw3 is None:
                    resized_hw3 = resize_to_input(view.pixels, self.sam.config.img_size)
                inputs.append(upload(resized_hw3, self.sam.device).permute(2, 0, 1))
        with watch.stage("encode"):
            encoded = self.sam.encode(inputs)
        for view in views:
            view.job.ledger.add(watch, len(views))
        return encoded

    def _finish(self, job: ImageJob) -> GeneratedMasks:
        """Drop duplicates between crops, paint what is left, clean it up and write it down."""
        config, ledger, found = self.config, job.ledger, job.candidates
        if config.crop_n_layers > 0:
            with ledger.stage("nms"):
                small_first = np.array([1 / candidate.view.crop.area for candidate in found], np.float32)
                keep = non_maximal_suppression(boxes_of(found), small_first, config.crop_nms_thresh)
            ledger.count(0, {"crop_nms": len(found) - len(keep)})
            found = [found[index] for index in keep]
        final_masks = self.backend.final_masks(job, found)
        if config.min_mask_region_area > 0:
            untouched = np.array([not final_mask.touched for final_mask in final_masks], np.float32)
            threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
            keep = non_maximal_suppression(boxes_of(final_masks), untouched, threshold)
            ledger.count(0, {"clean_up": len(final_masks) - len(keep)})
            final_masks = [final_masks[index] for index in keep]
        return ledger.close([final_mask.record() for final_mask in final_masks])


def job_of(image: npt.NDArray[np.uint8] | PreparedImage) -> ImageJob:
    """A new job for the image; raises ValueError for what is no image."""
    if not isinstance(image, PreparedImage):
        return ImageJob(checked_image(image))
    job = ImageJob(image.image_HW3, image.input_hw3)
    job.ledger.seconds["resize"] += image.seconds
    return job

"""The GPU's backend, on a CPU: the same masks, few waits, within its memory.

It has not been run on a GPU here. `PretendCuda` stands in for what a GPU would refuse.
"""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import maskmill.engine.resampling.painting
import maskmill.engine.runtime.transfer
from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.engine.backends.device import DeviceBackend
from maskmill.engine.codes import single
from maskmill.model import load_sam
from maskmill.model.kernels import cells
from maskmill.model.networks.sam import Sam
from tests.support.pretend_cuda import PretendCuda
from tests.support.tiny import tiny

CROPS_AND_CLEAN_UP = {"min_mask_region_area": 100, "crop_n_layers": 1, "crop_n_points_downscale_factor": 3}
OPEN = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0.3, "box_nms_thresh": 0.9}
LENIENT = {"points_per_side": 6, "pred_iou_thresh": 0.35, "stability_score_thresh": 0.5}


@pytest.fixture(autouse=True)
def _as_tensors(monkeypatch):
    """On a device nothing is compiled for a CPU."""
    monkeypatch.setattr(cells, "suits", lambda *_tensors: False)


@cache
def photograph(height: int = 200, width: int = 300) -> np.ndarray:
    return np.array(Image.fromarray(skimage.data.coffee()).resize((width, height)))


def both(sam, config, images):
    """What a CPU and what a device makes of the images."""
    return [
        MaskGenerator(sam, config, backend).generate_batch(images)
        for backend in (None, DeviceBackend(sam, config))
    ]


def overlap(one, other):
    a_HW, b_HW = single.decode(one.segmentation), single.decode(other.segmentation)
    return (a_HW & b_HW).sum() / (a_HW | b_HW).sum()


def check_same(on_cpu, on_device):
    """Pixels on the threshold may tip by rounding, and nothing else."""
    for expected, ours in zip(on_cpu, on_device, strict=True):
        assert ours.candidates == expected.candidates
        assert ours.drops == expected.drops
        for one, other in zip(ours.masks, expected.masks, strict=True):
            assert one.point_coords == other.point_coords
            assert one.crop_box == other.crop_box
            assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-5)
            assert one.stability_score == pytest.approx(other.stability_score, abs=1e-3)
            assert one.segmentation == other.segmentation or overlap(one, other) > 0.999
            assert one.area == single.area(one.segmentation)
            assert one.bbox == single.bbox(one.segmentation)


@pytest.mark.parametrize("clean_up", [{}, {"min_mask_region_area": 30}])
@pytest.mark.parametrize("crops", [{}, {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}])
@pytest.mark.parametrize("budget", [1 << 20, 8 << 30])
def test_random_weights_give_the_same_masks(crops, clean_up, budget):
    options = {"encode_batch": 3, "device_budget_bytes": budget}
    config = GeneratorConfig(**OPEN, **crops, **clean_up, **options)
    on_cpu, on_device = both(tiny(), config, [photograph(90, 120), photograph(64, 200), photograph(1, 1)])
    assert len(on_cpu[0].masks) > 1
    check_same(on_cpu, on_device)


@pytest.mark.parametrize("options", [{}, pytest.param(CROPS_AND_CLEAN_UP, marks=pytest.mark.slow)])
def test_a_photograph_gives_the_same_masks(options):
    config = GeneratorConfig(**LENIENT, **options, encode_batch=2)
    on_cpu, on_device = both(load_sam("nano"), config, [photograph()])
    assert len(on_cpu[0].masks) >= 10
    check_same(on_cpu, on_device)


@pytest.mark.parametrize("reason", ["predicted_iou", "stability", "too_large", "clean_up"])
def test_no_mask_is_left(reason):
    options = {
        "predicted_iou": {"pred_iou_thresh": 1.0},
        "stability": {"stability_score_thresh": 1.0, "stability_score_offset": 1e6},
        "too_large": {"stability_score_thresh": 0, "max_mask_area_fraction": 1e-9},
        "clean_up": {"min_mask_region_area": 90 * 120 + 1, "drop_small_masks": True},
    }
    on_cpu, on_device = both(tiny(), GeneratorConfig(**OPEN | options[reason]), [photograph(90, 120)])
    check_same(on_cpu, on_device)
    assert on_device[0].masks == []
    assert on_device[0].drops[reason] > 0


@pytest.mark.parametrize("options", [{}, {"min_mask_region_area": 1}])
def test_a_mask_of_which_painting_leaves_nothing_is_accounted_for(options, monkeypatch):
    # A pixel on the threshold may be counted by one sum and not be painted by another.
    config, paint = GeneratorConfig(**OPEN, **options), maskmill.engine.resampling.painting._paint
    monkeypatch.setattr(
        maskmill.engine.resampling.painting, "_paint", lambda *given: torch.zeros_like(paint(*given))
    )
    sam = tiny()
    (result,) = MaskGenerator(sam, config, DeviceBackend(sam, config)).generate_batch([photograph(90, 120)])
    assert result.masks == []
    assert result.drops["empty"] > 0


class SmallMemory(Sam):
    """Holds no more than so many prompts of all images, and draws no more than so many masks."""

    prompts = masks = 1 << 30

    def attend(self, images, points, labels, **options):
        if points.shape[0] * points.shape[1] > self.prompts:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().attend(images, points, labels, **options)

    def draw(self, decoded, prompt_K, token_K):
        if len(prompt_K) > self.masks:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().draw(decoded, prompt_K, token_K)


@pytest.mark.parametrize("limit", [{"prompts": 5}, {"masks": 7}])
def test_out_of_memory_halves_and_goes_on(limit):
    sam = tiny(SmallMemory)
    config = GeneratorConfig(**OPEN, encode_batch=2)
    images = [photograph(90, 120), photograph(64, 200)]
    expected = MaskGenerator(sam, config).generate_batch(images)
    for name, value in limit.items():
        setattr(sam, name, value)
    check_same(expected, MaskGenerator(sam, config, DeviceBackend(sam, config)).generate_batch(images))


@pytest.mark.usefixtures("device_guard")
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("clean_up", [0, 30])
def test_the_host_waits_a_few_times_an_image(images, clean_up):
    config = GeneratorConfig(**OPEN, encode_batch=3, min_mask_region_area=clean_up)
    photographs = [photograph(90, 120 + n) for n in range(images)]
    with PretendCuda() as device:
        generator = MaskGenerator(tiny().to("cuda"), config)
        assert isinstance(generator.backend, DeviceBackend)
        generator.generate_batch(photographs)  # what is made once for all images
        device.counts.clear()
        results = generator.generate_batch(photographs)
    assert all(result.masks for result in results)
    assert device.counts.kinds_of_waits() <= Counter(
        {
            # Tiles on edges in each view, and the runs of each image.
            "nonzero": 2 * images,
            # For predicted IoUs once, for the measures of all views once, and for each image's runs.
            "synchronize": 1 + 1 + images,
        }
    )


@pytest.mark.parametrize("clean_up", [0, 100])
def test_what_crosses_is_small(clean_up):
    # No array of the image's size comes to the host.
    sam, fetched = tiny(), []
    fetch = maskmill.engine.runtime.transfer.fetch

    def weigh(*tensors):
        fetched.extend(tensor.nbytes for tensor in tensors)
        return fetch(*tensors)

    config = GeneratorConfig(**OPEN, min_mask_region_area=clean_up)
    generator = MaskGenerator(sam, config, DeviceBackend(sam, config))
    with pytest.MonkeyPatch.context() as patch:
        for module in (maskmill.engine.resampling.painting, maskmill.engine.backends.device):
            patch.setattr(module, "fetch", weigh)
        (result,) = generator.generate_batch([photograph(1000, 1500)])
    assert len(result.masks) > 1
    assert sum(fetched) < 1000 * 1500 / 8


def test_a_large_image_is_painted_in_parts(monkeypatch):
    # `nonzero` sees no more flags than its counter holds, here 100,000, nor more than the budget allows.
    sam, config, seen = tiny(), GeneratorConfig(**OPEN), []
    nonzero = torch.Tensor.nonzero
    monkeypatch.setattr(maskmill.engine.resampling.painting, "MOST_FLAGS", 100_000)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda x, **kw: seen.append(x.numel()) or nonzero(x, **kw))
    (ours,) = MaskGenerator(sam, config, DeviceBackend(sam, config)).generate_batch([photograph(500, 700)])
    monkeypatch.undo()
    check_same(MaskGenerator(sam, config).generate_batch([photograph(500, 700)]), [ours])
    assert len(seen) > 3
    assert max(seen) <= 100_000

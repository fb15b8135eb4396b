"""The generator on a model of a few thousand random weights: what it refuses, counts and survives."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from skimage import data
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import maskmill.engine.generator
from maskmill.engine import DROP_REASONS, GeneratedMasks, GeneratorConfig, MaskGenerator
from maskmill.engine.codes import single
from maskmill.engine.runtime.accounting import STAGES
from maskmill.engine.runtime.batching import in_batches
from maskmill.model import load_sam
from maskmill.model.config import Thresholds
from maskmill.model.networks.sam import Sam
from tests.support.tiny import OPEN, tiny


class ConstantSam(Sam):
    """Draws every mask with the same logit everywhere."""

    logit = 0.0

    def draw(self, decoded, prompt_K, token_K):
        return torch.full_like(super().draw(decoded, prompt_K, token_K), self.logit)


@pytest.fixture(scope="module")
def sam():
    return tiny()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        [[[0, 0, 0]]],
    ],
)
def test_what_is_not_an_image_is_refused(sam, wrong):
    with pytest.raises(ValueError, match=r"expected .*H×W×3 uint8.* got .*"):
        MaskGenerator(sam, OPEN).generate(wrong)


def test_no_images_no_results(sam):
    assert MaskGenerator(sam, OPEN).generate_batch([]) == []


@pytest.mark.parametrize("layers", [0, 1])
def test_an_image_may_be_prepared_before_its_turn(sam, image, layers, monkeypatch):
    generator = MaskGenerator(sam, OPEN.model_copy(update={"crop_n_layers": layers, "encode_batch": 2}))
    expected = generator.generate_batch([image, image[::-1]])
    prepared = [generator.prepare(image), generator.prepare(image[::-1])]
    resize, resized = maskmill.engine.generator.resize_to_input, []
    monkeypatch.setattr(
        maskmill.engine.generator,
        "resize_to_input",
        lambda pixels, side: resized.append(pixels.shape) or resize(pixels, side),
    )
    results = generator.generate_batch(prepared)
    assert [result.masks for result in results] == [result.masks for result in expected]
    assert len(resized) == (0 if layers == 0 else 2 * 4)  # the crops of the first layer
    for result, one in zip(results, prepared, strict=True):
        assert result.seconds["resize"] > one.seconds > 0


def test_what_is_not_an_image_is_not_prepared(sam):
    with pytest.raises(ValueError, match=r"expected .*H×W×3 uint8"):
        MaskGenerator(sam, OPEN).prepare(np.zeros((5, 5), np.uint8))


def test_records_agree_with_their_masks(sam, image):
    records = MaskGenerator(sam, OPEN).generate(image)
    assert len(records) > 10
    for record in records:
        assert record.segmentation.size == (90, 120)
        assert record.area == single.area(record.segmentation) > 0
        assert record.bbox == single.bbox(record.segmentation)
        assert record.crop_box == (0, 0, 120, 90)
        assert 0 <= record.stability_score <= 1
        ((x, y),) = record.point_coords
        assert (x - 15) % 30 == 0
        assert (y - 11.25) % 22.5 == 0


@pytest.mark.parametrize("kind", ["one by one", "together", "in crops"])
def test_every_candidate_and_stage_is_accounted_for(sam, image, kind):
    config = OPEN.model_copy(update={"stability_score_thresh": 0.5, "box_nms_thresh": 0.7})
    crops = 1
    if kind == "together":
        config = config.model_copy(update={"encode_batch": 4})
    if kind == "in crops":
        config, crops = config.model_copy(update={"crop_n_layers": 1, "min_mask_region_area": 20}), 5
    results = MaskGenerator(sam, config).generate_batch([image, image[::-1, :70]])
    for result in results:  # the sum is checked at construction
        assert result.candidates == crops * 16 * 3
        assert tuple(result.drops) == DROP_REASONS
        assert tuple(result.seconds) == STAGES
        assert all(seconds > 0 for seconds in result.seconds.values())


def test_images_together_give_the_masks_of_each_alone(sam, image):
    images = [image, image[::-1, :70], image[:1, :1]]
    alone = [MaskGenerator(sam, OPEN).generate(one) for one in images]
    config = OPEN.model_copy(update={"encode_batch": 2, "points_per_batch": 5})
    for result, records in zip(MaskGenerator(sam, config).generate_batch(images), alone, strict=True):
        assert len(result.masks) == len(records)
        for ours, expected in zip(result.masks, records, strict=True):
            assert ours.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-5)
            assert ours.area == pytest.approx(expected.area, rel=0.01)


@pytest.mark.parametrize(
    ("logit", "stability", "reason"),
    [
        (-torch.inf, 0.95, "stability"),  # 0/0
        (-torch.inf, 0, "empty"),
        (0.0, 0, "empty"),  # at the threshold is not above it
        (torch.nan, 0, "empty"),
        (torch.inf, 0.95, "nms"),  # the same box for all: one stays
        (5.0, 0.95, "nms"),
    ],
)
def test_constant_masks(image, logit, stability, reason):
    sam = tiny(ConstantSam)
    sam.logit = logit
    config = OPEN.model_copy(update={"stability_score_thresh": stability, "box_nms_thresh": 0.7})
    (result,) = MaskGenerator(sam, config).generate_batch([image])
    kept = 1 if reason == "nms" else 0
    assert len(result.masks) == kept
    assert result.drops[reason] == result.candidates - kept == 48 - kept
    for record in result.masks:
        assert (record.area, record.bbox) == (90 * 120, (0, 0, 120, 90))


@pytest.mark.parametrize("reason", ["predicted_iou", "stability"])
def test_no_surviving_mask_is_an_empty_list(sam, image, reason):
    # The released generator raises here.
    threshold = {"predicted_iou": "pred_iou_thresh", "stability": "stability_score_thresh"}[reason]
    config = GeneratorConfig(
        points_per_side=4, crop_n_layers=1, min_mask_region_area=10, **{"pred_iou_thresh": 0, threshold: 1.0}
    )
    (result,) = MaskGenerator(sam, config).generate_batch([image])
    assert result.masks == []
    assert result.drops[reason] == result.candidates


def test_masks_too_large_or_too_small_for_the_paper_are_dropped(image):
    sam = tiny(ConstantSam)
    sam.logit = 5.0
    config = OPEN.model_copy(update={"max_mask_area_fraction": 0.95})
    (result,) = MaskGenerator(sam, config).generate_batch([image])
    assert result.drops["too_large"] == result.candidates

    small = OPEN.model_copy(update={"min_mask_region_area": 90 * 120 + 1, "drop_small_masks": True})
    (result,) = MaskGenerator(sam, small).generate_batch([image])
    assert result.drops["clean_up"] == result.candidates


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_crops_encoded_together(sam, image, monkeypatch, error):
    config = OPEN.model_copy(update={"encode_batch": 4, "crop_n_layers": 1})
    expected = MaskGenerator(sam, config).generate(image)
    encode, sizes = Sam.encode, []

    def encode_few(self, images):
        sizes.append(len(images))
        if len(images) > 1:
            raise error
        return encode(self, images)

    monkeypatch.setattr(Sam, "encode", encode_few)
    (result,) = MaskGenerator(sam, config).generate_batch([image])
    assert sizes == [4, 2, 1, 1, 1, 1, 1]  # the image and its four crops
    assert [record.point_coords for record in result.masks] == [record.point_coords for record in expected]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch(sam, image, monkeypatch, error):
    expected = MaskGenerator(sam, OPEN).generate(image)
    attend = Sam.attend

    def attend_to_few(self, images, points_BPN2, labels_BPN):
        if points_BPN2.shape[1] > 2:
            raise error
        return attend(self, images, points_BPN2, labels_BPN)

    monkeypatch.setattr(Sam, "attend", attend_to_few)
    (result,) = MaskGenerator(sam, OPEN).generate_batch([image])
    assert result.candidates == 48  # no prompt twice, none missing
    assert [record.point_coords for record in result.masks] == [record.point_coords for record in expected]


def test_a_batch_of_one_that_does_not_fit_and_other_errors_are_raised():
    def no_memory(part: slice) -> None:
        raise MemoryError(part)

    def broken(part: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(MemoryError, match=r"slice\(0, 1"):
        list(in_batches(9, 4, no_memory))
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(9, 4, broken))
    assert list(in_batches(0, 4, broken)) == []
    assert [part.stop - part.start for part in in_batches(9, 4, lambda part: part)] == [4, 4, 1]


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_keep_the_order_and_what_fits(lanes):
    # Slices of more than 4 do not fit; what was begun of them is begun again, and nothing comes twice.
    def work(part: slice) -> slice:
        if part.stop - part.start > 4:
            raise MemoryError
        return part

    parts = list(in_batches(30, 16, work, lanes))
    assert [part.stop for part in parts] == [*range(4, 30, 4), 30]
    assert list(in_batches(0, 16, work, lanes)) == []


def test_what_fits_alone_is_not_given_up_because_lanes_are_too_many():
    running = threading.Semaphore(1)

    def work(part: slice) -> int:
        if not running.acquire(blocking=False):
            raise MemoryError
        time.sleep(0.01)
        running.release()
        return part.start

    assert list(in_batches(8, 1, work, 4)) == list(range(8))


def test_lanes_raise_what_their_work_raises_and_end():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(in_batches(100, 1, lambda part: 1 // (part.start - 5), 2))
    assert threading.active_count() == before


def test_each_lane_has_one_core_and_the_caller_keeps_its_own(sam, image, monkeypatch):
    cores, attend, before = set(), Sam.attend, torch.get_num_threads()
    torch.set_num_threads(1)
    alone = MaskGenerator(sam, OPEN.model_copy(update={"points_per_batch": 4})).generate(image)

    def attend_and_count(self, *prompts):
        cores.add((threading.current_thread().name[:4], torch.get_num_threads()))
        return attend(self, *prompts)

    monkeypatch.setattr(Sam, "attend", attend_and_count)
    torch.set_num_threads(2)
    try:
        together = MaskGenerator(sam, OPEN.model_copy(update={"points_per_batch": 4})).generate(image)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert cores == {("lane", 1)}
    assert together == alone


def test_results_account_for_every_candidate():
    drops = dict.fromkeys(DROP_REASONS, 0)
    with pytest.raises(ValueError, match="5 candidates"):
        GeneratedMasks([], 5, drops | {"nms": 4}, {})
    with pytest.raises(ValueError, match="keys"):
        GeneratedMasks([], 4, {"nms": 4}, {})


class LargestFloats(TorchDispatchMode):
    """Remembers the most floating point numbers that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        self.numbers = max([self.numbers, *found])
        return out


def test_a_large_image_stays_within_its_memory(sam):
    # Nothing of the image's size is held: 6 million pixels would be 24 MB a mask as floats, 6 as flags.
    height, width = 2000, 3000
    config = OPEN.model_copy(update={"points_per_side": 2, "min_mask_region_area": 100})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one lane, which is this thread: others are not watched
    generator, image_HW3 = MaskGenerator(sam, config), np.zeros((height, width, 3), np.uint8)
    try:
        with LargestFloats() as largest:
            generator.generate(image_HW3)  # loads and compiles what will be needed
            tracemalloc.start()  # sees numpy's arrays
            (result,) = generator.generate_batch([image_HW3])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        torch.set_num_threads(threads)
    assert max(mask.area for mask in result.masks) > height * width / 4
    assert 0 < largest.numbers < height * width / 8
    assert peak < height * width / 3


def test_thresholds_that_are_left_open_are_the_models():
    sam = tiny()
    sam.thresholds = Thresholds(0.25, 0.75)

    def thresholds(**options):
        config = MaskGenerator(sam, GeneratorConfig(**options)).config
        return config.pred_iou_thresh, config.stability_score_thresh

    assert thresholds() == thresholds(points_per_side=4) == (0.25, 0.75)
    assert thresholds(pred_iou_thresh=0) == (0, 0.75)
    assert thresholds(stability_score_thresh=0.5) == (0.25, 0.5)
    assert MaskGenerator(sam).config == GeneratorConfig(pred_iou_thresh=0.25, stability_score_thresh=0.75)


def test_the_bundled_model_finds_masks_by_itself():
    """With thresholds that were chosen for ViT-H it finds one on this photograph."""
    generator = MaskGenerator(load_sam("nano"), GeneratorConfig(points_per_side=16))
    strict = GeneratorConfig(points_per_side=16, pred_iou_thresh=0.88, stability_score_thresh=0.95)
    photograph = data.coffee()
    assert (
        len(generator.generate(photograph))
        >= 5
        > len(MaskGenerator(generator.sam, strict).generate(photograph))
    )

"""Two batches in flight on a device, each in a thread of its own."""

from concurrent.futures import ThreadPoolExecutor

import torch

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.engine.backends import device
from maskmill.engine.backends.device import DeviceBackend
from maskmill.engine.candidates import CropView, ImageJob
from maskmill.engine.grid import crops_of
from maskmill.model.kernels import cells
from maskmill.model.networks.image_encoder import one_hot_cells
from tests.engine.backends.test_device import OPEN, photograph
from tests.support.tiny import tiny


def masks(results):
    """All that was found, without the time that it took."""
    return [(result.masks, result.candidates, result.drops) for result in results]


def test_two_threads_find_what_one_finds_and_make_shared_tensors_once(monkeypatch):
    monkeypatch.setattr(cells, "suits", lambda *_tensors: False)
    sam = tiny()
    config = GeneratorConfig(**OPEN, encode_batch=2, min_mask_region_area=30)
    generator = MaskGenerator(sam, config, DeviceBackend(sam, config))
    batches = [[photograph(90, 120), photograph(120, 90)], [photograph(90, 120), photograph(60, 80)]] * 2
    expected = [masks(generator.generate_batch(batch)) for batch in batches]
    made, make = [], device._resampler._make
    for kept in (device._resampler, one_hot_cells):
        kept.cache_clear()
    monkeypatch.setattr(device._resampler, "_make", lambda *key: made.append(key[2]) or make(*key))
    with ThreadPoolExecutor(2) as threads:
        found = [masks(results) for results in threads.map(generator.generate_batch, batches)]
    assert found == expected
    assert sorted(made) == [(60, 80), (90, 120), (120, 90)]


def test_a_way_that_is_asked_by_itself_keeps_no_gradients():
    sam = tiny()
    config = GeneratorConfig(**OPEN).with_thresholds(sam.thresholds)
    job = ImageJob(photograph(90, 120))
    (crop,) = crops_of(90, 120, 0, 0.3)
    with torch.no_grad():
        encoded = sam.encode([torch.zeros(3, 48, 64)])
    (found,) = DeviceBackend(sam, config).candidates([CropView(job, crop)], encoded)
    assert found
    assert not any(candidate.patch.values_hw.requires_grad for candidate in found)

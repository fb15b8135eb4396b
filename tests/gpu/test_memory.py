"""The GPU's memory: within the budget, and what happens where there is less of it than that."""

import gc
import logging

import pytest
import torch

from benchmarks.gpu import parity
from benchmarks.gpu.agreement import count, matched_share
from benchmarks.gpu.scenes import scenes
from maskmill.engine.geometry import resize_to_input
from maskmill.engine.runtime.transfer import upload

MIB = 1 << 20
SLACK = 32 * MIB
"""What a product's workspace and the allocator's rounding take."""


@pytest.fixture
def sam(gpu):
    yield parity.loaded(gpu)
    torch.cuda.set_per_process_memory_fraction(1.0)


def peak_of(work):
    """Bytes that are held at most during the work, beyond those that are held before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@torch.inference_mode()
def encode(sam, images):
    """As the generator encodes them."""
    side = sam.config.img_size
    return sam.encode([upload(resize_to_input(x, side), sam.device).permute(2, 0, 1) for x in images])


@pytest.mark.parametrize("budget", [64 * MIB, 512 * MIB])
@pytest.mark.parametrize("larger", [1, 8])
def test_the_peak_is_within_the_budget(gpu, sam, budget, larger):
    images = [image.repeat(larger, 0).repeat(larger, 1) for image in scenes(2, 384, 512)]
    generator = parity.on(gpu, parity.lenient(32, encode_batch=2, device_budget_bytes=budget), sam)
    generator.generate_batch(images)  # what is made once
    encoding = peak_of(lambda: encode(sam, images))
    assert peak_of(lambda: generator.generate_batch(images)) <= encoding + budget + SLACK


def test_where_memory_ends_batches_are_halved_and_the_masks_stay(gpu, sam, caplog):
    images = scenes(1, 384, 512)
    generator = parity.on(gpu, parity.lenient(32), sam)
    expected = generator.generate_batch(images)
    encoding, peak = peak_of(lambda: encode(sam, images)), peak_of(lambda: generator.generate_batch(images))
    room = max(encoding + 16 * MIB, peak // 3)
    assert room < peak / 2, "too little to tell"
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
    with caplog.at_level(logging.WARNING):
        ours = generator.generate_batch(images)
    assert "out of memory; going on with batches of" in caplog.text
    assert count(ours) > 0
    # Smaller products are added up in another order.
    assert matched_share(ours, expected, 0.99) >= 0.98

"""The masks that a device makes: the CPU's, in every precision, thread and compiled form, up to rounding.

Sums are added up in another order there, so that a pixel on a threshold may tip, and a mask whose score is on
one. 99 of 100 masks have a partner of IoU 0.99 or more; two runs on the same device are the same to the byte.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.gpu import parity
from benchmarks.gpu.agreement import count, matched_share, same_codes

FEWEST = {"cuda": 200, "cpu": 10}
"""Masks of all images: with fewer a share says little."""


def test_fp32_gives_the_cpus_masks(device, images, config, reference):
    ours = parity.on(device, config).generate_batch(images)
    assert count(reference) >= FEWEST[device.type]
    assert matched_share(ours, reference, 0.99) >= 0.99


def test_fp32_means_fp32(gpu):
    # 10 bits of TF32 are off by 1e-3 where 23 of fp32 are by 1e-6, or 1e-5 by Winograd's way.
    parity.loaded(gpu)
    a, b = (torch.rand(512, 512, dtype=torch.float64) for _ in range(2))
    ours = (a.float().to(gpu) @ b.float().to(gpu)).double().cpu()
    assert ((ours - a @ b).abs() / (a @ b)).max() < 1e-4
    image, kernel = torch.rand(1, 64, 64, 64, dtype=torch.float64), torch.rand(64, 64, 3, 3).double()
    exact = torch.nn.functional.conv2d(image, kernel)
    ours = torch.nn.functional.conv2d(image.float().to(gpu), kernel.float().to(gpu)).double().cpu()
    assert ((ours - exact).abs() / exact).max() < 1e-4


def test_the_fast_precision_keeps_the_masks(device, images, config):
    reference = parity.on(device, config).generate_batch(images)
    fast = parity.loaded(device, "bf16")
    ours = parity.on(device, config, fast).generate_batch(images)
    assert count(reference) >= FEWEST[device.type]
    assert matched_share(ours, reference, 0.95) >= 0.97


def test_two_runs_are_the_same(device, images, config):
    generator = parity.on(device, config)
    assert same_codes(generator.generate_batch(images), generator.generate_batch(images))


def test_two_threads_give_what_one_does(device, images, config):
    # A worker has two batches in flight. They share the network and what is kept on the device; fresh ones,
    # so that both ask for the same tables at once.
    generator, halves = parity.on(device, config), (images[::2], images[1::2])
    expected = [generator.generate_batch(half) for half in halves]
    generator = parity.on(device, config)
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            for ours, one in zip(pool.map(generator.generate_batch, halves), expected, strict=True):
                assert same_codes(ours, one)


@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile wants a C compiler")
def test_a_compiled_encoder_gives_the_same_masks(device, images, config):
    images, config = images[:4], config.model_copy(update={"encode_batch": 1})  # compiled for one at a time
    reference = parity.on(device, config).generate_batch(images)
    sam = parity.loaded(device)
    sam.compile_encoder()
    counters.clear()
    ours = parity.on(device, config, sam).generate_batch(images)
    assert counters["stats"]["unique_graphs"] >= 1, "it was not compiled"
    assert matched_share(ours, reference, 0.99) >= 0.99

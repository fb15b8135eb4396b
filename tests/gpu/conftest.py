"""Tests of the device's backend: on a GPU where there is one, and their bodies on a CPU as slow tests.

Nothing here imports more than torch, numba, numpy, pyarrow, Pillow, pydantic, PyYAML, safetensors and pytest,
so that they run on a machine that was lent as it is: benchmarks/README.md says how.
"""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where maskmill is not installed

from benchmarks.gpu import parity
from benchmarks.gpu.scenes import scenes

GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")],
)


@pytest.fixture(params=[GPU, pytest.param("cpu", marks=pytest.mark.slow)])
def device(request) -> torch.device:
    """A GPU; and the CPU in its place, so that a test's body does not run for the first time on a GPU."""
    yield torch.device(request.param)
    if request.param == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(params=[GPU])
def gpu(request) -> torch.device:
    """For what a CPU has nothing in place of."""
    yield torch.device(request.param)
    torch.cuda.empty_cache()


@pytest.fixture
def images(device):
    """Drawn scenes: some 400 masks' worth on a GPU."""
    return drawn(device.type)


@pytest.fixture
def config(device):
    """Options that leave some dozens of masks a scene."""
    return options(device.type)


@pytest.fixture
def reference(device):
    """What the CPU makes of the images."""
    return on_cpu(device.type)


@cache
def drawn(kind):
    return scenes(16, 384, 512) if kind == "cuda" else scenes(2, 192, 256)


@cache
def options(kind):
    return parity.lenient(16 if kind == "cuda" else 5, encode_batch=4)


@cache
def on_cpu(kind):
    return parity.on_cpu(options(kind), drawn(kind))

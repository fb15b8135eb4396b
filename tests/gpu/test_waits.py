"""Where the host waits for the GPU: where it counts what there is to do, and where it fetches results."""

import sys
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.gpu import parity
from benchmarks.gpu.scenes import scenes

COUNTS = {torch.Tensor.nonzero, torch.nonzero}
KNOWN = ("fetch", "wait_until_made")
"""Functions of the engine's and the model's that wait, and say so."""


@contextmanager
def allowed():
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


class CountsMayWait(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COUNTS:
            with allowed():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def let_known_waits_be(monkeypatch):
    """Wherever a module has one of them by name."""

    def waiting(function):
        def wrapped(*args, **kwargs):
            with allowed():
                return function(*args, **kwargs)

        return wrapped

    for name, module in list(sys.modules.items()):
        if name.startswith(("maskmill.engine", "maskmill.model.networks")):
            for known in KNOWN:
                if callable(function := vars(module).get(known)):
                    monkeypatch.setattr(module, known, waiting(function))


def test_nothing_else_waits(gpu, monkeypatch):
    images = scenes(2, 384, 512)
    config = parity.lenient(12, encode_batch=2, crop_n_layers=1, min_mask_region_area=50)
    generator = parity.on(gpu, config)
    expected = generator.generate_batch(images)  # whatever is made once has been made
    let_known_waits_be(monkeypatch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with CountsMayWait():
            ours = generator.generate_batch(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(one.masks) for one in ours] == [len(one.masks) for one in expected]

"""Tensors that are made once for a device: by one thread, waited for, and fit for training."""

from __future__ import annotations

import ast
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskmill.model.networks import device_tensors
from maskmill.model.networks.device_tensors import kept_on_device, on_device
from maskmill.model.networks.image_encoder import axis_distances, one_hot_cells
from maskmill.model.networks.sam import pixel_statistics

CPU = torch.device("cpu")


def test_two_threads_get_the_same_tensor_once_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def wait(device: torch.device) -> None:
        time.sleep(0.05)  # the device is still at work on it, and the other thread comes
        events.append(f"ready on {device}")

    @kept_on_device(2)
    def ones(count: int, device: torch.device) -> Tensor:
        events.append(f"made {count}")
        return torch.ones(count, device=device)

    monkeypatch.setattr(device_tensors, "wait_until_made", wait)
    together = threading.Barrier(2)

    def ask(_thread: int) -> Tensor:
        together.wait()
        made = ones(3, CPU)
        events.append("handed out")
        return made

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(ask, range(2))
    assert one is other
    assert events == ["made 3", "ready on cpu", "handed out", "handed out"]
    ones(4, CPU)
    ones.cache_clear()
    ones(4, CPU)
    assert events[4:] == ["made 4", "ready on cpu"] * 2


@pytest.mark.parametrize(
    ("kept", "key"),
    [
        (pixel_statistics, (CPU,)),
        (axis_distances, (3, CPU)),
        (one_hot_cells, (2, 3, 3, torch.float32, CPU)),
    ],
)
def test_what_generation_has_made_serves_training(kept, key) -> None:  # type: ignore[no-untyped-def]
    kept.cache_clear()
    with torch.inference_mode():
        made = kept(*key)
    for tensor in made if isinstance(made, tuple) else (made,):
        assert not tensor.is_inference()


def test_cells_are_named_by_row_and_column_and_filled_up_with_zeros() -> None:
    expected = [[1, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0]]
    assert one_hot_cells(2, 2, 2, torch.float32, CPU).tolist() == expected


def test_what_goes_to_a_gpu_goes_from_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: seen.append("locked") or x)
    monkeypatch.setattr(Tensor, "to", lambda x, *_to, **how: seen.append(how) or x)
    on_device(torch.ones(2), torch.device("cuda"))
    assert seen == ["locked", {"non_blocking": True}]
    seen.clear()
    on_device(torch.ones(2), CPU)
    assert seen == [{"non_blocking": True}]


def calls_of(folders: list[str]) -> Iterator[tuple[str, str]]:
    """(file, source) of every call in these folders of the checkout."""
    root = Path(__file__).parents[3]
    for path in (path for folder in folders for path in sorted((root / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(root).as_posix(), ast.unparse(node)


def test_nothing_else_copies_to_a_device() -> None:
    copies = re.compile(r"\.to\([^()]*\bdevice\b|\.cuda\(|torch\.(as_)?tensor\(.*\bdevice=")
    found = {path for path, call in calls_of(["engine", "model/networks"]) if copies.search(call)}
    assert found == {"model/networks/device_tensors.py"}


def test_nothing_else_calls_pytorchs_attention() -> None:
    calls = [path for path, call in calls_of(["model"]) if call.startswith("F.scaled_dot_product")]
    # The third is for a CPU, a few rows of queries at a time.
    assert calls == ["model/networks/attention.py"] * 2 + ["model/networks/image_encoder.py"]

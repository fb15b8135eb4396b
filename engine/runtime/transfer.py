"""What crosses between the host and a device, and where the host waits for it.

A device works through a queue; whoever reads a result waits until the queue is empty, and then the device
waits for the host. So nothing else in the engine reads a device's numbers: `fetch` does, many at once.
On a CPU nothing crosses and nobody waits, but tests count the calls.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ...model.networks.device_tensors import on_device


def fetch(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """Copy tensors of one device to the host, waiting once for all of them."""
    copies = [tensor.to("cpu", copy=True, non_blocking=True) for tensor in tensors]
    if tensors and tensors[0].device.type == "cuda":
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device without waiting: from locked memory, which the device reads by itself.

    On a CPU it is the array's own memory.
    """
    return on_device(torch.from_numpy(array), device)

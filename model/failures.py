"""What an error of torch's says of the machine: that memory ran out, or that a GPU failed."""

from __future__ import annotations

import torch

MEMORY_MESSAGES = (
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its workspace did not fit
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
)
"""What torch's CPU allocator and CUDA's libraries say where memory runs out, as a plain RuntimeError."""

DEVICE_MESSAGES = (
    *("CUDA error", "CUDA driver error", "cuda runtime error", "Triton Error [CUDA]"),
    *("CUBLAS_STATUS_", "CUDNN_STATUS_", "CUSOLVER_STATUS_"),
)
"""What torch says of any other failure on a GPU, as a RuntimeError or one of its kind."""

NO_CODE = "no kernel image is available"
"""The build of torch has no code for this GPU."""

WRONG_CALLS = (
    *("_STATUS_NOT_SUPPORTED", "_STATUS_INVALID_VALUE", "_STATUS_BAD_PARAM", "_STATUS_ARCH_MISMATCH"),
    *("invalid argument", "invalid configuration argument", "invalid device function"),
    *("device-side assert", NO_CODE),
)
"""What the same messages say of a call that would fail on every GPU: this one is not to blame."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or the CPU, in torch or in Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MEMORY_MESSAGES)


def is_device_failure(error: BaseException) -> bool:
    """Whether a GPU failed, for another reason than memory: this process cannot use it any more."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    kind = getattr(torch, "AcceleratorError", ())  # since torch 2.8
    of_device = isinstance(error, kind) or any(message in str(error) for message in DEVICE_MESSAGES)
    return of_device and not any(message in str(error) for message in WRONG_CALLS)

"""Tensors out of a file, and nothing else out of it; and into one, the same bytes each time.

A pickle is read by `torch.load(weights_only=True)`, which builds tensors and runs nothing: a file that asks
for more is refused. What kind of file it is shows in its first bytes; the name may be anything.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .finding import EXPECTED, damage_told, start_of

NAMED = 4  # names that an error spells out
# What torch raises over a damaged pickle; flipped and missing bytes were tried by the thousand.
DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and, from safetensors, the metadata (otherwise empty); names are as in the file.

    Tensors are mapped rather than read where the format allows. Raises CheckpointError for anything else.
    """
    start = start_of(path)
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith(b"PK\x03\x04"):
        return _tensors_of(_unpickle(path, mmap=True), path), {}
    if start.startswith(b"\x80"):  # PyTorch before 1.6
        return _tensors_of(_unpickle(path, mmap=False), path), {}
    raise CheckpointError(f"{path} {'is no checkpoint' if start else 'is empty'}: {EXPECTED}")


def write_tensors(state: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write safetensors whose bytes depend on nothing but the tensors and the metadata.

    The library leaves the order of the metadata to chance, and a checkpoint is known by its sha256: put it in
    order, which takes as many bytes.
    """
    save_file(state, path, dict(metadata))
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(metadata.items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length))


def listed(names: list[str]) -> str:
    """“a, b, c, d, …”: the first few of many, for an error that gives their number beside."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with damage_told(path), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _unpickle(path: Path, mmap: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        asks = re.search(r"[^\n]*unsupported[^\n]*", str(error), re.IGNORECASE)
        if asks:  # torch goes on to advise reading it all the same: leave that out
            wants = asks[0].removeprefix("WeightsUnpickler error: ")
            raise CheckpointError(f"{path} is refused, it asks for more than tensors: {wants}") from error
        raise CheckpointError(f"{path} is damaged: its pickle cannot be read") from error
    except DAMAGE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged: {reason}") from error


def _tensors_of(loaded: object, path: Path) -> dict[str, Tensor]:
    """Take the state dict out of what was unpickled, unwrapped from {"model": …} or {"state_dict": …}."""
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in ("model", "state_dict") if key in loaded), loaded)
        loaded = inner if isinstance(inner, Mapping) else loaded
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a state dict")
    odd = [f"{key}: {type(value).__name__}" for key, value in loaded.items() if not isinstance(value, Tensor)]
    if odd or not loaded:
        raise CheckpointError(f"{path} is not a state dict; not tensors: {listed(odd) or 'it is empty'}")
    return dict(loaded)

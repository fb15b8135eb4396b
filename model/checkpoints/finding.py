"""Which file the weights are in, and what it says of itself beside its tensors: all without loading torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..config import MODELS, THRESHOLDS, Thresholds
from .errors import CheckpointError
from .zoo import bundled, cached, how_to_get, nearest, sha256_of

EXPECTED = "expected a PyTorch file (.pth, .pt) or safetensors"


def recommended_thresholds(name: str, checkpoint: str | Path | None = None) -> Thresholds:
    """The `thresholds` of what `load_sam` would load, without loading it. Raises CheckpointError."""
    path = find_checkpoint(name, checkpoint)
    return thresholds_of(name, read_metadata(path), path)


def find_checkpoint(name: str, checkpoint: str | Path | None = None) -> Path:
    """Say where `load_sam` takes the weights from, without opening the file.

    Raises CheckpointError for an unknown name, and where there are no weights.
    """
    if name not in MODELS:
        raise CheckpointError(f"unknown model {name!r}; {nearest(name, MODELS)}")
    if checkpoint is not None:
        return Path(os.path.expanduser(checkpoint))  # noqa: PTH111  (pathlib raises for an unknown user)
    path = bundled(name) or cached(name)
    if path is None:
        raise CheckpointError(f"no weights for {name}: {how_to_get(name)}")
    return path


def checkpoint_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a checkpoint file. Raises CheckpointError if it cannot be read."""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise unreadable(Path(path), error) from error


def thresholds_of(name: str, metadata: Mapping[str, str], path: Path) -> Thresholds:
    """The thresholds in the file's metadata, else those of the published model."""
    if "thresholds" not in metadata:
        return THRESHOLDS[name]
    try:
        return Thresholds(**json.loads(metadata["thresholds"]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} has invalid `thresholds` in its metadata: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, without reading a tensor; empty where it is no safetensors file.

    Raises CheckpointError where the file cannot be read, or is a damaged safetensors file.
    """
    if start_of(path)[8:] != b"{":
        return {}
    with damage_told(path), safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def start_of(path: Path) -> bytes:
    """Nine bytes: a safetensors file opens with the length of its header, any eight, and a brace."""
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Describe a file that the system would not let us read."""
    return CheckpointError(f"cannot read checkpoint {path}: {error.strerror}; {EXPECTED}")


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what the library raises over a damaged file into a CheckpointError."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{path} is a damaged safetensors file: {error}") from error

"""A run's only checkpoint: it is read and written whole, and only by the run that it belongs to."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...model.checkpoints.tensor_file import DAMAGE
from ..errors import ConfigError, IncompleteRun
from ..storage import atomic


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: a kill leaves the old or the new one. `state` has a `config`.

    Raises IncompleteRun if it cannot be written; the old one stays then.
    """
    with writing(path):
        atomic.replace(path, lambda file: torch.save(state, file))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what goes wrong while `path` is written as IncompleteRun, so that the same command goes on."""
    try:
        with atomic.failing_as(IncompleteRun, path):
            yield
    except RuntimeError as error:  # what torch makes of a disk that is full
        if not isinstance(error.__context__, OSError):
            raise
        raise IncompleteRun(f"{path}: cannot be written: {error.__context__.strerror}") from None


@contextmanager
def read_checkpoint(path: Path, device: torch.device, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Read the checkpoint's state, for the block to load.

    Raises ConfigError if it is damaged, does not fit what the block loads it into, or belongs to a run with
    another `config`.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        changed = list(_differences(state["config"], config))
        if changed:
            raise ConfigError(
                f"{path} is of another run: {'; '.join(changed)}; give the old values, or another out"
            )
        yield state
    except (OSError, pickle.UnpicklingError, *DAMAGE) as error:
        raise ConfigError(
            f"{path} is damaged or no checkpoint of this program: {type(error).__name__}; "
            f"remove it to start anew, or give another out"
        ) from error


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """`a.b was 1, now 2` for every value that differs between two trees of JSON."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield f"{key} was {json.dumps(old)}, now {json.dumps(new)}"

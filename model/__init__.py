"""Networks, weights and losses: knows torch and nothing else of ours. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.checkpoint import CheckpointError, load_sam
    from model.config import MODELS, SamConfig
    from model.sam import Sam

_HOME = {
    "CheckpointError": "model.checkpoint",
    "MODELS": "model.config",
    "Sam": "model.sam",
    "SamConfig": "model.config",
    "load_sam": "model.checkpoint",
}
__all__ = ["MODELS", "CheckpointError", "Sam", "SamConfig", "load_sam"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

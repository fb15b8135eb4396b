"""Networks, weights and losses: knows torch and nothing else of ours. Names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "maskmill.model":
    raise ImportError("import maskmill.model, not model")  # no file is loaded under two names

if TYPE_CHECKING:
    from .checkpoints.errors import CheckpointError
    from .checkpoints.loading import load_sam
    from .config import MODELS, SamConfig
    from .networks.sam import Sam
else:
    _HOMES = {
        "CheckpointError": ".checkpoints.errors",
        "MODELS": ".config",
        "Sam": ".networks.sam",
        "SamConfig": ".config",
        "load_sam": ".checkpoints.loading",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_HOMES[name], __name__), name)


__all__ = ["MODELS", "CheckpointError", "Sam", "SamConfig", "load_sam"]

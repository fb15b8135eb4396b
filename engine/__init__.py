"""One image: pixels in, mask records out. Knows `model`; no files, no Ray.

Names are imported when they are first used, so that `engine.rle` and `engine.records` come without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config import GeneratorConfig as GeneratorConfig
    from engine.generator import MaskGenerator as MaskGenerator
    from engine.records import DROP_REASONS as DROP_REASONS
    from engine.records import GeneratedMasks as GeneratedMasks
    from engine.records import MaskRecord as MaskRecord
    from engine.records import Rle as Rle

_HOMES = {
    "DROP_REASONS": "engine.records",
    "GeneratedMasks": "engine.records",
    "GeneratorConfig": "engine.config",
    "MaskGenerator": "engine.generator",
    "MaskRecord": "engine.records",
    "Rle": "engine.records",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

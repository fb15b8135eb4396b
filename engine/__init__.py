"""One image: pixels in, mask records out. Knows `model`; no files, no Ray.

Names are imported when they are first used, so that run-length codes and records come without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "maskmill.engine":
    raise ImportError("import maskmill.engine, not engine")  # no file is loaded under two names

if TYPE_CHECKING:
    from .config import GeneratorConfig
    from .generator import MaskGenerator
    from .records import DROP_REASONS, GeneratedMasks, MaskRecord, Rle
else:
    _HOMES = {
        "DROP_REASONS": ".records",
        "GeneratedMasks": ".records",
        "GeneratorConfig": ".config",
        "MaskGenerator": ".generator",
        "MaskRecord": ".records",
        "Rle": ".records",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_HOMES[name], __name__), name)


__all__ = ["DROP_REASONS", "GeneratedMasks", "GeneratorConfig", "MaskGenerator", "MaskRecord", "Rle"]

"""A corpus for PyTorch: `CorpusStream`, `CorpusImages`, `for_detection`."""

from .collate import for_detection
from .indexed import CorpusImages
from .stream import CorpusStream

__all__ = ["CorpusImages", "CorpusStream", "for_detection"]

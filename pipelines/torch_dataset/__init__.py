"""A corpus for PyTorch: `CorpusStream`, `CorpusImages`, `for_detection`."""

from .stream import CorpusImages, CorpusStream, for_detection

__all__ = ["CorpusImages", "CorpusStream", "for_detection"]

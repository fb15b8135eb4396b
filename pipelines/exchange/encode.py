"""The pictures that an export writes: photographs as SA-1B has them, and label maps."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..corpus.reader import Corpus
from ..decoding.image import decode_image, sniff
from ..errors import CorpusError, InputRejected

JPEG_QUALITY = 95
"""Of photographs that have to be encoded anew, with colour at full resolution (4:4:4)."""

_LONGEST_JPEG_SIDE = 65_500  # libjpeg's limit
_MOST_LABELS = 0xFFFF


def upright_jpeg(corpus: Corpus, row: Mapping[str, Any]) -> bytes:
    """The image of a row as an upright JPEG file: its own bytes where they are one, else its pixels encoded.

    Raises CorpusError where the file is missing, has changed, or has more pixels than a JPEG can.
    """
    data, key = corpus.originals.read(row), row["key"]
    try:
        if sniff(data) == "JPEG" and row["orientation"] not in range(2, 9):
            return data
        pixels_HW3 = decode_image(data, 2 * row["width"] * row["height"]).pixels_HW3
    except InputRejected as error:
        raise CorpusError(f"{key}: the image cannot be decoded: {error.message}") from None
    if max(pixels_HW3.shape) > _LONGEST_JPEG_SIDE:
        raise CorpusError(f"{key}: a side of a JPEG has at most {_LONGEST_JPEG_SIDE} pixels")
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def label_png(labels_HW: npt.NDArray[np.int32], key: str) -> bytes:
    """A label map as a grey PNG of 16 bits; CorpusError where it has more labels than those hold."""
    if labels_HW.max(initial=0) > _MOST_LABELS:
        raise CorpusError(f"{key}: more than {_MOST_LABELS} masks, which a label map of 16 bits cannot hold")
    file = io.BytesIO()
    Image.fromarray(labels_HW.astype(np.uint16)).save(file, "PNG")
    return file.getvalue()

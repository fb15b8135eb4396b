"""The statistics of a COCO file, to compare a corpus with: read as a stream, never as a whole.

Only the size of each image and its number of masks are kept. Sizes may stand behind the annotations, so the
file is read twice. Polygons and uncompressed run lengths are converted to runs first. Nothing in the file is
trusted: a value that is not as COCO has it is an error that names its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from ...engine.codes import single
from ..errors import CorpusError, UsageError
from ..extras import pip_install
from ..labelled.image import MAX_SIDE
from .concavity import concavities
from .statistics import Statistics

_PIECE = 4096


def coco_statistics(path: Path, with_concavity: bool = True) -> Statistics:
    """The statistics of a COCO file, with scores if its annotations have them under SA-1B's names.

    Raises CorpusError if it cannot be read as such a file, UsageError if ijson is not installed.
    """
    found = Statistics(path.name)
    sizes: dict[int, tuple[int, int]] = {}
    masks: Counter[int] = Counter()
    for image in _items(path, "images.item"):
        try:
            identity, height, width = (_whole(image[name]) for name in ("id", "height", "width"))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, "an image", image, error) from None
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise CorpusError(f"{path}: image {identity}: its size is {width}×{height}")
        sizes[identity] = height, width
    pieces: list[tuple[float, list[float], int, int]] = []
    for annotation in _items(path, "annotations.item"):
        try:
            image_id = _whole(annotation["image_id"])
            height, width = sizes[image_id]
            box = [float(value) for value in annotation["bbox"]]
            if len(box) != 4:
                raise ValueError("a box has four numbers")
            masks[image_id] += 1
            pieces.append((float(annotation["area"]), box, width, height))
            for name, histogram in (
                ("predicted_iou", found.predicted_iou),
                ("stability_score", found.stability),
            ):
                if annotation.get(name) is not None:
                    histogram.add([float(annotation[name])])
            if with_concavity:
                code = _code(annotation["segmentation"], (height, width))
                sides = np.array([height]), np.array([width])
                found.concavity.add(concavities(pa.array([code]), *sides))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _damaged(path, "an annotation", annotation, error) from None
        if len(pieces) == _PIECE:
            _add(found, pieces)
            pieces.clear()
    _add(found, pieces)
    found.counts.update({"images": len(sizes), "ok": len(masks), "empty": len(sizes) - len(masks)})
    found.masks_per_image.add(masks[image_id] for image_id in sizes)
    if sizes:
        heights, widths = np.array(list(sizes.values()), np.float64).T
        found.add_images(widths, heights)
    return found


def _items(path: Path, prefix: str) -> Iterator[Any]:
    try:
        import ijson
    except ImportError:
        raise UsageError(f"reading a COCO file needs ijson: {pip_install('report')}") from None
    try:
        with path.open("rb") as file:
            yield from ijson.items(file, prefix, use_float=True)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not JSON: {' '.join(str(error).split())[:200]}") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from None


def _add(found: Statistics, pieces: list[tuple[float, list[float], int, int]]) -> None:
    if pieces:
        areas, boxes, widths, heights = zip(*pieces, strict=True)
        sizes = np.asarray(widths, np.float64), np.asarray(heights, np.float64)
        found.add_masks(np.asarray(areas), np.asarray(boxes), *sizes)


def _code(segmentation: Any, size: tuple[int, int]) -> str:
    """A mask's compressed run lengths, from any of COCO's three forms."""
    height, width = size
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        for polygon in polygons:
            if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError("a polygon has three points or more")
            if not (np.abs(polygon) <= 2 * max(size)).all():
                raise ValueError("a polygon lies outside its image")
        merged = coco.merge(coco.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
        return str(merged["counts"].decode("ascii"))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"the mask is for {segmentation['size']}, its image is {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return counts
    lengths = np.asarray([_whole(count) for count in counts], np.int64)
    if (lengths < 0).any() or (lengths > height * width).any() or lengths.sum() != height * width:
        raise ValueError("the runs do not fill the image")
    return single.from_run_lengths(lengths, size).counts


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {str(value)[:40]!r}")
    return value


def _damaged(path: Path, what: str, item: Any, error: Exception) -> CorpusError:
    named = f" {item['id']}" if isinstance(item, dict) and isinstance(item.get("id"), int) else ""
    reason = f"no {error}" if isinstance(error, KeyError) else str(error)
    return CorpusError(f"{path}: not as COCO has it: {what}{named}: {' '.join(reason.split())[:200]}")

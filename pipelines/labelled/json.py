"""Labelled images from JSON: COCO's, one file for all of them, and SA-1B's, one beside each photograph.

Masks are polygons, run lengths, or compressed run lengths. Crowds (`iscrowd`) are left out: one mask over
many objects is no mask of an object. What is read may come from anywhere: each code is checked before
pycocotools sees it, and polygons are cut off at the photograph's edge. The source is the form, `coco` or
`sa1b`, not the name of a file: one that moves sets the same images aside for validation.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from ..errors import ConfigError
from .image import MAX_SIDE, LabelledImage, PhotographFile, checked_rle

log = logging.getLogger("maskmill.train")

_FARTHEST = 1e12
"""Pixels that a polygon may go beyond its photograph: what is cut off is reckoned with."""


def read_coco(path: Path, photographs: Path) -> list[LabelledImage]:
    """The images of a COCO JSON that have a mask.

    Raises ConfigError: no JSON, not COCO's, a photograph that is not there, a mask that is not right.
    """
    content = _read(path)
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ConfigError(f"{path}: not COCO's JSON: it has no lists of images and annotations")
    masks: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    crowds = 0
    sizes = {_entry(path, "image", image, "id"): image for image in images}
    for annotation in annotations:
        of = _entry(path, "annotation", annotation, "image_id")
        if of not in sizes:
            raise ConfigError(f"{path}: annotation {annotation.get('id')}: there is no image {of}")
        if annotation.get("iscrowd"):
            crowds += 1
            continue
        mask = _mask(path, annotation, _size(path, sizes[of]))
        if mask is not None:
            masks[of].append(mask)
    if crowds:
        log.info("%s: %d crowd annotations left out", path, crowds)
    found = []
    for image_id, rles in masks.items():
        file = photographs / str(_entry(path, "image", sizes[image_id], "file_name"))
        if not _is_file(file):
            raise ConfigError(
                f"{path}: image {image_id}: no file {file}; set photographs to the folder of the images"
            )
        found.append(LabelledImage(str(image_id), PhotographFile(file, path.name), "coco", tuple(rles)))
    return found


def read_sa1b(folder: Path) -> list[LabelledImage]:
    """The images of a folder of SA-1B, photographs and their JSON side by side.

    Raises ConfigError: not such JSON, a photograph that is not there, a mask that is not right.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        content = _read(path)
        image, annotations = content.get("image"), content.get("annotations")
        if not isinstance(image, dict) or not isinstance(annotations, list):
            raise ConfigError(f"{path}: not SA-1B's JSON: it has no image and no list of annotations")
        size = _size(path, image)
        rles = [_mask(path, annotation, size) for annotation in annotations]
        file = folder / str(_entry(path, "image", image, "file_name"))
        if not _is_file(file):
            raise ConfigError(f"{path}: no file {file}")
        if kept := tuple(mask for mask in rles if mask is not None):
            image_id = str(image.get("image_id", path.stem))
            found.append(LabelledImage(image_id, PhotographFile(file, path.name), "sa1b", kept))
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file could have
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object of JSON, got {type(content).__name__}")
    return content


def _entry(path: Path, what: str, of: Any, key: str) -> Any:
    if not isinstance(of, dict) or not isinstance(of.get(key), int | str):
        raise ConfigError(f"{path}: an {what} has no {key}: {json.dumps(of)[:80]}")
    return of[key]


def _size(path: Path, image: dict[str, Any]) -> tuple[int, int]:
    height, width = _entry(path, "image", image, "height"), _entry(path, "image", image, "width")
    sides = isinstance(height, int) and isinstance(width, int)
    if not (sides and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width < 2**31):
        raise ConfigError(
            f"{path}: image {image.get('file_name')}: a size of {height!s:.20}×{width!s:.20} pixels"
        )
    return height, width


def _mask(path: Path, annotation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """The mask of an annotation, None for one without a pixel."""
    try:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            return _polygons(segmentation, size)
        if not isinstance(segmentation, dict):
            raise ValueError(f"segmentation: expected polygons or {{size, counts}}, got {segmentation!r:.40}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            counts = _compressed(counts, segmentation["size"], size)
        return checked_rle(segmentation["size"], counts, size)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        name = annotation.get("id") if isinstance(annotation, dict) else annotation
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path}: annotation {name}: {reason}") from error


def _compressed(counts: list[int], size: list[int], expected: tuple[int, int]) -> str:
    if size != list(expected):
        raise ValueError(f"the mask is for {size!s:.40}, its image is {expected[0]}×{expected[1]}")
    if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths must be whole numbers ≥ 0 that add up to {size[0]}×{size[1]}")
    return str(mask_utils.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode("ascii"))


def _polygons(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """One mask of an object's polygons, [x, y, x, y, …] each."""
    height, width = size
    within = []
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"polygon {number}: expected at least three x, y pairs")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in polygon):
            raise ValueError(f"polygon {number}: a coordinate is not a finite number")
        if max(map(abs, polygon)) > _FARTHEST:
            raise ValueError(f"polygon {number}: a coordinate is more than {_FARTHEST:g} pixels away")
        corners = [(float(x), float(y)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
        corners = _cut_off(_cut_off(corners, 0, width), 1, height)
        if len(corners) > 2:
            within.append([value for corner in corners for value in corner])
    if not within:
        return None
    merged = mask_utils.merge(mask_utils.frPyObjects(within, height, width))
    return merged if mask_utils.area(merged) else None


def _cut_off(corners: list[tuple[float, float]], axis: int, most: float) -> list[tuple[float, float]]:
    """What lies between 0 and `most` of a polygon (Sutherland and Hodgman's way, an edge after another)."""
    for limit, inward in ((0.0, 1.0), (most, -1.0)):
        kept: list[tuple[float, float]] = []
        for here, there in zip(corners, corners[1:] + corners[:1], strict=True):
            depths = [inward * (corner[axis] - limit) for corner in (here, there)]
            if depths[0] >= 0:
                kept.append(here)
            if (depths[0] < 0) != (depths[1] < 0):
                share = depths[0] / (depths[0] - depths[1])
                other = here[1 - axis] + share * (there[1 - axis] - here[1 - axis])
                kept.append((limit, other) if axis == 0 else (other, limit))
        corners = kept
    return corners

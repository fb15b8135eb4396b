"""What must be true of one row: that it agrees with the plan and with itself. All is computed anew."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...engine.codes import single
from ...engine.records import Rle
from ..format.ids import annotation_id, file_name
from ..format.records import PlannedImage
from ..format.schema import STAGES, STATUSES

_SHA256 = re.compile(r"[0-9a-f]{64}")


def head_problems(
    row: Mapping[str, Any], masks: int | None, planned: PlannedImage, embedded: bool
) -> Iterator[str]:
    """What is wrong with a row apart from its masks. `masks` is their number, None if the column is null."""
    expected = {
        "image_id": planned.image_id,
        "key": planned.key,
        "uri": planned.uri,
        "file_name": file_name(planned.key),
    }
    for name, value in expected.items():
        if row[name] != value:
            yield f"{name} is {row[name]!r}, the plan has {value!r}"
    if row["status"] not in STATUSES:
        yield f"status is {row['status']!r}"
        return
    if masks is None:
        yield "annotations are null"
        return
    yield from _count_problems(row, masks)
    check = _rejected_problems if row["status"] == "rejected" else _decoded_problems
    yield from check(row, masks)
    yield from _image_problems(row, embedded and row["status"] != "rejected")


def mask_problems(
    annotations: Sequence[Mapping[str, Any] | None],
    plan_row: int,
    height: int | None,
    width: int | None,
    imported: bool = False,
) -> Iterator[str]:
    """What is wrong with the masks of an image of this size, which is row `plan_row` of the plan.

    With `imported`, ids and boxes follow `run_record.IMPORTED`.
    """
    seen: set[int] = set()
    for index, annotation in enumerate(annotations):
        if annotation is None:
            yield f"mask {index}: null"
            continue
        expected = None if imported else annotation_id(plan_row, index)
        for problem in _mask_problems(annotation, expected, height, width):
            yield f"mask {index}: {problem}"
        if imported and (annotation["id"] is None or annotation["id"] < 0 or annotation["id"] in seen):
            yield f"mask {index}: id is {annotation['id']}, expected one of its own"
        seen.add(annotation["id"])


def _count_problems(row: Mapping[str, Any], masks: int) -> Iterator[str]:
    drops, candidates = row["drops"], row["candidates"]
    if drops is None or candidates is None or None in drops.values():
        yield "candidates or drops are null"
    elif min(candidates, *drops.values()) < 0:
        yield "a count of candidates or drops is negative"
    elif candidates != masks + sum(drops.values()):
        yield f"{candidates} candidates, but {masks} kept and {sum(drops.values())} dropped"


def _rejected_problems(row: Mapping[str, Any], masks: int) -> Iterator[str]:
    error = row["error"]
    if error is None or error["stage"] not in STAGES or not error["class"] or error["message"] is None:
        yield f"rejected, but the error is {error}"
    if masks or row["candidates"]:
        yield "rejected, but it has masks or candidates"
    for name in ("width", "height", "orientation"):
        if row[name] is not None:
            yield f"rejected, but its {name} is {row[name]}"
    if row["image_sha256"] is not None and not _SHA256.fullmatch(row["image_sha256"]):
        yield f"image_sha256 is {row['image_sha256']!r}"


def _decoded_problems(row: Mapping[str, Any], masks: int) -> Iterator[str]:
    if row["error"] is not None:
        yield f"{row['status']}, but the error is {row['error']}"
    if (row["status"] == "ok") != bool(masks):
        yield f"{row['status']}, but it has {masks} masks"
    for name in ("width", "height"):
        if row[name] is None or row[name] < 1:
            yield f"{name} is {row[name]}"
    if row["orientation"] is None or not 0 <= row["orientation"] <= 0xFFFF:
        yield f"orientation is {row['orientation']}"
    if not _SHA256.fullmatch(row["image_sha256"] or ""):
        yield f"image_sha256 is {row['image_sha256']!r}"


def _image_problems(row: Mapping[str, Any], expected: bool) -> Iterator[str]:
    image = row["image"]
    if (image is not None) != expected:
        yield "an image is embedded" if image is not None else "no image is embedded"
    elif image is not None:
        if image["bytes"] is None or hashlib.sha256(image["bytes"]).hexdigest() != row["image_sha256"]:
            yield "the embedded image is not the one of image_sha256"
        if image["path"] != row["file_name"]:
            yield f"the embedded image's path is {image['path']!r}"


def _mask_problems(
    annotation: Mapping[str, Any], identity: int | None, height: int | None, width: int | None
) -> Iterator[str]:
    """What is wrong with a mask. `identity` is the id that it must have; None if the corpus was imported."""
    if identity is not None and annotation["id"] != identity:
        yield f"id is {annotation['id']}, expected {identity}"
    if height is None or width is None or height < 1 or width < 1:
        return  # said already
    yield from _code_problems(annotation, height, width, margin=1 if identity is None else 0)
    for name in ("predicted_iou", "stability_score"):
        if not _finite([annotation[name]]):
            yield f"{name} is {annotation[name]}"
    if _finite([annotation["stability_score"]]) and not 0 <= annotation["stability_score"] <= 1:
        yield f"stability_score is {annotation['stability_score']}"
    box = annotation["crop_box"]
    if not _finite(box) or not _inside(box[:2], height, width) or not _inside(_corner(box), height, width):
        yield f"crop_box {box} is no box in the image of {width}×{height}"
    elif min(box[2:]) <= 0:
        yield f"crop_box {box} is empty"
    points = annotation["point_coords"]
    if not points or not all(_finite(p) and len(p) == 2 and _inside(p, height, width) for p in points):
        yield f"point_coords {points} are no points in the image of {width}×{height}"


def _code_problems(annotation: Mapping[str, Any], height: int, width: int, margin: int) -> Iterator[str]:
    """What is wrong with a mask's run-length code, area and box.

    Codes are decoded in numpy: a malformed one would lead pycocotools out of its memory. A box is `margin`
    pixels less wide and high than its mask.
    """
    code = annotation["segmentation"]
    if code is None or code["size"] != [height, width] or code["counts"] is None:
        yield f"the segmentation's size is {code and code['size']}, expected {[height, width]}"
        return
    mask = Rle((height, width), code["counts"])
    try:
        runs = single.run_lengths(mask)
    except ValueError as error:
        yield f"segmentation: {error}"
        return
    if not runs[1:].all():
        yield "segmentation: a run after the first is empty"
    area, (x, y, box_width, box_height) = single.area(mask), single.bbox(mask)
    bbox = [x, y, box_width - margin, box_height - margin]
    if area == 0:
        yield "the mask is empty"
    if annotation["area"] != area:
        yield f"area is {annotation['area']}, the mask has {area}"
    if annotation["bbox"] != bbox:
        yield f"bbox is {annotation['bbox']}, the mask's is {bbox}"


def _finite(values: Sequence[float | None] | None) -> bool:
    return values is not None and all(value is not None and math.isfinite(value) for value in values)


def _inside(point: Sequence[float], height: int, width: int) -> bool:
    return 0 <= point[0] <= width and 0 <= point[1] <= height


def _corner(box: Sequence[float]) -> tuple[float, float]:
    return box[0] + box[2], box[1] + box[3]

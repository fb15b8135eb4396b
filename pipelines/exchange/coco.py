"""COCO's JSON, piece by piece: one category, run-length codes or polygons, and SA-1B's scores beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..corpus.masks import cutout
from .polygons import polygons

CATEGORY = {"id": 1, "name": "object", "supercategory": ""}
BETWEEN = b",\n"


def image_json(row: Mapping[str, Any]) -> bytes:
    """An entry of `images`: the file's name is the row's key, a path below the folder of photographs."""
    return _dumped(
        {"id": row["image_id"], "file_name": row["key"], "width": row["width"], "height": row["height"]}
    )


def annotation_json(row: Mapping[str, Any], index: int, *, imported: bool, as_polygons: bool) -> bytes:
    """The entry of `annotations` for one of a row's. The box is COCO's, width = x_max − x_min + 1; an
    `imported` corpus has SA-1B's. Raises ValueError for a number that JSON does not have, CorpusError where
    outlines are wanted of a code that is damaged.
    """
    annotation = row["annotations"][index]
    x, y, width, height = annotation["bbox"]
    more = 1 if imported else 0
    return _dumped(
        {
            "id": annotation["id"],
            "image_id": row["image_id"],
            "category_id": CATEGORY["id"],
            "segmentation": polygons(cutout(row, index)) if as_polygons else annotation["segmentation"],
            "area": annotation["area"],
            "bbox": [x, y, width + more, height + more],
            "iscrowd": 0,
            **{name: annotation[name] for name in _SCORES},
        }
    )


_SCORES = ("predicted_iou", "stability_score", "crop_box", "point_coords")


def write_whole(
    file: BinaryIO, info: Mapping[str, Any], images: Sequence[Path], annotations: Sequence[Path]
) -> None:
    """Write the whole out of files that each hold entries with `BETWEEN` between them, or nothing."""
    head = {"info": info, "licenses": [], "categories": [CATEGORY]}
    file.write(_dumped(head)[:-1])
    for name, parts in (("images", images), ("annotations", annotations)):
        file.write(f',\n"{name}": [\n'.encode())
        between = b""
        for part in parts:
            if part.stat().st_size:
                file.write(between)
                with part.open("rb") as entries:
                    shutil.copyfileobj(entries, file, 1 << 20)
                between = BETWEEN
        file.write(b"\n]")
    file.write(b"}\n")


def joined(entries: Iterator[bytes]) -> Callable[[BinaryIO], None]:
    """What writes the entries into a part, as they come."""

    def write(file: BinaryIO) -> None:
        between = b""
        for entry in entries:
            file.write(between + entry)
            between = BETWEEN

    return write


def _dumped(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")

"""SA-1B's own files: `sa_NUMBER.jpg` and `sa_NUMBER.json` side by side, in a folder or in tar files.

Reading is strict, since an import promises to lose nothing. A field that the format does not have, a value
that is not a number, or text in place of a number is an error, and so is JSON that is larger than any image's
masks can be. Whether the values are right, and a mask has its stated area, is for `verification.rows` to say.

Writing gives the same bytes each time: headers of a tar file hold no date and no owner.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputRejected

MAX_JSON_BYTES = 64 << 20
"""SA-1B's own files have some hundred kilobytes."""

_Id = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Pixels = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Xywh = tuple[float, float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Segmentation(_Part):
    size: tuple[_Pixels, _Pixels]
    counts: str


class Annotation(_Part):
    """A mask as SA-1B writes it; `segmentation.size` is (height, width)."""

    id: _Id
    segmentation: _Segmentation
    bbox: _Xywh
    area: _Id
    predicted_iou: float
    stability_score: float
    crop_box: _Xywh
    point_coords: list[tuple[float, float]]


class _Image(_Part):
    image_id: _Id
    width: _Pixels
    height: _Pixels
    file_name: str


class Entry(_Part):
    """The contents of one JSON file."""

    image: _Image
    annotations: list[Annotation]


def read_entry(data: bytes) -> Entry:
    """The masks of one image; raises InputRejected (class `BadAnnotations`) where the JSON is not SA-1B's."""
    if len(data) > MAX_JSON_BYTES:
        raise bad_annotations(f"{len(data)} bytes of JSON, over the limit of {MAX_JSON_BYTES}")
    try:
        return Entry.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise bad_annotations(f"{where + ': ' if where else ''}{first['msg']}") from None


def bad_annotations(message: str) -> InputRejected:
    """An image whose JSON cannot be used."""
    return InputRejected("read", "BadAnnotations", message)


def file_stem(image_id: int) -> str:
    """What the two files of an image are called, but for `.jpg` and `.json`."""
    return f"sa_{image_id}"


def entry_json(row: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], imported: bool) -> bytes:
    """The JSON file of a row with these of its annotations.

    Boxes are written as SA-1B has them, width = x_max − x_min; those of an `imported` corpus are so already.
    Raises ValueError for a number that JSON does not have.
    """
    image = {
        "image_id": row["image_id"],
        "width": row["width"],
        "height": row["height"],
        "file_name": f"{file_stem(row['image_id'])}.jpg",
    }
    if not imported:
        annotations = [one | {"bbox": _between_pixels(one["bbox"])} for one in map(dict, annotations)]
    content = {"image": image, "annotations": list(annotations)}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def _between_pixels(bbox: Sequence[float]) -> list[float]:
    x, y, width, height = bbox
    return [x, y, width - 1, height - 1]


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar file, with a header that is always the same."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    tar.addfile(header, io.BytesIO(data))


def numbers(entry: Entry) -> Iterator[float]:
    """All numbers of the annotations that a corpus keeps in 32 bits."""
    for one in entry.annotations:
        yield from (*one.bbox, one.predicted_iou, one.stability_score, *one.crop_box)
        for point in one.point_coords:
            yield from point

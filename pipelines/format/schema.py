"""Format version 1: the columns of a shard and of the plan, and how an image's result becomes a row.

One image is one row, so that an image is read, counted, copied or replaced in one piece, and the mask records
sit inside it under SA-1B's own names: `row["annotations"]`, dumped as JSON, is what an SA-1B reader expects.
One row for each mask was the alternative; it loses the images without masks, which a corpus has to account
for too. `docs/format.md` is the specification; what is here must agree with it, and a test holds the two
together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...engine.records import DROP_REASONS, GeneratedMasks, MaskRecord
from ..errors import InputRejected

if TYPE_CHECKING:
    from ..decoding.image import DecodedImage
    from .plan import PlannedImage

FORMAT_NAME = "maskmill-corpus"
FORMAT_VERSION = 1
STATUSES = ("ok", "empty", "rejected")
STAGES = ("read", "decode", "generate")

MASK_BITS = 20
MAX_MASKS = (1 << MASK_BITS) - 1
"""Masks an image may have: an annotation's id keeps this many bits for the mask."""

BATCH_BYTES = 64 << 20
"""Rows go into record batches of about this size, far below the 2 GiB that an Arrow column can hold."""

SIZE_2 = pa.list_(pa.int32(), 2)
XYWH_4 = pa.list_(pa.float32(), 4)
SEGMENTATION = pa.struct([("size", SIZE_2), ("counts", pa.string())])
ANNOTATION = pa.struct(
    [
        ("id", pa.int64()),
        ("segmentation", SEGMENTATION),
        ("bbox", XYWH_4),
        ("area", pa.int64()),
        ("predicted_iou", pa.float32()),
        ("stability_score", pa.float32()),
        ("crop_box", XYWH_4),
        ("point_coords", pa.list_(pa.list_(pa.float32()))),
    ]
)
ERROR = pa.struct([("stage", pa.string()), ("class", pa.string()), ("message", pa.string())])
DROPS = pa.struct([(reason, pa.int32()) for reason in DROP_REASONS])
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

ROW_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("key", pa.string()),
        ("file_name", pa.string()),
        ("uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int32()),
        ("image_sha256", pa.string()),
        ("status", pa.string()),
        ("error", ERROR),
        ("candidates", pa.int32()),
        ("drops", DROPS),
        ("image", IMAGE),
        ("annotations", pa.list_(ANNOTATION)),
    ]
)
PLAN_SCHEMA = pa.schema(
    [("image_id", pa.int64()), ("key", pa.string()), ("uri", pa.string()), ("shard", pa.int32())]
)


def image_id(key: str) -> int:
    """The first 63 bits of the SHA-256 of the key's UTF-8: a key has the same id in every corpus."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def annotation_id(row: int, mask: int) -> int:
    """Unique in the corpus: (row in the plan << 20) + mask index + 1."""
    if not 0 <= mask < MAX_MASKS:
        raise ValueError(f"expected a mask index from 0 to {MAX_MASKS - 1}, got {mask}")
    return (row << MASK_BITS) + mask + 1


def file_name(key: str) -> str:
    """The key's last component: the file's own name."""
    return key.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of a shard, before it is Arrow.

    Attributes:
        row: position in the plan; decides the annotations' ids.
        width, height: pixels of the upright image; None where the image was not decoded.
        orientation: the EXIF tag as read, 1 where there is none; None where the image was not decoded.
        image_sha256: of the file's bytes, in hex; None where they were not read.
        error: None unless the status is "rejected".
        image: the file's own bytes, where images are embedded.
        annotation_ids: of the masks, where they are not those of `annotation_id`.

    """

    row: int
    image_id: int
    key: str
    uri: str
    status: str
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    image_sha256: str | None = None
    error: InputRejected | None = None
    candidates: int = 0
    drops: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    image: bytes | None = None
    masks: Sequence[MaskRecord] = ()
    annotation_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        expected = "rejected" if self.error else "ok" if self.masks else "empty"
        if self.status != expected:
            raise ValueError(f"{self.key}: expected status {expected!r}, got {self.status!r}")


def row_from_result(
    planned: PlannedImage, decoded: DecodedImage, generated: GeneratedMasks, *, embed: bool = False
) -> ImageRow:
    """The row of an image that was decoded: `ok` with at least one mask, else `empty`.

    With `embed` the row carries the file's bytes too, orientation tag and all.
    """
    return ImageRow(
        row=planned.row,
        image_id=planned.image_id,
        key=planned.key,
        uri=planned.uri,
        status="ok" if generated.masks else "empty",
        width=decoded.width,
        height=decoded.height,
        orientation=decoded.orientation,
        image_sha256=decoded.sha256,
        candidates=generated.candidates,
        drops=generated.drops,
        image=decoded.data if embed else None,
        masks=generated.masks,
    )


def rejected_row(planned: PlannedImage, error: InputRejected, data: bytes | None = None) -> ImageRow:
    """The row of an image that cannot be used; `data` is the file's bytes, where they could be read."""
    return ImageRow(
        row=planned.row,
        image_id=planned.image_id,
        key=planned.key,
        uri=planned.uri,
        status="rejected",
        image_sha256=None if data is None else hashlib.sha256(data).hexdigest(),
        error=error,
    )


def table_from_rows(rows: Iterable[ImageRow]) -> pa.Table:
    """The rows as one table of `ROW_SCHEMA`, in order, in record batches of about `BATCH_BYTES`."""
    return pa.Table.from_batches([_batch(group) for group in _groups(rows)], schema=ROW_SCHEMA)


def _groups(rows: Iterable[ImageRow]) -> Iterator[list[ImageRow]]:
    group: list[ImageRow] = []
    gathered = 0
    for row in rows:
        size = len(row.image or b"") + sum(len(mask.segmentation.counts) + 120 for mask in row.masks)
        if group and gathered + size > BATCH_BYTES:
            yield group
            group, gathered = [], 0
        group.append(row)
        gathered += size
    if group:
        yield group


def _batch(rows: Sequence[ImageRow]) -> pa.RecordBatch:
    errors = [row.error for row in rows]
    columns: dict[str, Any] = {
        "file_name": [file_name(row.key) for row in rows],
        "error": [e and {"stage": e.stage, "class": e.error_class, "message": e.message} for e in errors],
        "drops": _struct(DROPS, {reason: [row.drops[reason] for row in rows] for reason in DROP_REASONS}),
        "image": [
            None if row.image is None else {"bytes": row.image, "path": file_name(row.key)} for row in rows
        ],
        "annotations": _annotations(rows),
    }
    arrays = [
        columns[name]
        if isinstance(columns.get(name), pa.Array)
        else pa.array(_values(rows, name, columns), kind)
        for name, kind in zip(ROW_SCHEMA.names, ROW_SCHEMA.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ROW_SCHEMA)


def _values(rows: Sequence[ImageRow], name: str, columns: Mapping[str, Any]) -> Any:
    return columns[name] if name in columns else [getattr(row, name) for row in rows]


def _annotations(rows: Sequence[ImageRow]) -> pa.Array:
    """The list column, built column by column: a dict for each mask would cost more than the commit."""
    masks = [mask for row in rows for mask in row.masks]
    records = {
        "id": [identity for row in rows for identity in _annotation_ids(row)],
        "segmentation": _struct(
            SEGMENTATION,
            {
                "size": _fixed(SIZE_2, [mask.segmentation.size for mask in masks]),
                "counts": [mask.segmentation.counts for mask in masks],
            },
        ),
        "bbox": _fixed(XYWH_4, [mask.bbox for mask in masks]),
        "area": [mask.area for mask in masks],
        "predicted_iou": [mask.predicted_iou for mask in masks],
        "stability_score": [mask.stability_score for mask in masks],
        "crop_box": _fixed(XYWH_4, [mask.crop_box for mask in masks]),
        "point_coords": [mask.point_coords for mask in masks],
    }
    offsets = np.cumsum([0, *(len(row.masks) for row in rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _struct(ANNOTATION, records), pa.list_(ANNOTATION))


def _annotation_ids(row: ImageRow) -> Sequence[int]:
    if row.annotation_ids is not None:
        return row.annotation_ids
    return [annotation_id(row.row, index) for index in range(len(row.masks))]


def _struct(of: pa.StructType, values: Mapping[str, Any]) -> pa.StructArray:
    arrays = [
        values[part.name]
        if isinstance(values[part.name], pa.Array)
        else pa.array(values[part.name], part.type)
        for part in of.fields
    ]
    return pa.StructArray.from_arrays(arrays, fields=of.fields)


def _fixed(of: pa.FixedSizeListType, values: Sequence[Sequence[float]]) -> pa.FixedSizeListArray:
    flat = np.asarray(values, dtype=of.value_type.to_pandas_dtype()).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=of)

"""How an image's result becomes a row, and rows become a table of `ROW_SCHEMA`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...engine.records import DROP_REASONS, GeneratedMasks
from ..decoding.image import DecodedImage
from ..errors import InputRejected
from .ids import annotation_id, file_name
from .records import ImageRow, PlannedImage
from .schema import ANNOTATION, DROPS, ROW_SCHEMA, SEGMENTATION, SIZE_2, XYWH_4

BATCH_BYTES = 64 << 20
"""Rows go into record batches of about this size, far below the 2 GiB that an Arrow column can hold."""


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
    """The row of an image that cannot be used; `data` is the file's bytes, if they could be read."""
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

"""Rows: what may not become one, then the types, ids and values that Parquet gets."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from maskmill.engine.records import DROP_REASONS
from maskmill.pipelines.decoding.image import DecodedImage
from maskmill.pipelines.errors import InputRejected
from maskmill.pipelines.format import rows
from maskmill.pipelines.format.ids import annotation_id, file_name, image_id
from maskmill.pipelines.format.records import ImageRow, PlannedImage
from maskmill.pipelines.format.rows import rejected_row, row_from_result, table_from_rows
from maskmill.pipelines.format.schema import ROW_SCHEMA
from tests.support.corpora import draw_masks, results

PLANNED = PlannedImage(image_id("trip/a.jpg"), "trip/a.jpg", "/photos/trip/a.jpg", 2, 7)


def decoded(height=20, width=30, data=b"bytes") -> DecodedImage:
    pixels_HW3 = np.zeros((height, width, 3), np.uint8)
    return DecodedImage(pixels_HW3, width, height, 6, hashlib.sha256(data).hexdigest(), data)


def test_no_rows():
    table = table_from_rows([])
    assert table.num_rows == 0
    assert table.schema.equals(ROW_SCHEMA)


@pytest.mark.parametrize("status", ["empty", "rejected", "fine"])
def test_a_status_that_contradicts_the_row(status):
    with pytest.raises(ValueError, match="expected status 'ok'"):
        ImageRow(0, 1, "a", "/a", status, masks=draw_masks(4, 4, 0, 1))


@pytest.mark.parametrize("mask", [-1, 2**20 - 1])
def test_a_mask_index_that_does_not_fit(mask):
    with pytest.raises(ValueError, match="expected a mask index"):
        annotation_id(0, mask)


def test_ids_by_hand():
    assert annotation_id(0, 0) == 1
    assert annotation_id(1, 0) == 1048577
    assert annotation_id(3, 41) == 3 * 2**20 + 42
    assert annotation_id(0, 2**20 - 2) < annotation_id(1, 0)
    # sha256("a.jpg") by coreutils begins with these 16 hex digits; shifted right by one bit
    assert image_id("a.jpg") == int(hashlib.sha256(b"a.jpg").hexdigest()[:16], 16) // 2
    assert 0 <= image_id("ä") < 2**63


def test_file_name():
    assert [file_name(key) for key in ("a.jpg", "x/y/a.jpg", "/abs/a b.jpg")] == ["a.jpg", "a.jpg", "a b.jpg"]


def test_the_columns_of_the_format():
    text = {name: str(kind) for name, kind in zip(ROW_SCHEMA.names, ROW_SCHEMA.types, strict=True)}
    assert list(text) == [
        "image_id", "key", "file_name", "uri", "width", "height", "orientation", "image_sha256", "status",
        "error", "candidates", "drops", "image", "annotations",
    ]  # fmt: skip
    assert text["image_id"] == "int64"
    assert text["error"] == "struct<stage: string, class: string, message: string>"
    assert text["image"] == "struct<bytes: binary, path: string>"
    assert text["drops"] == f"struct<{', '.join(f'{reason}: int32' for reason in DROP_REASONS)}>"
    mask = ROW_SCHEMA.field("annotations").type.value_type
    assert [field.name for field in mask] == [
        "id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords",
    ]  # fmt: skip
    assert [str(mask.field(name).type) for name in ("id", "area", "predicted_iou")] == [
        "int64",
        "int64",
        "float",
    ]
    assert mask.field("bbox").type == mask.field("crop_box").type == pa.list_(pa.float32(), 4)
    assert mask.field("segmentation").type == pa.struct(
        [("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())]
    )
    assert mask.field("point_coords").type == pa.list_(pa.list_(pa.float32()))


def test_a_row_with_masks():
    masks = draw_masks(20, 30, 1, 2)
    (row,) = table_from_rows([row_from_result(PLANNED, decoded(), results(masks))]).to_pylist()
    assert (row["image_id"], row["key"], row["file_name"]) == (PLANNED.image_id, "trip/a.jpg", "a.jpg")
    assert (row["width"], row["height"], row["orientation"], row["status"]) == (30, 20, 6, "ok")
    assert row["error"] is None
    assert row["image"] is None
    assert row["candidates"] == 9
    assert row["drops"]["predicted_iou"] == 4
    first, second = row["annotations"]
    assert [first["id"], second["id"]] == [7 * 2**20 + 1, 7 * 2**20 + 2]
    assert first["segmentation"] == {"size": [20, 30], "counts": masks[0].segmentation.counts}
    assert first["bbox"] == list(masks[0].bbox)
    assert first["area"] == masks[0].area
    assert first["predicted_iou"] == np.float32(masks[0].predicted_iou)
    assert second["crop_box"] == [0, 0, 30, 20]
    assert second["point_coords"] == [[np.float32(value) for value in masks[1].point_coords[0]]]


def test_rows_of_every_status_in_one_table():
    error = InputRejected("decode", "Truncated", "cut\n short\udce9")
    rows = [
        rejected_row(PLANNED, error, b"half"),
        row_from_result(PLANNED, decoded(), results([])),
        row_from_result(PLANNED, decoded(), results(draw_masks(20, 30, 2, 3))),
        rejected_row(PLANNED, InputRejected("read", "Missing", "gone")),
    ]
    rejected, empty, ok, missing = table_from_rows(iter(rows)).to_pylist()
    assert rejected["status"] == "rejected"
    assert rejected["error"] == {"stage": "decode", "class": "Truncated", "message": r"cut short\udce9"}
    assert (rejected["width"], rejected["orientation"], rejected["candidates"]) == (None, None, 0)
    assert rejected["drops"] == dict.fromkeys(DROP_REASONS, 0)
    assert rejected["image_sha256"] == hashlib.sha256(b"half").hexdigest()
    assert rejected["annotations"] == []
    assert (empty["status"], empty["annotations"], empty["candidates"]) == ("empty", [], 7)
    assert len(ok["annotations"]) == 3
    assert missing["image_sha256"] is None


def test_embedded_images():
    embedded = row_from_result(PLANNED, decoded(data=b"\0raw\xff"), results([]), embed=True)
    (row,) = table_from_rows([embedded]).to_pylist()
    assert row["image"] == {"bytes": b"\0raw\xff", "path": "a.jpg"}


def test_large_rows_go_into_batches_of_their_own(monkeypatch):
    monkeypatch.setattr(rows, "BATCH_BYTES", 1000)
    sizes = [600, 300, 300, 5000, 10]
    large = [row_from_result(PLANNED, decoded(data=bytes(size)), results([]), embed=True) for size in sizes]
    table = table_from_rows(large)
    assert [batch.num_rows for batch in table.to_batches()] == [2, 1, 1, 1]
    assert [len(row["image"]["bytes"]) for row in table.to_pylist()] == sizes

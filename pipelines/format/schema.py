"""Format version 1: the columns of a shard and of the plan.

One image is one row, so that an image is read, counted, copied or replaced in one piece, and the mask records
sit inside it under SA-1B's own names: `row["annotations"]`, dumped as JSON, is what an SA-1B reader expects.
One row for each mask was the alternative; it loses the images without masks, which a corpus has to account
for too. `docs/format.md` is the specification; what is here must agree with it, and a test holds the two
together.
"""

from __future__ import annotations

import pyarrow as pa

from ...engine.records import DROP_REASONS

FORMAT_NAME = "maskmill-corpus"
FORMAT_VERSION = 1
STATUSES = ("ok", "empty", "rejected")
STAGES = ("read", "decode", "generate")

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

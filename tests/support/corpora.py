"""A small real corpus, made without a network: photographs of noise, masks that are drawn, not predicted."""

from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.engine.codes import single
from maskmill.engine.records import DROP_REASONS, GeneratedMasks, MaskRecord
from maskmill.pipelines.config.run import digest_of
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.errors import InputRejected
from maskmill.pipelines.format.rows import rejected_row, row_from_result, table_from_rows
from maskmill.pipelines.format.run_record import RunRecord, software_versions
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import Mode, Run, open_run

SHARD_SIZE = 3


def make_photos(folder: Path, count: int = 7) -> Path:
    """`count` small files: one of them no photograph, one that gets no masks (see `draw_masks`)."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        size = (20 + number, 30 - number, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"no photograph at all")
    return folder


def make_record(**changes) -> RunRecord:
    plain = {"generator": {"points_per_side": 32}, "shard_size": SHARD_SIZE, "embed_images": False}
    values = {
        "config": plain,
        "config_digest": digest_of(changes.get("config", plain)),
        "model_name": "nano",
        "weights_sha256": "a" * 64,
        "software": software_versions(),
    }
    return RunRecord(**{**values, **changes})


def draw_masks(height: int, width: int, seed: int, count: int) -> list[MaskRecord]:
    """`count` masks of noise; real codes, with area and box by numpy."""
    rng = np.random.default_rng(seed)
    return [record_of(rng.random((height, width)) < rng.uniform(0.05, 0.9), rng) for _ in range(count)]


def record_of(mask_HW, rng) -> MaskRecord:
    height, width = mask_HW.shape
    ys, xs = np.nonzero(mask_HW)
    return MaskRecord(
        segmentation=single.encode(mask_HW),
        area=int(mask_HW.sum()),
        bbox=(
            float(xs.min()),
            float(ys.min()),
            float(xs.max() - xs.min() + 1),
            float(ys.max() - ys.min() + 1),
        ),
        predicted_iou=float(rng.uniform(0.88, 1.02)),
        stability_score=float(rng.uniform(0.95, 1)),
        crop_box=(0.0, 0.0, float(width), float(height)),
        point_coords=((float(rng.uniform(0, width)), float(rng.uniform(0, height))),),
    )


def results(masks: list[MaskRecord]) -> GeneratedMasks:
    """The masks, as if seven other candidates had been dropped."""
    drops = {**dict.fromkeys(DROP_REASONS, 0), "predicted_iou": 4, "nms": 3}
    return GeneratedMasks(masks, len(masks) + 7, drops, {"encode": 0.1})


def fill_shard(run: Run, shard: int) -> bool:
    """Do one shard the way a worker does; image 4 gets no masks. True where it was committed here."""
    embed = bool(run.record.config["embed_images"])
    rows = []
    for planned in run.plan.images(shard):
        data = read_input(planned.uri)
        try:
            decoded = decode_image(data, 10**6)
        except InputRejected as error:
            rows.append(rejected_row(planned, error, data))
            continue
        count = 0 if planned.key == "4.png" else 1 + planned.row % 3
        masks = draw_masks(decoded.height, decoded.width, planned.row, count)
        rows.append(row_from_result(planned, decoded, results(masks), embed=embed))
    metadata = shard_metadata(run.record.digest, shard, {"decode": 0.25})
    return commit_table(run.out, shard, table_from_rows(rows), metadata)


def open_corpus(photos: Path, out: Path, mode: Mode = "resume", **changes) -> Run:
    return open_run(out, list_inputs([photos], [".png"]), make_record(**changes), SHARD_SIZE, mode)


def make_corpus(photos: Path, out: Path, **changes) -> Path:
    """A complete corpus of the photographs."""
    run = open_corpus(photos, out, **changes)
    for shard in run.todo():
        assert fill_shard(run, shard)
    finish_corpus(out, run.plan.shards)
    return out

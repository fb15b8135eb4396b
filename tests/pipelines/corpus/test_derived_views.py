"""A view against a run with the view's thresholds: real photographs, the bundled weights, rows as stored.

Where the two need not agree there is a photograph on which they do not, and the reader's warning.
"""

import warnings
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import skimage.data
import torch
from PIL import Image

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.model import load_sam
from maskmill.pipelines.config.run import RunConfig
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.corpus.views import View, ViewWarning
from maskmill.pipelines.decoding.image import DecodedImage
from maskmill.pipelines.format import run_record
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.format.plan import write_part
from maskmill.pipelines.format.records import PlannedImage
from maskmill.pipelines.format.rows import row_from_result, table_from_rows
from maskmill.pipelines.format.schema import PLAN_SCHEMA
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from tests.support.corpora import make_record

LENIENT = {"points_per_side": 4, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.3}
"""Far below the preset's thresholds: enough masks pass that duplicates are dropped."""
SIDE = 128
ALL = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "ihc.png", "rocket.jpg")


@cache
def nano():
    return load_sam("nano")


@cache
def photograph(name):
    with Image.open(Path(skimage.data.__file__).with_name(name)) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        return np.asarray(picture)


@cache
def corpus_of(folder, name, options):
    """A corpus of one photograph, made with these options (pairs), and its masks."""
    run = RunConfig(generator=GeneratorConfig(**{**LENIENT, **dict(options)}))
    pixels_HW3 = photograph(name)
    generated = MaskGenerator(nano(), run.generator).generate_batch([pixels_HW3])[0]
    out = folder / str(abs(hash((name, options))))
    record = make_record(config=run.model_dump(mode="json"))
    run_record.write_run(out, record)
    planned = PlannedImage(image_id(name), name, f"/photos/{name}", 0, 0)
    plan = [{"image_id": planned.image_id, "key": name, "uri": planned.uri, "shard": 0}]
    write_part(out, pa.Table.from_pylist(plan, schema=PLAN_SCHEMA), 0, 0, record.digest)
    height, width = pixels_HW3.shape[:2]
    row = row_from_result(planned, DecodedImage(pixels_HW3, width, height, 1, "0" * 64, b""), generated)
    commit_table(out, 0, table_from_rows([row]), shard_metadata(record.digest, 0, {}))
    return Corpus(out)


def masks_of(corpus, view=None):
    """The masks of its one row, but for their ids, which count them."""
    (row,) = corpus.rows(view=view)
    return [{**mask, "id": None} for mask in row["annotations"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One thread: the pictures are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("derived")
    torch.set_num_threads(threads)


def check_equal(folder, name, thresholds):
    """Between the run's threshold and each of these the view drops masks; and the run at it has the rest."""
    before = corpus_of(folder, name, ())
    for threshold in thresholds:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ViewWarning)
            seen = masks_of(before, View(predicted_iou=threshold))
        fresh = masks_of(corpus_of(folder, name, (("pred_iou_thresh", threshold),)))
        assert seen == fresh, "the same masks, scores and points, in the same order"
        assert 0 < len(seen) < len(masks_of(before))
    (row,) = before
    assert row["drops"]["nms"] > 0, "there was something that could have depended on a mask that is dropped"


def test_a_stricter_predicted_iou_is_a_run_at_that_threshold(folder):
    check_equal(folder, "camera.png", [0.35])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_so_it_is_at_every_threshold(folder, name):
    """A threshold at each of the scores too, where a mask just passes, or just does not."""
    scores = sorted(mask["predicted_iou"] for mask in masks_of(corpus_of(folder, name, ())))
    picked = scores[:: max(1, len(scores) // 6)][:-1]
    check_equal(folder, name, [*picked, *(np.nextafter(score, 1) for score in picked)])


@pytest.mark.parametrize(
    ("run", "option", "says"),
    [
        pytest.param(
            {"min_mask_region_area": 30, "points_per_side": 6, "box_nms_thresh": 0.3, "crop_nms_thresh": 0.3},
            "predicted_iou",
            "cleaned masks up",
            id="clean-up",
        ),
        pytest.param({}, "stability_score", "of higher predicted IoU, however", id="stability"),
        pytest.param(
            {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
            "predicted_iou",
            "had crops",
            id="crops",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_where_it_need_not_be(folder, run, option, says):
    """Some run at a threshold has a mask that the view cannot have; and the reader says why."""
    setting = {"predicted_iou": "pred_iou_thresh", "stability_score": "stability_score_thresh"}[option]
    for name, threshold in product(ALL, (0.35, 0.5, 0.8)):
        with pytest.warns(ViewWarning, match=says):
            seen = masks_of(corpus_of(folder, name, tuple(run.items())), View(**{option: threshold}))
        fresh = masks_of(corpus_of(folder, name, tuple({**run, setting: threshold}.items())))
        if any(mask not in seen for mask in fresh):
            return
    pytest.fail("no photograph shows what the warning is for")

"""The report's figures: against numpy on all values, hulls by scipy and OpenCV on pixels, and COCO files."""

import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco
from scipy.spatial import ConvexHull

from maskmill.engine.codes import single
from maskmill.engine.codes.runs import Runs
from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.report.coco_statistics import coco_statistics
from maskmill.pipelines.report.concavity import concavities
from maskmill.pipelines.report.histogram import Histogram, Tallied
from maskmill.pipelines.report.statistics import corpus_statistics
from tests.support.corpora import make_corpus, make_photos

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    return make_corpus(make_photos(folder / "photos", 13), folder / "corpus")


def concavity(mask_HW):
    (found,) = concavities(
        pa.array([single.encode(mask_HW).counts]), *np.array([[side] for side in mask_HW.shape])
    )
    return found


@pytest.mark.parametrize("code", ["", "4", "zzzz", "P", "o" * 12 + "0", "é"])
def test_a_malformed_code_is_an_error_and_not_a_crash(code):
    good = single.encode(np.eye(3, dtype=bool)).counts
    with pytest.raises(ValueError, match="run"):
        concavities(pa.array([good, code, good]), np.full(3, 3), np.full(3, 3))


def test_a_part_of_a_column_is_measured_as_that_part():
    codes = pa.array([single.encode(np.eye(side, dtype=bool)).counts for side in (2, 3, 4, 5)])
    sides = np.arange(2, 6)
    assert np.array_equal(
        concavities(codes.slice(1, 2), sides[1:3], sides[1:3]), concavities(codes, sides, sides)[1:3]
    )
    assert len(concavities(codes.slice(0, 0), sides[:0], sides[:0])) == 0


def corners(mask_HW):
    """All corners of all pixels of a mask, (x, y)."""
    ys, xs = np.nonzero(mask_HW)
    return np.concatenate([np.stack([xs + x, ys + y], 1) for x in (0, 1) for y in (0, 1)])


@pytest.mark.parametrize(
    ("rows", "area"),
    [
        (["#"], 1),
        (["####"], 4),
        (["#", "#", "#"], 3),
        (["#..", ".#.", "..#"], 5),  # a band around the diagonal: 3×3 less two triangles of 2
        (["###", "#.#", "###"], 9),  # a hole
        (["#...#"], 5),  # two parts
        (["#..", "#..", "###"], 7),  # an L: 3×3 less a triangle of 2
    ],
)
def test_hulls_by_hand(rows, area):
    mask_HW = np.array([[letter == "#" for letter in row] for row in rows])
    assert concavity(mask_HW) == pytest.approx(1 - mask_HW.sum() / area)


def test_an_empty_mask_is_not_concave():
    assert concavity(np.zeros((3, 4), bool)) == 0


def test_hulls_of_pixel_squares_are_scipys_and_opencvs():
    rng = np.random.default_rng(1)
    for trial in range(60):
        mask_HW = np.zeros(rng.integers(1, 60, 2), np.uint8)
        if trial % 2:
            mask_HW[:] = rng.random(mask_HW.shape) < rng.uniform(0.02, 0.9)
        else:
            middle = [int(side * rng.random()) for side in mask_HW.shape[::-1]]
            cv2.ellipse(mask_HW, middle, rng.integers(1, 30, 2).tolist(), 30.0 * trial, 0, 250, 1, -1)
        if not mask_HW.any():
            continue
        found = mask_HW.sum() / (1 - concavity(mask_HW > 0))
        points = corners(mask_HW)
        assert found == pytest.approx(ConvexHull(points).volume, abs=1e-6)
        assert found == pytest.approx(cv2.contourArea(cv2.convexHull(points.astype(np.float32))), abs=1e-6)


def test_runs_of_a_code_are_the_runs_of_its_pixels():
    rng = np.random.default_rng(4)
    for share in (0, 0.02, 0.5, 0.98, 1):
        mask_HW = rng.random((13, 9)) < share
        found, wanted = single.decode_runs(single.encode(mask_HW)), Runs.of(mask_HW)
        assert np.array_equal(found.start_R, wanted.start_R)
        assert np.array_equal(found.stop_R, wanted.stop_R)
        assert found.size == (13, 9)


def test_a_histogram_is_empty_then_exact_to_its_bins_and_adds_up():
    assert Histogram(0, 1, 10).quantiles(SHARES) == []
    assert np.isnan(Histogram(0, 1, 10).mean)
    assert Histogram(0, 1, 10).as_json()["total"] == 0
    rng = np.random.default_rng(0)
    values = rng.beta(2, 5, 5000)
    whole, half = Histogram(0, 1, 1000), Histogram(0, 1, 1000)
    whole.add(values[:2000])
    half.add([*values[2000:], np.nan])
    whole.merge(half)
    assert whole.total == 5000
    assert whole.mean == pytest.approx(values.mean())
    assert (whole.least, whole.greatest) == (values.min(), values.max())
    assert np.allclose(whole.quantiles(SHARES), np.quantile(values, SHARES), atol=1e-3)
    whole.add([-1, 7])  # counted at the ends
    assert (whole.total, whole.counts[0] >= 1, whole.counts[-1] >= 1) == (5002, True, True)


def test_whole_numbers_are_exact():
    assert Tallied().quantiles(SHARES) == []
    values = np.random.default_rng(0).integers(0, 40, 37)
    tallied = Tallied()
    tallied.add(values.tolist())
    assert np.allclose(tallied.quantiles(SHARES), np.quantile(values, SHARES))
    assert tallied.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_pass_finds_what_all_values_say(corpus, workers):
    found = corpus_statistics(corpus, workers=workers)
    rows = list(Corpus(corpus).rows())
    used = [row for row in rows if row["status"] != "rejected"]
    pixels = [mask["area"] / (row["width"] * row["height"]) for row in used for mask in row["annotations"]]
    masks_HW = [mask for row in used for mask in np.moveaxis(Corpus(corpus).masks(row), 2, 0)]
    hulls = [1 - mask_HW.sum() / ConvexHull(corners(mask_HW)).volume for mask_HW in masks_HW]
    totals = json.loads((corpus / "corpus.json").read_text())["totals"]
    assert {name: totals[name] for name in found.counts} == dict(found.counts)
    assert totals["drops"] == dict(found.drops)
    assert totals["rejects"] == dict(found.rejects)
    assert sorted(found.masks_per_image.counts.elements()) == sorted(len(row["annotations"]) for row in used)
    assert found.relative_size.mean == pytest.approx(np.sqrt(pixels).mean())
    assert found.concavity.mean == pytest.approx(np.mean(hulls))
    assert found.concavity.total == len(masks_HW)
    assert found.predicted_iou.mean == pytest.approx(
        np.mean([mask["predicted_iou"] for row in used for mask in row["annotations"]])
    )
    assert found.centres_YX.sum() == len(masks_HW)
    assert found.sides_HW.sum() == len(used)
    assert found.seconds == {"decode": pytest.approx(0.25 * len(found.commits))}
    assert sum(images for _, images, _ in found.commits) == len(rows)


def test_a_damaged_mask_is_named_by_its_shard(tmp_path):
    import pyarrow.parquet as pq

    from maskmill.pipelines.format.schema import ROW_SCHEMA

    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    path = shard_path(out, 0)
    rows = pq.read_table(path).to_pylist()
    rows[0]["annotations"][0]["segmentation"]["counts"] = "zzzz"
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    with pytest.raises(CorpusError, match=r"shard-000000\.parquet: damaged: .*maskmill verify"):
        corpus_statistics(out, workers=1)
    assert corpus_statistics(out, with_concavity=False, workers=1).counts["images"] == 7
    rows[0]["status"] = "lost"
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    with pytest.raises(CorpusError, match="unknown status lost"):
        corpus_statistics(out, with_concavity=False, workers=1)


SQUARE = {
    "id": 1,
    "image_id": 7,
    "bbox": [2, 3, 4, 4],
    "area": 16,
    "segmentation": [[2, 3, 6, 3, 6, 7, 2, 7]],
}


def coco_file(path, *annotations, images=({"id": 7, "width": 20, "height": 10},)):
    path.write_text(json.dumps({"annotations": annotations, "images": images}))  # sizes come last
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 8}, "annotation 1: no 8"),
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"area": "many"}, "many"),
        ({"segmentation": [[1, 2, 3]]}, "three points"),
        ({"segmentation": [[0, 0, 1e9, 0, 0, 1e9]]}, "outside its image"),
        ({"segmentation": {"size": [5, 5], "counts": "zz"}}, "its image is"),
        ({"segmentation": {"size": [10, 20], "counts": "zz"}}, "run-length"),
        ({"segmentation": {"size": [10, 20], "counts": [100, 99]}}, "do not fill"),
        ({"segmentation": {"size": [10, 20], "counts": [-1, 201]}}, "do not fill"),
        ({"segmentation": None}, "annotation 1"),
    ],
)
def test_what_is_not_as_coco_has_it(tmp_path, change, said):
    with pytest.raises(CorpusError, match="not as COCO has it") as error:
        coco_statistics(coco_file(tmp_path / "a.json", SQUARE | change))
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2", '{"images": [{]}', "\xff"])
def test_what_is_no_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorpusError, match=r"a\.json: not JSON"):
        coco_statistics(path)


def test_cocos_three_forms_of_a_mask_count_alike(tmp_path):
    mask_HW = np.zeros((10, 20), np.uint8, order="F")
    mask_HW[3:7, 2:6] = 1
    compressed = coco.encode(mask_HW)
    forms = [
        SQUARE["segmentation"],
        {"size": [10, 20], "counts": compressed["counts"].decode()},
        {"size": [10, 20], "counts": single.run_lengths(single.encode(mask_HW > 0)).tolist()},
    ]
    annotations = [SQUARE | {"id": number, "segmentation": form} for number, form in enumerate(forms)]
    images = [{"id": 7, "width": 20, "height": 10}, {"id": 8, "width": 5, "height": 5}]
    found = coco_statistics(coco_file(tmp_path / "a.json", *annotations, images=images))
    assert dict(found.counts) == {
        "images": 2,
        "ok": 1,
        "empty": 1,
        "rejected": 0,
        "masks": 3,
        "candidates": 0,
    }
    assert found.concavity.greatest == 0
    assert found.relative_size.mean == pytest.approx((16 / 200) ** 0.5)
    assert sorted(found.masks_per_image.counts.elements()) == [0, 3]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_a_page_that_compares_and_runs_nothing(corpus, tmp_path, capsys):
    hostile = coco_file(tmp_path / "<script>alert($1)$.json", SQUARE)
    page = tmp_path / "new" / "report.html"
    assert main(["report", str(corpus), "--out", str(page), "--against", str(hostile), "--json"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["images"], said["against"]["images"]) == (13, 1)
    assert err == f"{page}: written\n"
    text = page.read_text("utf-8")
    seen = Tags(text)
    assert "script" not in seen.tags
    assert seen.tags.count("figure") == seen.tags.count("svg") >= 9
    assert "&lt;script&gt;alert($1)$.json" in text
    assert "script-src 'none'" in text
    assert not any(
        value and value.startswith("http") for name, value in seen.attributes if name in ("src", "href")
    )
    assert re.search(r"predicted IoU</th><td>0\.\d+</td><td>–</td>", text)  # the COCO file has none
    assert "var(--accent)" in text
    assert "#070809" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "."], "this is a folder"),
        (["--against", "nothing.json", "--json"], "cannot be read"),
        (["--against", "nothing", "--json"], "expected a corpus, or a COCO file"),
        (["--against", "nothing.json"], "--against needs --out PAGE or --json"),
    ],
)
def test_wrong_use_is_one_line(corpus, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(corpus), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line

"""What `docs/consumers.md` shows is run, block by block, on a small corpus.

pandas, Hugging Face's datasets and FiftyOne are no part of the development extra, see `pyproject.toml`:
`make readers`.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from tests.support.corpora import make_corpus, make_photos

TEXT = (Path(__file__).parents[2] / "docs" / "consumers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images in three shards: five with masks, one without, one rejected."""
    folder = tmp_path_factory.mktemp("consumers")
    record = {"embed_images": True, "input": {"max_pixels": 10**6}}
    make_corpus(make_photos(folder / "photos"), folder / "corpus", config=record)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return list(Corpus(folder / "corpus"))


@pytest.fixture
def run(folder, monkeypatch):
    """Runs the block of a section in the folder; what it left behind."""

    def run(section):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        (block,) = re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
        scope = {}
        exec(compile(block, f"docs/consumers.md, {section}", "exec"), scope)
        return scope

    return run


def areas(rows, least=0):
    return [mask["area"] for row in rows for mask in row["annotations"] if mask["area"] > least]


def test_every_section_has_its_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {re.sub(r"\W", "_", section.lower()) for section in SECTIONS} <= tests
    links = set(re.findall(r"\(#([\w-]+)\)", TEXT))
    assert links == {section.lower().replace(" ", "-") for section in SECTIONS}


def test_maskmill(run, rows):
    left = run("maskmill")
    (last,) = [row for row in rows if row["key"] == "6.png"]
    assert left["masks_HWN"].shape == (last["height"], last["width"], len(last["annotations"]))
    assert left["image_HW3"].shape == (last["height"], last["width"], 3)
    assert len(left["cutouts"]) == len(last["annotations"])
    assert set(np.unique(left["labels_HW"])) == {0, 1, 2, 3}
    assert sum(len(row["annotations"]) for row in left["small"]) == sum(area <= 300 for area in areas(rows))
    assert sorted(left["shuffled"]) == [row["key"] for row in rows]


def test_pyarrow(run, rows):
    left = run("pyarrow")
    assert len(left["masks"]) == len(areas(rows))
    assert [mask["area"] for mask in left["large"]] == areas(rows, 300)


def test_duckdb(run, rows):
    found = run("DuckDB")["largest"]
    assert [area for _, area, _, _ in found] == sorted(areas(rows), reverse=True)[:10]
    boxes = [mask["bbox"] for row in rows for mask in row["annotations"]]
    assert all(list(box) in boxes for _, _, _, box in found)


def test_polars(run, rows):
    counted = {row["key"]: len(row["annotations"]) for row in rows if row["status"] == "ok"}
    assert dict(run("Polars")["per_image"].select("key", "len").iter_rows()) == counted


@pytest.mark.slow  # where pandas is, every process pays for it: `make readers` has an environment of its own
def test_pandas(run, rows):
    pytest.importorskip("pandas")
    found = run("pandas")["by_area"]
    assert found["area"].tolist() == sorted(areas(rows), reverse=True)
    assert {"key", "segmentation.counts", "predicted_iou", "bbox"} <= set(found.columns)


@pytest.mark.slow
def test_hugging_face_datasets(run, rows, folder):
    pytest.importorskip("datasets")
    left = run("Hugging Face datasets")
    wanted = [row for row in rows if row["status"] == "ok"]
    assert left["images"]["key"][:] == [row["key"] for row in wanted]
    corpus = Corpus(folder / "corpus")
    assert np.array_equal(np.asarray(left["picture"]), corpus.image(wanted[0]))
    first = left["first"]
    row = corpus.row(first["key"])
    assert np.array_equal(np.asarray(first["image"]), corpus.image(row))
    assert [mask["segmentation"] for mask in first["annotations"]] == [
        mask["segmentation"] for mask in row["annotations"]
    ]


def test_pycocotools(run, rows, folder):
    left = run("pycocotools")
    assert left["areas"] == areas(rows)
    assert np.array_equal(left["masks_HWN"].astype(bool), Corpus(folder / "corpus").masks(rows[0]))
    assert left["overlaps"].diagonal().tolist() == [1.0] * len(rows[2]["annotations"])


@pytest.mark.slow
def test_supervision(run, rows):
    left = run("supervision")
    detections, masks = left["detections"], rows[0]["annotations"]
    assert len(detections) == len(masks)
    assert detections.area.tolist() == [mask["area"] for mask in masks]
    assert left["annotated"].shape == (rows[0]["height"], rows[0]["width"], 3)


def test_pytorch(run, rows, folder):
    left = run("PyTorch")
    assert left["state"]["epoch"] == 3
    assert sum(left["state"]["done"].values()) == len(rows), "all that there is was used"
    ys, xs = torch.nonzero(left["masks_NHW"][0], as_tuple=True)
    box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
    assert left["boxes_N4"][0].tolist() == box
    assert left["one"]["key"] == "0.png"


def test_fiftyone(folder, rows, monkeypatch):
    """The block is Python, and pycocotools opens the file that it names."""
    (block,) = re.findall(r"^```python\n(.*?)^```", SECTIONS["FiftyOne"], re.MULTILINE | re.DOTALL)
    compile(block, "docs/consumers.md, FiftyOne", "exec")
    (command,) = re.findall(r"^```\nmaskmill (.*?)\n```", SECTIONS["FiftyOne"], re.MULTILINE)
    (labels,) = re.findall(r'labels_path="([^"]+)"', block)
    monkeypatch.chdir(folder)
    assert main(command.split()) == 0
    found = COCO(labels)
    assert sorted(mask["area"] for mask in found.anns.values()) == sorted(areas(rows))
    names = {image["file_name"] for image in found.imgs.values()}
    assert all((folder / "photos" / name).exists() for name in names)


@pytest.mark.slow
def test_fiftyone_imports_it(folder, rows, run, monkeypatch):
    """All but its database, which wants MongoDB: the importer is given what the block gives `from_dir`."""
    fiftyone = pytest.importorskip("fiftyone")
    from fiftyone.utils.data.importers import build_dataset_importer

    monkeypatch.chdir(folder)
    assert main(["export", "corpus", "--format", "coco", "--out", "coco"]) == 0
    monkeypatch.setattr(fiftyone.Dataset, "from_dir", build_dataset_importer)
    importer, _ = run("FiftyOne")["photographs"]
    with importer:
        images = {Path(path).name: labels.detections if labels else [] for path, _, labels in importer}
    for row in (row for row in rows if row["status"] != "rejected"):
        masks = images.pop(row["key"])
        assert [int(mask.mask.sum()) for mask in masks] == areas([row])
        assert [mask.predicted_iou for mask in masks] == pytest.approx(
            [annotation["predicted_iou"] for annotation in row["annotations"]]
        )
    assert not images

"""A corpus that an earlier maskmill made (`tests/kept/README.md`), and what its owner wants of it now."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskmill import Corpus
from maskmill.pipelines.cli import main

KEPT = Path(__file__).parents[2] / "kept"
COMMAND = re.search(r"```\nmaskmill (.*?)```", (KEPT / "README.md").read_text(), re.DOTALL)[1].split()

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="its uris go by Linux's /proc"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A copy of it all, in the current folder."""
    folder = Path(shutil.copytree(KEPT, tmp_path / "work"))
    monkeypatch.chdir(folder)
    return folder


def state(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def statuses():
    return {row["key"]: row["status"] for row in Corpus("corpus")}


def test_it_verifies(work):
    assert main(["verify", "corpus"]) == 0
    assert sorted(statuses().values()) == ["empty"] * 2 + ["ok"] * 4 + ["rejected"]
    totals = json.loads(Path("corpus/corpus.json").read_text())["totals"]
    assert (totals["images"], totals["masks"], totals["rejects"]) == (7, 4, {"NotAnImage": 1})


def test_the_command_that_made_it_finds_nothing_to_do(work, capsys):
    before = state(work / "corpus")
    assert main(COMMAND) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert state(work / "corpus") == before


def test_a_lost_shard_is_made_anew(work):
    before, rows = state(work / "corpus"), list(Corpus("corpus"))
    Path("corpus/shards/shard-000001.parquet").unlink()
    assert main(COMMAND) == 0
    assert main(["verify", "corpus"]) == 0
    after = state(work / "corpus")
    assert {name for name in before if after[name] != before[name]} <= {
        "corpus.json",
        "shards/shard-000001.parquet",
    }
    for row, was in zip(Corpus("corpus"), rows, strict=True):
        assert (row["key"], row["status"], row["candidates"]) == (
            was["key"],
            was["status"],
            was["candidates"],
        )


def test_it_is_resumed_without_a_word(work):
    before = state(work / "corpus")
    Path("corpus/shards/shard-000001.parquet").unlink()
    assert main(["resume", "corpus"]) == 0
    assert main(["verify", "corpus"]) == 0
    assert state(work / "corpus")["run.json"] == before["run.json"]


def test_it_grows(work):
    before = state(work / "corpus")
    for name in ("6.png", "7.png"):
        Image.open("photos/0.png").transpose(Image.Transpose.ROTATE_180).save(f"photos/{name}")
    assert main([*COMMAND, "--extend"]) == 0
    assert main(["verify", "corpus"]) == 0
    assert len(statuses()) == 9
    after = state(work / "corpus")
    assert {name for name in before if after[name] != before[name]} == {"corpus.json"}


def test_what_was_rejected_is_run_again(work):
    shutil.copy("photos/1.png", "photos/broken.png")
    assert main([*COMMAND, "--retry-rejects", "NotAnImage"]) == 0
    assert main(["verify", "corpus"]) == 0
    assert statuses()["broken.png"] == statuses()["1.png"] == "ok"


def test_it_is_exported(work):
    assert main(["export", "corpus", "--format", "sa1b", "--out", "sa1b"]) == 0
    assert main(["export", "corpus", "--format", "coco", "--out", "coco"]) == 0
    shards = pq.ParquetDataset("corpus/shards").read().to_pylist()
    areas = sorted(mask["area"] for row in shards for mask in row["annotations"])
    coco = json.loads(Path("coco/annotations.json").read_text())
    assert sorted(annotation["area"] for annotation in coco["annotations"]) == areas
    assert len(coco["images"]) == 6
    assert list(Path("sa1b").glob("*.tar"))


def test_other_thresholds_are_refused(work, capsys):
    assert main([*COMMAND, "--set", "generator.pred_iou_thresh=0.6"]) == 2
    assert "generator.pred_iou_thresh was 0.55, now 0.6" in capsys.readouterr().err

"""What the README tells people to type: its Python and its SQL run, on a corpus made as it says."""

import re
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `photo.jpg` and `corpus`, made of it by the bundled weights on a coarse grid."""
    from skimage import data

    root = tmp_path_factory.mktemp("readme")
    Image.fromarray(data.coffee()).save(root / "photo.jpg")
    command = ["generate", str(root / "photo.jpg"), "--out", str(root / "corpus"), "--config", "nano"]
    coarse = [
        "generator.points_per_side=6",
        "generator.pred_iou_thresh=0",
        "generator.stability_score_thresh=0",
    ]
    assert main([*command, "--workers", "0", *(word for value in coarse for word in ("--set", value))]) == 0
    return root


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope.get("masks_HWN") is None or scope["masks_HWN"].any()
    assert scope.get("areas") is None or min(scope["areas"]) > 0


def test_sql_finds_the_largest_masks(folder, monkeypatch):
    monkeypatch.chdir(folder)
    [query] = blocks("sql")
    found = duckdb.sql(query).fetchall()
    [row] = Corpus("corpus").rows()
    expected = sorted((a["area"] for a in row["annotations"]), reverse=True)[:10]
    assert [area for _, area, _, _ in found] == expected


def test_every_linked_file_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    missing = [link for link in links if not (Path(__file__).parents[2] / link).exists()]
    assert links
    assert not missing

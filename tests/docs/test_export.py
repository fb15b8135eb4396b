"""`docs/export.md`: its commands are run in their order, its examples are what is written."""

import json
import re
import shlex
from pathlib import Path

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.commands.exchange import export_corpus, import_corpus
from maskmill.pipelines.exchange.coco import annotation_json, image_json
from maskmill.pipelines.exchange.encode import JPEG_QUALITY
from maskmill.pipelines.exchange.export import IMAGES_PER_TAR
from maskmill.pipelines.exchange.sa1b import MAX_JSON_BYTES, entry_json
from tests.support.command_lines import check_maskmill, commands_in
from tests.support.corpora import make_corpus, make_photos

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "export.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def row():
    """The row of `docs/format.md`."""
    (block,) = re.findall(r"```json\n(.*?)```", (DOCS / "format.md").read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(block)


def test_every_command_runs(tmp_path, monkeypatch, capsys):
    make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("console")
    lines = [shlex.split(line.removeprefix("$ maskmill ")) for line in block.splitlines()]
    assert len(lines) == 6
    for words in lines:
        assert main(words) == 0, capsys.readouterr().err
    assert len(list(Path("as-sa1b").glob("*.tar"))) == 2
    assert len(list(Path("labels/labels").glob("*.png"))) == 6
    assert Path("outlines/annotations.json").stat().st_size > 100


def test_other_commands_on_the_page_are_understood():
    for words in commands_in(TEXT, "maskmill"):
        if not re.search(r"[A-Z…\[]", " ".join(words)):
            check_maskmill(words)


def test_the_options_are_all_there():
    options = set(re.findall(r"(?<!\w)--[a-z-]+", TEXT))
    for command in (export_corpus, import_corpus):
        names = set(command.__annotations__) - {"context", "return", "corpus", "inputs", "format_", "embed"}
        assert {f"--{name.replace('_', '-')}" for name in names} <= options


def test_the_examples_are_what_is_written(row):
    entry, image, annotation = map(json.loads, blocks("json"))
    assert json.loads(entry_json(row, row["annotations"], imported=False)) == entry
    assert json.loads(image_json(row)) == image
    written = json.loads(annotation_json(row, 0, imported=False, as_polygons=False))
    assert written == annotation
    assert list(written) == list(annotation)


def test_the_numbers_on_the_page():
    assert f"with {IMAGES_PER_TAR:,} images each" in TEXT
    assert f"JPEG of quality {JPEG_QUALITY}" in TEXT
    assert f"over {MAX_JSON_BYTES >> 20} MiB" in TEXT

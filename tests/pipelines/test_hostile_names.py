"""File names that were chosen to do harm: as far as the corpus, its checks, its page and the terminal."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import InputRejected
from maskmill.pipelines.text import visible
from tests.support.corpora import make_corpus
from tests.support.image_files import encoded, smooth

NAMES = [
    b"line\nbreak.png",
    b"return\r.png",
    b"\x1b]0;title\x07\x1b[31mred.png",
    b"-rf.png",
    b"up..png",
    b"%2e%2e%2fup.png",
    b"back\\..\\slash.png",
    b"<img src=x onerror=alert(1)>.png",
    b"<script>.png",
    b"'; DROP TABLE images.png",
    b"[bold]rich.png",
    b"\xff\xfe not UTF-8.png",
    "\u202egnp.right-to-left.png".encode(),
    b"x" * 251 + b".png",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of photographs so named, every third of them damaged, alone in a folder."""
    root = tmp_path_factory.mktemp("names")
    photos = root / "photos"
    photos.mkdir()
    for number, name in enumerate(NAMES):
        data = encoded(smooth(20, 30), "PNG")
        with open(os.path.join(os.fsencode(photos), name), "wb") as file:  # noqa: PTH118, PTH123  (bytes)
            file.write(data if number % 3 else data[:60])
    return make_corpus(photos, root / "corpus")


def test_every_name_is_a_row_of_its_own(corpus):
    assert len({row["key"] for row in Corpus(corpus)}) == len(NAMES)


def test_nothing_is_written_outside_the_corpus_nor_named_after_an_input(corpus):
    assert sorted(path.name for path in corpus.parent.iterdir()) == ["corpus", "photos"]
    assert len(list((corpus.parent / "photos").iterdir())) == len(NAMES)
    written = {path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file()}
    assert {name.split("-")[0] for name in written} <= {
        "run.json", "corpus.json", "plan/part", "shards/shard", "lease.json",
    }  # fmt: skip


def names_of(files):
    """The names that the page gets, as JSON in files of their own."""
    blocks = [
        path.read_text("ascii") for path in files.iterdir() if path.name[0] in "pr" and path.suffix == ".js"
    ]
    return {row[0] for block in blocks for row in json.loads(f"[{block[len('maskmill(') : -3]}]")[1]}


def test_the_page_holds_no_control_characters(corpus, tmp_path):
    """Nor marks that turn the direction of what follows."""
    assert main(["gallery", str(corpus), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert all(character.isprintable() or character == "\n" for character in page)
    names = " ".join(names_of(tmp_path / "page_files"))
    assert names.isprintable()
    assert "\\x1b[31mred.png" in names
    assert "line\\nbreak.png" in names


def test_verify_finds_nothing(corpus, capfd):
    assert main(["verify", str(corpus)]) == 0
    assert f"{len(NAMES)} images" in capfd.readouterr().out


def test_findings_keep_to_their_lines(corpus, tmp_path, capfd):
    """A shard whose rows were swapped: each finding names the hostile keys, and stays one line of text."""
    broken = tmp_path / "broken"
    shutil.copytree(corpus, broken)
    for path in (broken / "shards").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.take(list(reversed(range(len(table))))), path)
    assert main(["verify", str(broken)]) == 3
    out, err = capfd.readouterr()
    lines = (out + err).split("\n")
    assert len(lines) > len(NAMES)
    assert all(line.isprintable() for line in lines)
    assert all("shard" in line or "maskmill:" in line or not line for line in lines)


def test_the_report_is_printable(corpus, capfd):
    assert main(["report", str(corpus)]) == 0
    assert all(line.isprintable() for line in capfd.readouterr().out.split("\n"))


def test_the_page_holds_no_tags_of_theirs(corpus, tmp_path):
    page = tmp_path / "page.html"
    assert main(["gallery", str(corpus), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "onerror=alert" not in text
    assert "<script>.png" not in text
    assert {"<img src=x onerror=alert(1)>.png", "<script>.png"} <= names_of(tmp_path / "page_files")


def test_a_name_in_an_error_keeps_to_its_line(tmp_path, capfd):
    assert main(["verify", str(tmp_path / "\x1b[31m no\nsuch\u202e")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable()


def test_what_is_printable_is_left_as_it_is():
    assert visible("ä × 写真 – [b].png") == "ä × 写真 – [b].png"
    assert visible("a\nb\x1b\u202e\udcff") == "a\\nb\\x1b\\u202e\\udcff"
    assert InputRejected("decode", "Corrupt", "a\n  b\x1b").message == "a b\\x1b"

"""`maskmill rejects`: which images could not be used, and why; by the corpus alone."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import InputRejected
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.rows import rejected_row, table_from_rows
from maskmill.pipelines.format.schema import ROW_SCHEMA
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from tests.support.corpora import fill_shard, make_corpus, make_photos, open_corpus


@pytest.fixture
def corpus(tmp_path):
    """Seven images in three shards; `1.png` is no image, and the last shard's is missing."""
    run = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    fill_shard(run, 0)
    missing = InputRejected("read", "Missing", "the file is\x1b[2J gone")
    rows = [rejected_row(image, missing) for image in run.plan.images(2)]
    commit_table(run.out, 2, table_from_rows(rows), shard_metadata(run.record.digest, 2, {}))
    return run.out


def listed(words, capsys):
    assert main(["rejects", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_none(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos")
    shutil.copy(photos / "0.png", photos / "1.png")
    out = make_corpus(photos, tmp_path / "corpus")
    assert listed([out], capsys) == f"{out}: no image was rejected\n"
    found = json.loads(listed([out, "--json"], capsys))
    assert found == {"images": [], "rejected": 0, "rejects": {}, "complete": True}


def test_a_run_that_has_committed_nothing(tmp_path, capsys):
    out = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus").out
    assert listed([out], capsys) == f"{out}: no image was rejected so far\n"


def test_each_is_a_line_with_class_key_and_message(corpus, capsys):
    first, second, total = listed([corpus], capsys).splitlines()
    assert first.startswith("NotAnImage      1.png: ")
    assert second == r"Missing         6.png: the file is\x1b[2J gone"
    assert total == "rejected so far: 1 NotAnImage, 1 Missing"


def test_one_line_of_json_has_them_as_they_are(corpus, capsys):
    said = listed([corpus, "--json"], capsys)
    assert said.count("\n") == 1
    found = json.loads(said)
    assert [(image["key"], image["class"], image["stage"]) for image in found["images"]] == [
        ("1.png", "NotAnImage", "decode"),
        ("6.png", "Missing", "read"),
    ]
    assert all(image["message"] for image in found["images"])
    assert (found["rejected"], found["complete"]) == (2, False)
    assert found["rejects"] == {"NotAnImage": 1, "Missing": 1}


def test_only_some_classes(corpus, capsys):
    assert [line[:7] for line in listed([corpus, "--class", "Missing"], capsys).splitlines()] == [
        "Missing",
        "rejecte",
    ]
    both = listed([corpus, "--class", "Missing", "--class", "NotAnImage", "--json"], capsys)
    assert len(json.loads(both)["images"]) == 2
    none = listed([corpus, "--class", "TooLarge", "--class", "Corrupt"], capsys)
    assert none == (
        f"{corpus}: no image was rejected as TooLarge or Corrupt so far; rejected: 1 NotAnImage, 1 Missing\n"
    )
    found = json.loads(listed([corpus, "--class", "TooLarge", "--json"], capsys))
    assert (found["images"], found["rejected"]) == ([], 2)


def test_annotations_are_not_read(corpus, capsys):
    """A shard whose masks cannot be decompressed is listed all the same."""
    path = shard_path(corpus, 0)
    table = pq.read_table(path)
    metadata = pq.ParquetFile(path).metadata
    column = next(
        metadata.row_group(0).column(number)
        for number in range(metadata.num_columns)
        if metadata.row_group(0).column(number).path_in_schema.endswith("counts")
    )
    content = bytearray(path.read_bytes())
    begin = column.data_page_offset
    content[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    assert table.schema.equals(ROW_SCHEMA)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(path)
    assert listed([corpus], capsys).startswith("NotAnImage      1.png: ")


@pytest.mark.parametrize("damage", ["nothing", "no corpus", "shard"])
def test_what_cannot_be_told_is_one_line_and_code_2(tmp_path, corpus, damage, capsys):
    out = tmp_path / "other" if damage != "shard" else corpus
    if damage == "no corpus":
        out.mkdir()
    elif damage == "shard":
        shard_path(out, 0).write_bytes(b"PAR1 and no more")
    assert main(["rejects", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

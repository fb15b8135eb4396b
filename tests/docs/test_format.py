"""`docs/format.md` is the specification: its example is built and read back, its tables checked."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from maskmill.engine.records import DROP_REASONS
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.decoding import image
from maskmill.pipelines.exchange import sa1b, sa1b_import
from maskmill.pipelines.format import run_record
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.format.plan import read_plan, write_part
from maskmill.pipelines.format.records import PlannedImage
from maskmill.pipelines.format.schema import PLAN_SCHEMA, ROW_SCHEMA
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.inputs import parquet, reader
from maskmill.pipelines.verification.corpus import verify
from maskmill.pipelines.verification.rows import head_problems, mask_problems
from maskmill.pipelines.writing import close
from tests.support.corpora import make_record

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture
def example():
    (block,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    return json.loads(block)


def test_the_example_has_the_columns_and_types_of_the_schema(example):
    table = pa.Table.from_pylist([example], schema=ROW_SCHEMA)
    assert table.to_pylist() == [example]  # no field more, none less, no value rounded
    assert list(example) == ROW_SCHEMA.names
    assert example["image_id"] == image_id(example["key"])


def test_the_example_is_sound(example):
    """Its plan has 42 other images before it; its mask is read by pycocotools and drawn by hand."""
    assert example["annotations"][0]["id"] == 42 * 2**20 + 1
    planned = PlannedImage(example["image_id"], example["key"], example["uri"], 0, 42)
    masks = example["annotations"]
    assert list(head_problems(example, len(masks), planned, embedded=False)) == []
    assert list(mask_problems(masks, planned.row, example["height"], example["width"])) == []
    drawn = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    assert np.array_equal(coco.decode(example["annotations"][0]["segmentation"]), drawn)


def test_a_corpus_of_the_example(example, tmp_path):
    """One image in a real corpus, written by the parts that write corpora, verified and read back."""
    example["annotations"][0]["id"] = 1
    record = make_record()
    run_record.write_run(tmp_path, record)
    plan = pa.Table.from_pylist([{**example, "shard": 0}], schema=PLAN_SCHEMA)
    write_part(tmp_path, plan, 0, 0, record.digest)
    table = pa.Table.from_pylist([example], schema=ROW_SCHEMA)
    assert commit_table(tmp_path, 0, table, shard_metadata(record.digest, 0, {"encode": 0.5}))
    close.finish_corpus(tmp_path, read_plan(tmp_path).shards)
    assert verify(tmp_path).problems == []
    assert list(Corpus(tmp_path)) == [example]
    assert pq.read_table(tmp_path / "shards").to_pylist() == [example]  # by any reader, the folder as it is


def test_the_tables_name_every_column_and_field(example):
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", sections["A row"], re.MULTILINE)
    names = [name for cell in named for name in re.findall(r"\w+", cell)]
    assert names == [*ROW_SCHEMA.names, *example["annotations"][0]]
    assert all(f"`{reason}`" in sections["A row"] for reason in DROP_REASONS)
    assert all(f"`{name}`" in sections["The plan"] for name in PLAN_SCHEMA.names)
    record = make_record()
    assert all(f"`{name}`" in sections["run.json"] for name in record.as_json())


def test_the_rejections_are_those_that_the_code_makes():
    paths = [Path(module.__file__) for module in (parquet, reader, sa1b, sa1b_import)]
    paths += Path(image.__file__).parent.glob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in paths)
    made = set(re.findall(r'InputRejected\(\s*"\w+", "(\w+)"', source)) | {"WorkerDied"}
    documented = set(re.findall(r"^\| `(?:read|decode|generate)`.*?\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert made == documented

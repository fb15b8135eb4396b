"""Reading: what is no corpus first, then rows, masks, and how light it is."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format.schema import ROW_SCHEMA
from tests.support.corpora import draw_masks, fill_shard, make_corpus, make_photos, open_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    return Corpus(make_corpus(make_photos(folder / "photos"), folder / "corpus"))


def test_what_is_no_corpus(tmp_path):
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(CorpusError, match="there is no such folder; expected a corpus"):
            Corpus(tmp_path / name)
    with pytest.raises(CorpusError, match=r"not a corpus: it has no run\.json"):
        Corpus(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": "maskmill-corpus", "format_version": 2}))
    with pytest.raises(CorpusError, match="format version 2; this maskmill reads version 1"):
        Corpus(tmp_path)


def test_an_unfinished_corpus(tmp_path):
    run = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    assert (len(Corpus(run.out)), list(Corpus(run.out)), Corpus(run.out).complete) == (0, [], False)
    fill_shard(run, 2)
    (run.out / "shards" / ".maskmill-shard-000000.parquet-0f.tmp").write_bytes(b"half")
    assert [row["key"] for row in Corpus(run.out)] == ["6.png"]


def test_rows(corpus):
    assert len(corpus) == 7
    assert corpus.complete
    assert [row["key"] for row in corpus] == [f"{number}.png" for number in range(7)]
    assert [row["key"] for row in corpus.rows("rejected")] == ["1.png"]
    assert [row["key"] for row in corpus.rows("empty")] == ["4.png"]
    assert [len(row["annotations"]) for row in corpus.rows(status="ok")] == [1, 3, 1, 3, 1]
    assert corpus.run.model_name == "nano"


def test_a_status_that_does_not_exist(corpus):
    with pytest.raises(ValueError, match="expected a status out of ok, empty, rejected, got 'fine'"):
        corpus.rows("fine")


def test_annotations_are_json(corpus):
    row = next(iter(corpus))
    assert json.loads(json.dumps(row["annotations"])) == row["annotations"]


def test_masks(corpus):
    row = next(itertools.islice(corpus, 2, None))
    masks_HWN = corpus.masks(row)
    assert masks_HWN.shape == (22, 28, 3)
    assert masks_HWN.dtype == np.bool_
    for index, annotation in enumerate(row["annotations"]):
        ys, xs = np.nonzero(masks_HWN[..., index])
        assert annotation["area"] == len(ys)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (xs.min(), ys.min(), xs.max(), ys.max())
    # The same masks drawn again, by the generator of numbers that drew them.
    expected = [mask.segmentation.counts for mask in draw_masks(22, 28, 2, 3)]
    assert [annotation["segmentation"]["counts"] for annotation in row["annotations"]] == expected


def test_masks_that_are_not_there(corpus):
    (empty,) = corpus.rows("empty")
    assert corpus.masks(empty).shape == (24, 26, 0)
    (rejected,) = corpus.rows("rejected")
    with pytest.raises(ValueError, match=r"1.png: a rejected image has no masks"):
        corpus.masks(rejected)


# 600 pixels of background, then 2**53 of each kind, 1,024 times over: in 64 bits that adds up to 600.
WRAPPED_ROUND = "hb0" + "PPPPPPPPPP8" * 2 + "0" * 2046


@pytest.mark.parametrize(
    "counts", ["", "o", "h", "ooooo", "0" * 50, "é", "\0", "11" * 5000, WRAPPED_ROUND], ids=range(9)
)
def test_a_damaged_code_is_an_error_and_not_a_crash(corpus, counts):
    row = next(iter(corpus))
    row["annotations"][0]["segmentation"]["counts"] = counts
    with pytest.raises(CorpusError, match=r"0.png: mask 0"):
        corpus.masks(row)
    row["annotations"][0]["segmentation"]["size"] = [2**31 - 1, 2**31 - 1]
    with pytest.raises(CorpusError, match=r"0.png: mask 0 is for"):
        corpus.masks(row)


def test_a_damaged_shard(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    path = out / "shards" / "shard-000001.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"shard-000001.parquet: cannot be read"):
        list(Corpus(out))
    path.write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"shard-000001.parquet: cannot be read"):
        len(Corpus(out))


@pytest.mark.parametrize(
    ("key", "changes", "says"),
    [
        ("0.png", {"status": None}, "0.png: the status is None"),
        ("0.png", {"status": '"><script>'}, "0.png: the status is '\"><script>'"),
        ("0.png", {"width": None}, "0.png: the size is None×20"),
        ("4.png", {"height": 0}, "4.png: the size is 26×0"),
        ("0.png", {"annotations": None}, "0.png: no annotations"),
        ("0.png", {"key": None}, "None: no key"),
        ("1.png", {"error": None}, "1.png: rejected without an error"),
        ("1.png", {"error": {"stage": "read", "class": None, "message": "?"}}, "rejected without an error"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path, key, changes, says):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    for path in sorted((out / "shards").iterdir()):
        rows = pq.read_table(path).to_pylist()
        spoilt = [row | changes if row["key"] == key else row for row in rows]
        pq.write_table(pa.Table.from_pylist(spoilt, ROW_SCHEMA), path)
    with pytest.raises(CorpusError) as caught:
        list(Corpus(out))
    assert says in str(caught.value)


def test_a_shard_with_other_columns(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    path = out / "shards" / "shard-000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["drops"]), path)
    with pytest.raises(
        CorpusError, match=r"shard-000001.parquet: damaged: the columns are not those of format 1"
    ):
        list(Corpus(out))


def test_reading_is_light(corpus):
    """Rows and masks without torch, Ray, pandas, OpenCV or Pillow, in a fresh process."""
    script = (
        "import sys; from maskmill.pipelines.corpus.reader import Corpus\n"
        "corpus = Corpus(sys.argv[1]); [corpus.masks(row) for row in corpus.rows('ok')]\n"
        "print(sorted({'torch', 'ray', 'pandas', 'cv2', 'PIL', 'pydantic'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(corpus.path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"

"""The bytes behind a row: what is missing or changed first, then every place that they may lie in."""

import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.corpus.images import Originals
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import CorpusError, CorpusUnavailable
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.moved import Moved
from tests.support.corpora import make_corpus, make_photos

DATA = b"any bytes do"


def original(row):
    return Originals(Path("/nowhere/corpus"), Moved()).read(row)


def row_of(uri, data=DATA, **more):
    return {
        "key": "a/b.jpg",
        "uri": str(uri),
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "image": None,
        **more,
    }


def test_a_row_that_was_never_read():
    with pytest.raises(CorpusError, match=r"a/b.jpg: its file could not be read when"):
        original(row_of("/nowhere", image_sha256=None))


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(CorpusError, match=r"a/b.jpg: .*/b.jpg: there is no such file any more") as caught:
        original(row_of(tmp_path / "b.jpg"))
    assert not isinstance(caught.value, CorpusUnavailable)


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(CorpusUnavailable, match=r"a/b.jpg: .* cannot be read: No such file") as caught:
        original(row_of(tmp_path / "folder" / "b.jpg"))
    assert caught.value.errno == 2


def test_a_file_that_is_another_one_now(tmp_path):
    path = tmp_path / "b.jpg"
    path.write_bytes(DATA + b"!")
    with pytest.raises(CorpusError, match=r"a/b.jpg: .*/b.jpg has changed"):
        original(row_of(path))
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match="the file has no bytes"):
        original(row_of(path))


def test_an_embedded_image_that_was_changed():
    with pytest.raises(CorpusError, match=r"a/b.jpg: the embedded image has changed"):
        original(row_of("/nowhere", image={"bytes": DATA + b"!", "path": "b.jpg"}))


def test_a_part_that_is_none(tmp_path):
    (tmp_path / "a.tar").write_bytes(DATA)
    for part, says in (("offset=1", "names no part of an archive"), ("offset=9&size=9", "shorter")):
        with pytest.raises(CorpusError, match=says):
            original(row_of(f"file://{tmp_path}/a.tar#{part}"))


def test_secrets_stay_out_of_messages(tmp_path):
    with pytest.raises(CorpusError) as caught:
        original(row_of(f"file://{tmp_path}/a.tar?token=hunter2#offset=9"))
    assert "hunter2" not in str(caught.value)


def test_the_embedded_bytes_win():
    assert original(row_of("/nowhere", image={"bytes": DATA, "path": "b.jpg"})) == DATA


def test_a_file_a_member_and_a_row(tmp_path):
    (tmp_path / "a#b.jpg").write_bytes(DATA)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("x.jpg", b"other"), ("../y.jpg", DATA)):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    pq.write_table(pa.table({"image": [b"other", DATA]}), tmp_path / "a.parquet")
    assert original(row_of(tmp_path / "a#b.jpg")) == DATA
    for name in ("a.tar", "a.parquet"):
        other, ours = list_inputs([tmp_path / name], [".jpg"])["uri"].to_pylist()
        if name == "a.tar":
            other, ours = ours, other  # by key `../y.jpg` comes first
        assert original(row_of(ours)) == DATA
        with pytest.raises(CorpusError, match="has changed"):
            original(row_of(other))


@pytest.mark.parametrize("embed", [False, True])
def test_the_rows_of_a_corpus(tmp_path, embed):
    config = {"generator": {}, "shard_size": 3, "embed_images": embed}
    photos = make_photos(tmp_path / "photos")
    corpus = Corpus(make_corpus(photos, tmp_path / "corpus", config=config))
    for row in corpus:
        assert corpus.originals.read(row) == (photos / row["key"]).read_bytes()

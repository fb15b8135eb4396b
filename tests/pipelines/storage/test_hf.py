"""The Hugging Face Hub, over HTTP: a dataset is read from it, and nothing is written to it."""

import io

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import InputRejected, UsageError
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.storage import retries
from tests.support import stores
from tests.support.hub import DATASET, hub
from tests.support.stores import words

ENDINGS = (".png",)
ROOT = f"hf://datasets/{DATASET}"


@pytest.fixture
def server(photos, tmp_path, monkeypatch):
    """A dataset of three photographs, two more in a table, and what must not be taken for one."""
    files = {f"trip/{number}.png": (photos / "coffee" / f"{number}.png").read_bytes() for number in range(3)}
    table = io.BytesIO()
    rows = [(photos / "rocket" / f"{number}.png").read_bytes() for number in range(2)]
    pq.write_table(pa.table({"image": [{"bytes": row, "path": None} for row in rows]}), table)
    files |= {"data/train.parquet": table.getvalue(), "README.md": b"x", ".gitattributes": b"x"}
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    files |= {"odd/a b#1%.png": b"odd", "odd/empty.png": b"", "trip/list.txt": b"1.png\n"}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub(files) as server:
        # What HF_ENDPOINT sets, for a process that has imported the library already.
        constants, address = huggingface_hub.constants, server.address
        monkeypatch.setattr(constants, "ENDPOINT", address)
        bytes_at = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", bytes_at)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield server
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("/trip", ["0.png", "1.png", "2.png"]),
        ("@main/trip", ["0.png", "1.png", "2.png"]),
        ("/*/0.*", ["trip/0.png"]),
        ("/trip/list.txt", ["1.png"]),
        ("/data/*.parquet", [f"{ROOT}/data/train.parquet#{row}" for row in range(2)]),
    ],
)
def test_folders_globs_lists_and_tables(server, given, keys):
    assert list_inputs([ROOT + given], ENDINGS)["key"].to_pylist() == keys


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (f"{ROOT}/nothing", "there is no such file or folder"),
        ("hf://datasets/someone/nothing", "repository not found"),
    ],
)
def test_inputs_that_are_not_there(server, given, says):
    with pytest.raises(UsageError, match=says):
        list_inputs([given], ENDINGS)


def test_a_file_is_one_request_for_its_bytes(server, photos):
    (uri,) = list_inputs([f"{ROOT}/trip/1.png"], ENDINGS)["uri"].to_pylist()
    assert read_input(uri) == (photos / "coffee" / "1.png").read_bytes()
    assert len(server.asked) == 1
    (odd,) = (uri for uri in list_inputs([f"{ROOT}/odd"], ENDINGS)["uri"].to_pylist() if "empty" not in uri)
    assert odd == f"{ROOT}/odd/a b%231%25.png"
    assert read_input(odd) == b"odd"


@pytest.mark.parametrize(("name", "error_class"), [("odd/empty.png", "EmptyFile"), ("gone.png", "Missing")])
def test_files_that_are_rejected_rows(server, name, error_class):
    with pytest.raises(InputRejected) as caught:
        read_input(f"{ROOT}/{name}")
    assert caught.value.error_class == error_class


def test_a_file_that_goes_between_listing_and_reading(server):
    uris = list_inputs([f"{ROOT}/trip"], ENDINGS)["uri"].to_pylist()
    del server.files["trip/1.png"]
    with pytest.raises(InputRejected, match="no such object any more"):
        read_input(uris[1])


def test_a_dataset_that_is_gone_is_the_stores_fault(server):
    with pytest.raises(OSError, match="repository not found"):
        read_input("hf://datasets/someone/nothing/a.png")


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.parquet"])
@pytest.mark.parametrize("code", [400, 401, 403])
def test_a_refusal_in_mid_run_is_no_damage(
    server, photos, tiny_settings, tmp_path, monkeypatch, capsys, name, code
):
    """A permission that was lost, a token that has run out."""
    server.files[f"refused{code}/{name}"] = stores.packed(photos, tmp_path)[name]
    typed = words(f"{ROOT}/refused{code}/{name}", tmp_path / "corpus", tiny_settings)
    with stores.at_the_first_image(monkeypatch, name, lambda: setattr(server, "answers_with", code)):
        assert main(typed) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "left undone" in said
    assert committed_shards(tmp_path / "corpus") == set()
    server.answers_with = None
    assert main(typed) == 0
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("a.png", "RepoNotFound"),
        ("a.png", "RevisionNotFound"),
        ("a.tar", "RepoNotFound"),
        ("a.parquet", "RepoNotFound"),
    ],
)
def test_what_vanishes_in_mid_run_with_all_that_is_in_it_is_the_stores_fault(
    server, photos, tiny_settings, tmp_path, monkeypatch, capsys, name, gone
):
    """The library remembers that it was there."""
    server.files[f"{gone}/{name}"] = stores.packed(photos, tmp_path)[name]
    revision = "@branch" if gone == "RevisionNotFound" else ""
    typed = words(f"{ROOT}{revision}/{gone}/{name}", tmp_path / "corpus", tiny_settings)
    with stores.at_the_first_image(monkeypatch, name, lambda: setattr(server, "gone", gone)):
        assert main(typed) == 4
    assert "left undone" in capsys.readouterr().err
    assert committed_shards(tmp_path / "corpus") == set()
    server.gone = None
    assert main(typed) == 0
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


def test_a_hub_that_refuses_is_one_line(server, tiny_settings, tmp_path, capsys):
    server.answers_with = 403
    assert main(words(ROOT, tmp_path / "corpus", tiny_settings)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"maskmill: {ROOT}: cannot be listed: ")
    assert said.count("\n") == 1


def test_a_corpus_from_a_dataset(server, tiny_settings, tmp_path):
    typed = words(f"{ROOT}/trip", tmp_path / "corpus", tiny_settings)
    typed.insert(2, f"{ROOT}/data/train.parquet")
    assert main(typed) == 0
    assert main(["verify", str(tmp_path / "corpus")]) == 0
    keys = [f"{ROOT}/data/train.parquet#0", f"{ROOT}/data/train.parquet#1"]
    assert [row["key"] for row in Corpus(tmp_path / "corpus")] == [
        *keys,
        *(f"trip/{number}.png" for number in range(3)),
    ]
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


def test_no_corpus_is_written_to_the_hub(server, photos, tiny_settings, capsys):
    """Each file would be a commit of its own, on no condition."""
    out = f"{ROOT}-corpus"
    assert main(words(photos / "coffee", out, tiny_settings)) == 2
    said = capsys.readouterr().err
    assert (
        said == f"maskmill: {out}: cannot be written: hf:// is for inputs; choose a folder, s3:// or gs://\n"
    )

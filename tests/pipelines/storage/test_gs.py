"""Google's store, over HTTP: what is read from it, and a corpus that is written into it exactly once.

The server is an emulator on loopback. It knows no conditions: those the proxy before it holds, by Google's
documentation (`stores.GsProxy`).
"""

import threading

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import CorpusUnavailable, InputRejected, UsageError
from maskmill.pipelines.format.run_record import read_run
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.storage import atomic, retries
from maskmill.pipelines.storage.paths import place, uri_of
from maskmill.pipelines.workers.loading import check_sees_corpus
from maskmill.pipelines.workers.tasks import Job
from maskmill.pipelines.writing.close import finish_corpus
from tests.support import stores
from tests.support.corpora import make_corpus, make_photos
from tests.support.stores import WHOLE, words

ENDINGS = (".png",)


@pytest.fixture(scope="module")
def server():
    with stores.gs_server() as proxy:
        yield proxy


@pytest.fixture
def gs(server, monkeypatch):
    """The environment of the server; the answer is Google's own client of it."""
    stores.use_gs(monkeypatch, server.address)
    return stores.gs_client_of(server.address)


@pytest.fixture
def asked(server, monkeypatch):
    """What the server is asked for from here on."""
    requests = []
    log = lambda _number, method, path: requests.append(f"{method} {path}")  # noqa: E731
    monkeypatch.setattr(server, "fault", log)
    return requests


def upload(client, name, content):
    client.bucket("photos").blob(name).upload_from_string(content)


def names(client, prefix):
    return sorted(blob.name.removeprefix(prefix) for blob in client.list_blobs("corpora", prefix=prefix))


@pytest.fixture
def collection(gs, photos):
    for number in range(2):
        for name in ("coffee", "rocket"):
            upload(gs, f"trip/{name}/{number}.png", (photos / name / f"{number}.png").read_bytes())
    upload(gs, "trip/.hidden.png", b"x")
    upload(gs, "trip/list.txt", b"coffee/0.png\n")
    return "gs://photos/trip"


# Reading


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("trip", ["coffee/0.png", "coffee/1.png", "rocket/0.png", "rocket/1.png"]),
        ("trip/*/0.*", ["coffee/0.png", "rocket/0.png"]),
        ("trip/list.txt", ["coffee/0.png"]),
    ],
)
def test_folders_globs_and_lists(collection, given, keys):
    assert list_inputs([f"gs://photos/{given}"], ENDINGS)["key"].to_pylist() == keys


@pytest.mark.parametrize("given", ["gs://photos/nothing", "gs://nobucket/photos"])
def test_inputs_that_are_not_there(gs, given):
    with pytest.raises(UsageError, match=r"no such file or folder|cannot be listed"):
        list_inputs([given], ENDINGS)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "#1.jpg", "a#17.jpg", "100%.jpg", "%23.jpg", "ä.jpg", "what?.jpg"]
)
def test_names_survive_their_uri(gs, name):
    upload(gs, f"odd/{name}", name.encode())
    assert read_input(uri_of(f"gs://photos/odd/{name}")) == name.encode()


@pytest.mark.parametrize(("name", "error_class"), [("empty.png", "EmptyFile"), ("gone.png", "Missing")])
def test_objects_that_are_rejected_rows(gs, name, error_class):
    """Google refuses any range of an object without bytes."""
    upload(gs, "empty.png", b"")
    with pytest.raises(InputRejected) as caught:
        read_input(f"gs://photos/{name}")
    assert caught.value.error_class == error_class


def test_a_bucket_that_is_gone_is_the_stores_fault(gs):
    with pytest.raises(OSError, match="nobucket"):
        read_input("gs://nobucket/a.png")


def test_archives_are_read_by_range(gs, asked, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    files = sorted((photos / "coffee").iterdir())
    for name, content in stores.packed(photos, tmp_path).items():
        upload(gs, f"archives/{name}", content)
    inputs = list_inputs(["gs://photos/archives/*.tar", "gs://photos/archives/a.parquet"], ENDINGS)
    uris = inputs["uri"].to_pylist()
    assert [read_input(uri) for uri in uris] == [path.read_bytes() for path in files] * 2
    asked.clear()
    assert read_input(uris[-1]) == files[-1].read_bytes()
    assert [one.partition(" ")[0] for one in asked] == ["GET"]


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.parquet"])
@pytest.mark.parametrize("code", ["400", "401", "403"])
def test_a_refusal_in_mid_run_is_no_damage(
    gs, server, photos, tiny_settings, tmp_path, monkeypatch, capsys, name, code
):
    """A permission that was lost, a token that has run out."""
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    upload(gs, f"refused{code}/{name}", stores.packed(photos, tmp_path)[name])
    typed = words(f"gs://photos/refused{code}/{name}", tmp_path / "corpus", tiny_settings)
    refuse = lambda _number, _method, path: code if "alt=media" in path else None  # noqa: E731
    with stores.at_the_first_image(monkeypatch, name, lambda: monkeypatch.setattr(server, "fault", refuse)):
        assert main(typed) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "left undone" in said
    assert committed_shards(tmp_path / "corpus") == set()
    monkeypatch.setattr(server, "fault", lambda *_request: None)
    assert main(typed) == 0
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.parquet"])
def test_what_vanishes_in_mid_run_with_all_that_is_in_it_is_the_stores_fault(
    gs, photos, tiny_settings, tmp_path, monkeypatch, name
):
    """A bucket, a tar file or a table."""
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    bucket = gs.create_bucket(f"brief-{name[2:]}")
    content = stores.packed(photos, tmp_path)[name]

    def vanish():
        bucket.delete_blob(name)
        if name == "a.png":
            bucket.delete()

    bucket.blob(name).upload_from_string(content)
    typed = words(f"gs://{bucket.name}/{name}", tmp_path / "corpus", [*tiny_settings, "shard_size=3"])
    with stores.at_the_first_image(monkeypatch, name, vanish):
        assert main(typed) == 4
    assert committed_shards(tmp_path / "corpus") == set()
    if name == "a.png":
        gs.create_bucket(bucket)
    bucket.blob(name).upload_from_string(content)
    assert main(typed) == 0
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


# Committing


@pytest.mark.parametrize("part_bytes", [atomic.PART_BYTES, 1 << 20], ids=["one request", "parts"])
def test_the_first_writer_wins(gs, monkeypatch, part_bytes):
    """Both find the name free before either has put anything: only the condition can tell them apart."""
    monkeypatch.setattr(atomic, "PART_BYTES", part_bytes)
    path, barrier, won = place(f"gs://corpora/race/{part_bytes}"), threading.Barrier(2), []

    def write(content):
        def slowly(file):
            barrier.wait(60)
            file.write(content)

        if atomic.create(path, slowly):
            won.append(content)

    contents = (bytes(3 << 20), b"\r\n" * (3 << 19))
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert gs.bucket("corpora").blob(f"race/{part_bytes}").download_as_bytes() == won[0]
    assert atomic.create(path, b"three") is False


def test_a_file_is_one_request(gs, asked, monkeypatch):
    monkeypatch.setattr(atomic, "PART_BYTES", 1 << 20)
    assert atomic.create(place("gs://corpora/one"), bytes((1 << 20) - 1))
    (put,) = (one for one in asked if not one.startswith("GET"))
    assert put.startswith("POST /upload/")
    assert "uploadType=multipart" in put
    assert "ifGenerationMatch=0" in put


def test_an_upload_in_parts_that_fails_is_thrown_away(gs, server, monkeypatch):
    asked = []

    def fault(_number, method, path):
        asked.append(f"{method} {path}")
        return "403" if method in ("POST", "PUT") and "upload_id" in path else None

    monkeypatch.setattr(server, "fault", fault)
    monkeypatch.setattr(atomic, "PART_BYTES", 1 << 20)
    with pytest.raises(OSError, match="Forbidden"):
        atomic.create(place("gs://corpora/failed"), bytes(3 << 20))
    assert asked[-1].startswith("DELETE")
    assert "upload_id" in asked[-1]
    assert names(gs, "failed") == []


def test_a_writer_that_raises_leaves_no_object(gs):
    def write(file):
        file.write(b"half")
        raise RuntimeError("bug")

    for make in (atomic.create, atomic.replace):
        with pytest.raises(RuntimeError, match="bug"):
            make(place("gs://corpora/half/file"), write)
    assert names(gs, "half/") == []


@pytest.mark.parametrize("code", ["401", "403"])
def test_a_corpus_that_its_store_does_not_give_is_neither_damaged_nor_another_ones(
    gs, server, tmp_path, tiny_settings, monkeypatch, code
):
    """Neither `run.json` nor a shard, when a worker or a driver reads it."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    made = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    for path in made.rglob("*.*"):
        name = f"given/{path.relative_to(made).as_posix()}"
        gs.bucket("corpora").blob(name).upload_from_filename(str(path))
    out = place("gs://corpora/given")
    job = Job(out, load_config(None, tiny_settings), read_run(out).digest)
    check_sees_corpus(job)
    monkeypatch.setattr(server, "fault", lambda _number, _method, path: code if "alt=media" in path else None)
    for read in (lambda: check_sees_corpus(job), lambda: finish_corpus(out, range(3))):
        with pytest.raises(CorpusUnavailable, match="cannot be read"):
            read()


# Whole runs


def test_from_a_bucket_into_a_bucket_as_from_a_folder_into_a_folder(
    gs, collection, photos, tiny_settings, tmp_path, capsys
):
    out = "gs://corpora/whole"
    assert main(words(collection, out, tiny_settings)) == 0
    assert names(gs, "whole/") == WHOLE
    assert main(["verify", out]) == 0
    assert main(words(collection, out, tiny_settings)) == 0
    assert "complete, nothing to do" in capsys.readouterr().out

    for row in Corpus(out):
        assert row["uri"] == f"gs://photos/trip/{row['key']}"
        target = tmp_path / "here" / row["key"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((photos / row["key"]).read_bytes())
    assert main(words(tmp_path / "here", tmp_path / "corpus", tiny_settings)) == 0
    here, there = ([{**row, "uri": ""} for row in Corpus(one)] for one in (tmp_path / "corpus", out))
    assert here == there

    first, second = (f"whole/shards/shard-00000{shard}.parquet" for shard in range(2))
    generation = gs.bucket("corpora").get_blob(first).generation
    gs.bucket("corpora").delete_blob(second)
    assert main(words(collection, out, tiny_settings)) == 0
    assert gs.bucket("corpora").get_blob(first).generation == generation, "committed once"
    assert names(gs, "whole/") == WHOLE
    assert main(["verify", out]) == 0

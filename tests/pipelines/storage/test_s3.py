"""An object store, over HTTP: what goes wrong with it first, then whole runs from it and into it.

The server is moto's, on loopback, with credentials from the environment. A proxy before it fails requests as
stores do. With `-s` the table of faults is printed: what was done, how the run ended, how the same command
ended when the store was well again.
"""

import errno
import json
import sys
import threading

import fsspec.registry  # noqa: F401  (shadowed in its package by a name of its own)
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import UsageError
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.storage import atomic, paths, retries
from maskmill.pipelines.storage.paths import path_of, place, uri_of
from maskmill.pipelines.storage.store_errors import as_os_errors
from maskmill.pipelines.text import redacted
from maskmill.pipelines.writing.open import open_run
from tests.support import stores
from tests.support.corpora import fill_shard, make_record
from tests.support.stores import WHOLE, words

ENDINGS = (".png",)


@pytest.fixture(scope="module")
def server():
    with stores.s3_server() as address:
        yield address


@pytest.fixture
def s3(server, monkeypatch):
    """The environment of the server; the answer is a plain client of it."""
    stores.use(monkeypatch, server)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    return stores.client_of(server)


@pytest.fixture(scope="module")
def collection(server, photos):
    """Four photographs under s3://photos/trip, and what must not be taken for one."""
    client = stores.client_of(server)
    for number in range(2):
        for name in ("coffee", "rocket"):
            body = (photos / name / f"{number}.png").read_bytes()
            client.put_object(Bucket="photos", Key=f"trip/{name}/{number}.png", Body=body)
    for name in ("trip/.hidden.png", "trip/.cache/a.png", "trip/notes.txt"):
        client.put_object(Bucket="photos", Key=name, Body=b"x")
    return "s3://photos/trip"


def names(client, prefix):
    listed = client.list_objects_v2(Bucket="corpora", Prefix=prefix)
    return sorted(one["Key"].removeprefix(prefix) for one in listed.get("Contents", ()))


# What was typed


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("ftp://host/photos", "expected a local path, or s3://"),
        ("https://host/a.jpg?X-Amz-Signature=abc", r"X-Amz-Signature=\*\*\*: expected a local path"),
        ("s3://user:secret@bucket/photos", r"s3://\*\*\*@bucket/photos: expected no credentials"),
        ("s3://user:se/secret@bucket/photos", r"s3://\*\*\*@bucket/photos: expected no credentials"),
        ("s3://bucket/a.jpg?X-Amz-Signature=secret", r"Signature=\*\*\*: expected no credentials"),
    ],
)
def test_addresses_that_are_refused(typed, says):
    with pytest.raises(UsageError, match=says) as caught:
        list_inputs([typed], ENDINGS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs"), ("hf", "huggingface_hub")])
def test_a_library_that_is_not_installed(monkeypatch, scheme, library):
    paths._library_of.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(UsageError, match=rf"pip install '{library.replace('_', '.')}>="):
        place(f"{scheme}://somewhere/photos")


def test_messages_without_credentials():
    assert redacted("s3://me:p/w@b/c, s3://b/a@2x.jpg") == "s3://***@b/c, s3://b/a@2x.jpg"
    said = "GET https://me:pw@host/b?X-Amz-Credential=AK%2F1&x=1&X-Amz-Signature=ab failed; s3://k:s@b/c"
    assert (
        redacted(said)
        == "GET https://***@host/b?X-Amz-Credential=***&x=1&X-Amz-Signature=*** failed; s3://***@b/c"
    )


@pytest.mark.parametrize("name", ["a.jpg", "a b.jpg", "#1.jpg", "100%.jpg", "%23.jpg", "ä.jpg", "what?.jpg"])
def test_names_survive_their_uri(s3, name):
    s3.put_object(Bucket="photos", Key=f"odd/{name}", Body=name.encode())
    uri = uri_of(f"s3://photos/odd/{name}")
    assert "#" not in uri
    assert str(path_of(uri)) == f"s3://photos/odd/{name}"
    assert read_input(uri) == name.encode()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("s3://photos/nothing", "there is no such file or folder"),
        ("s3://nobucket/photos", "no such file or folder|bucket does not exist"),
        ("s3://photos/trip/*.gif", "no image found"),
    ],
)
def test_inputs_that_are_not_there(s3, collection, given, says):
    with pytest.raises(UsageError, match=says):
        list_inputs([given], ENDINGS)


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("trip", ["coffee/0.png", "coffee/1.png", "rocket/0.png", "rocket/1.png"]),
        ("trip/", ["coffee/0.png", "coffee/1.png", "rocket/0.png", "rocket/1.png"]),
        ("trip/coffee/1.png", ["1.png"]),
        ("trip/*/0.*", ["coffee/0.png", "rocket/0.png"]),
        ("trip/**/1.png", ["coffee/1.png", "rocket/1.png"]),
    ],
)
def test_folders_and_globs(s3, collection, given, keys):
    assert list_inputs([f"s3://photos/{given}"], ENDINGS)["key"].to_pylist() == keys


def test_file_lists_here_and_there(s3, collection, tmp_path):
    listed = "# two\ncoffee/0.png\ns3://photos/trip/rocket/1.png\n"  # relative, and not
    s3.put_object(Bucket="photos", Key="trip/list.txt", Body=listed.encode())
    uris = ["s3://photos/trip/coffee/0.png", "s3://photos/trip/rocket/1.png"]
    assert list_inputs(["s3://photos/trip/list.txt"], ENDINGS)["uri"].to_pylist() == uris
    (tmp_path / "list.txt").write_text("\n".join(uris))
    assert list_inputs([tmp_path / "list.txt"], ENDINGS)["uri"].to_pylist() == uris
    s3.delete_object(Bucket="photos", Key="trip/list.txt")


@pytest.mark.parametrize(
    ("uri", "error_class"), [("s3://photos/empty.png", "EmptyFile"), ("s3://photos/gone.png", "Missing")]
)
def test_objects_that_are_rejected_rows(s3, uri, error_class):
    from maskmill.pipelines.errors import InputRejected

    s3.put_object(Bucket="photos", Key="empty.png", Body=b"")
    with pytest.raises(InputRejected) as caught:
        read_input(uri)
    assert caught.value.error_class == error_class


def test_a_bucket_that_is_gone_is_the_stores_fault(s3):
    with pytest.raises(OSError, match="bucket does not exist"):
        read_input("s3://nobucket/a.png")


# Committing


def test_the_first_writer_wins(s3):
    """Both find the name free before either has put anything: only the condition can tell them apart."""
    barrier, won = threading.Barrier(2), []

    def write(content):
        def slowly(file):
            barrier.wait(10)
            file.write(content)

        if atomic.create(place("s3://corpora/race/shard"), slowly):
            won.append(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert s3.get_object(Bucket="corpora", Key="race/shard")["Body"].read() == won[0]
    assert atomic.create(place("s3://corpora/race/shard"), b"three") is False


def test_a_writer_that_raises_leaves_no_object(s3):
    def write(file):
        file.write(b"half")
        raise RuntimeError("bug")

    for make in (atomic.create, atomic.replace):
        with pytest.raises(RuntimeError, match="bug"):
            make(place("s3://corpora/half/file"), write)
    assert names(s3, "half/") == []


def test_what_only_gives_is_no_place_for_a_corpus():
    with pytest.raises(OSError, match="hf:// is for inputs"):
        atomic.create(place("hf://datasets/someone/corpus/run.json"), b"x")


@pytest.mark.parametrize("typed", ["s3://nobucket/corpus", "s3://corpora/refused"])
def test_where_nothing_can_be_written(s3, server, collection, tiny_settings, monkeypatch, capsys, typed):
    def refuse(_number, method, path):
        return "500" if method == "PUT" and "refused" in path else None

    with stores.Proxy(server, refuse) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert main(words(collection, typed, tiny_settings)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"maskmill: {typed}: cannot be written: ")
    assert said.count("\n") == 1


class Overtaken(Exception):  # noqa: N818
    """Raised by a check: the object is another one."""


def test_an_object_that_changes_between_the_last_look_and_the_replacing_stays(s3):
    """The other writer comes after the look, which found nothing: only the condition can tell."""
    looks, path = [], place("s3://corpora/replaced")
    s3.put_object(Bucket="corpora", Key="replaced", Body=b"old")

    def check():
        looks.append(path.read_bytes())
        if looks[-1] != b"old":
            raise Overtaken
        s3.put_object(Bucket="corpora", Key="replaced", Body=b"another's")

    with pytest.raises(Overtaken):
        atomic.replace(path, b"mine", check)
    assert looks == [b"old", b"another's"]
    assert path.read_bytes() == b"another's"
    atomic.replace(path, b"mine", lambda: None)
    assert path.read_bytes() == b"mine"


class WithoutConditions(stores.Proxy):
    """A store that knows neither `If-None-Match` nor, of what is put, `If-Match`, and says so."""

    def pass_on(self, method, path, headers, body):
        if "If-None-Match" in headers or (method == "PUT" and "If-Match" in headers):
            self.faults.append(f"501 {method} {path}")
            return 501, {}, stores.FAULTS["501"]
        return super().pass_on(method, path, headers, body)


@pytest.mark.parametrize("part_bytes", [atomic.PART_BYTES, 5 << 20], ids=["one request", "parts"])
def test_a_store_without_conditions(s3, server, monkeypatch, part_bytes):
    """The file is put plainly, once it was refused; what is there already stays, as far as can be told."""
    monkeypatch.setattr(atomic, "PART_BYTES", part_bytes)
    path, content = place(f"s3://corpora/plain/{part_bytes}"), bytes(11 << 20)
    with WithoutConditions(server, lambda *_request: None) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert atomic.create(path, content) is True
        assert atomic.create(path, b"another") is False
        assert len(proxy.faults) == 1
    assert s3.get_object(Bucket="corpora", Key=f"plain/{part_bytes}")["Body"].read() == content
    assert uploads(s3) == []


def test_a_store_without_conditions_replaces_what_was_checked_plainly(s3, server, monkeypatch):
    looks, path = [], place("s3://corpora/plainly")
    s3.put_object(Bucket="corpora", Key="plainly", Body=b"old")
    with WithoutConditions(server, lambda *_request: None) as proxy:
        stores.use(monkeypatch, proxy.address)
        atomic.replace(path, b"new", lambda: looks.append(1))
        assert proxy.faults
    assert looks == [1]
    assert s3.get_object(Bucket="corpora", Key="plainly")["Body"].read() == b"new"


def test_rejected_images_are_listed_and_run_again_in_a_bucket_and_a_run_resumed(
    s3, collection, tiny_settings, tmp_path, capsys
):
    out, listed = "s3://corpora/retried", tmp_path / "all.txt"
    listed.write_text("s3://photos/trip/coffee/0.png\ns3://photos/late.png\ns3://photos/trip/rocket/0.png\n")
    assert main(words(listed, out, tiny_settings)) == 0
    classes = [row["error"] and row["error"]["class"] for row in Corpus(out)]
    assert sorted(classes, key=str) == ["Missing", None, None]
    capsys.readouterr()
    assert main(["rejects", out, "--json"]) == 0
    assert [image["class"] for image in json.loads(capsys.readouterr().out)["images"]] == ["Missing"]
    late = s3.get_object(Bucket="photos", Key="trip/rocket/1.png")["Body"].read()
    s3.put_object(Bucket="photos", Key="late.png", Body=late)
    assert main([*words(listed, out, tiny_settings), "--retry-rejects", "Missing"]) == 0
    assert {row["status"] for row in Corpus(out)} == {"ok"}
    s3.delete_object(Bucket="corpora", Key="retried/shards/shard-000001.parquet")
    assert main(["resume", out]) == 0
    assert main(["verify", out]) == 0


@pytest.mark.slow
def test_a_whole_run_into_a_store_without_conditions(s3, server, collection, tiny_settings, monkeypatch):
    with WithoutConditions(server, lambda *_request: None) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert main(words(collection, "s3://corpora/unconditional", tiny_settings)) == 0
        assert proxy.faults
        assert main(["verify", "s3://corpora/unconditional"]) == 0
    assert names(s3, "unconditional/") == WHOLE


def uploads(client):
    """Uploads in parts that are neither done nor aborted: nobody sees them, and they are paid for."""
    return client.list_multipart_uploads(Bucket="corpora").get("Uploads", [])


def test_a_file_is_one_request(s3, server, monkeypatch):
    """Of which a process that is killed leaves nothing."""
    asked = []
    monkeypatch.setattr(atomic, "PART_BYTES", 1 << 20)
    with stores.Proxy(server, lambda _number, method, path: asked.append(f"{method} {path}")) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert atomic.create(place("s3://corpora/one"), bytes(1 << 20))
    assert [one for one in asked if not one.startswith(("HEAD", "GET"))] == ["PUT /corpora/one"]


def in_parts(server, monkeypatch, name, fault=lambda *_request: None, before=lambda: None):
    """Link a file that goes in three parts; `before` is called when its content is there."""
    monkeypatch.setattr(atomic, "PART_BYTES", 5 << 20)

    def write(file):
        file.write(bytes(11 << 20))
        before()

    with stores.Proxy(server, fault) as proxy:
        stores.use(monkeypatch, proxy.address)
        return atomic.create(place(f"s3://corpora/parts/{name}"), write)


def test_a_larger_file_goes_in_parts(s3, server, monkeypatch):
    asked = []
    assert in_parts(server, monkeypatch, "whole", lambda _number, _method, path: asked.append(path))
    assert sum("partNumber" in path for path in asked) == 3
    assert s3.head_object(Bucket="corpora", Key="parts/whole")["ContentLength"] == 11 << 20
    assert uploads(s3) == []


def test_parts_of_the_second_writer_are_thrown_away(s3, server, monkeypatch):
    """The name was free when it looked, and taken when the parts were there: the condition holds then too."""

    def first():
        s3.put_object(Bucket="corpora", Key="parts/race", Body=b"first")

    assert in_parts(server, monkeypatch, "race", before=first) is False
    assert s3.get_object(Bucket="corpora", Key="parts/race")["Body"].read() == b"first"
    assert uploads(s3) == []


@pytest.mark.parametrize(
    ("method", "match"), [("PUT", "partNumber=2"), ("POST", "uploadId")], ids=["a part", "the last step"]
)
def test_an_upload_that_fails_is_aborted(s3, server, monkeypatch, method, match):
    with pytest.raises(OSError, match="internal error"):
        in_parts(server, monkeypatch, "failed", always("500", method, match))
    assert names(s3, "parts/failed") == []
    assert uploads(s3) == []


# Whole runs


def test_from_a_bucket_into_a_bucket_as_from_a_folder_into_a_folder(
    s3, collection, photos, tiny_settings, tmp_path, capsys
):
    out = "s3://corpora/whole"
    assert main(words(collection, out, tiny_settings)) == 0
    assert names(s3, "whole/") == WHOLE
    assert main(["verify", out]) == 0
    assert main(["report", out]) == 0
    assert main(words(collection, out, tiny_settings)) == 0
    assert "complete, nothing to do" in capsys.readouterr().out

    for row in Corpus(out):
        assert row["uri"] == f"s3://photos/trip/{row['key']}"
        target = tmp_path / "here" / row["key"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((photos / row["key"]).read_bytes())
    assert main(words(tmp_path / "here", tmp_path / "corpus", tiny_settings)) == 0
    here, there = ([{**row, "uri": ""} for row in Corpus(one)] for one in (tmp_path / "corpus", out))
    assert here == there


def test_images_that_moved_out_of_a_bucket_and_into_one(s3, collection, photos, tmp_path):
    for name, inputs, moved in (
        ("there", collection, {collection: str(photos)}),
        ("here", f"{photos}/[cr]o*/[01].png", {str(photos): collection}),
    ):
        run = open_run(tmp_path / name, list_inputs([inputs], ENDINGS), make_record(), 9)
        fill_shard(run, 0)
        for row in Corpus(run.out).rows("ok"):
            assert Corpus(run.out, moved).originals.read(row) == (photos / row["key"]).read_bytes()


def test_archives_in_a_bucket_are_read_by_range(s3, server, photos, tmp_path, monkeypatch):
    """The plan's uris lead to the bytes in one request each, and to no others."""
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    files = sorted((photos / "coffee").iterdir())
    for name, content in stores.packed(photos, tmp_path).items():
        s3.put_object(Bucket="photos", Key=f"archives #1/{name}", Body=content)
    inputs = list_inputs(["s3://photos/archives #1/*.tar", "s3://photos/archives #1/a.parquet"], ENDINGS)
    keys = [f"s3://photos/archives #1/a.parquet#{row}" for row in range(3)]
    assert inputs["key"].to_pylist() == [
        *keys,
        *(f"s3://photos/archives #1/a.tar#{path.name}" for path in files),
    ]
    uris = inputs["uri"].to_pylist()
    assert [read_input(uri) for uri in uris] == [path.read_bytes() for path in files] * 2

    asked = []
    with stores.Proxy(server, lambda _number, method, path: asked.append(f"{method} {path}")) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert read_input(uris[-1]) == files[-1].read_bytes()
    assert [one.partition(" ")[0] for one in asked] == ["GET"]
    notes: list[str] = []
    list_inputs(["s3://photos/archives #1/a.tar"], ENDINGS, note=notes.append)
    assert "(1 cached)" in notes[0]


def every(step, fault, match=""):
    return lambda number, _method, path: fault if number % step == 0 and match in path else None


def always(fault, method, match):
    return lambda _number, used, path: fault if used == method and match in path else None


def once_each(fault, method, match):
    """The first request of this method for each path."""
    seen = set()

    def choose(_number, used, path):
        if used != method or match not in path or path in seen:
            return None
        seen.add(path)
        return fault

    return choose


FAULTS = [
    ("every 7th answer is 500", every(7, "500"), 0),
    ("every 6th connection is reset", every(6, "reset"), 0),
]
MORE_FAULTS = [
    ("no shard can be put", always("503", "PUT", "/shards/"), 4),
    ("every 5th answer is 503", every(5, "503"), 0),
    ("every 9th answer takes a second", every(9, "slow"), 0),
    ("each shard is put, the answer is lost", once_each("lost", "PUT", "/shards/"), 0),
    ("no photograph can be read", always("reset", "GET", "coffee/1.png"), 4),
    ("corpus.json cannot be put", always("500", "PUT", "-put/corpus.json"), 4),
    ("nothing answers", every(1, "reset"), 4),
]


@pytest.mark.parametrize(
    ("what", "fault", "expected"),
    [
        *(pytest.param(*one, id=one[0]) for one in FAULTS),
        *(pytest.param(*one, id=one[0], marks=pytest.mark.slow) for one in MORE_FAULTS),
    ],
)
def test_faults(s3, server, collection, tiny_settings, monkeypatch, capsys, what, fault, expected):
    prefix = f"faults/{what.replace(' ', '-')}"
    out = f"s3://corpora/{prefix}"
    with stores.Proxy(server, fault) as proxy:
        stores.use(monkeypatch, proxy.address)
        code = main(words(collection, out, tiny_settings))
        faults = len(proxy.faults)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskmill:")]
    stores.use(monkeypatch, server)
    before = {
        one: s3.head_object(Bucket="corpora", Key=f"{prefix}/{one}")["ETag"]
        for one in names(s3, f"{prefix}/")
    }
    again = main(words(collection, out, tiny_settings))
    with capsys.disabled():
        print(f"\n    {what:40} {faults:3} faults  exit {code}  then {again}  {'; '.join(errors)[:120]}")
    assert faults
    assert code == expected
    assert len(errors) == (code != 0), "one line where something is left undone, else none"
    assert stores.CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in "".join(errors)
    assert again == 0
    assert names(s3, f"{prefix}/") == WHOLE
    for one, tag in before.items():
        assert s3.head_object(Bucket="corpora", Key=f"{prefix}/{one}")["ETag"] == tag, "committed once"
    assert main(["verify", out]) == 0
    keys = [row["key"] for row in Corpus(out)]
    assert keys == ["coffee/0.png", "coffee/1.png", "rocket/0.png", "rocket/1.png"]


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.parquet"])
@pytest.mark.parametrize("code", ["400", "401", "403"])
def test_a_refusal_in_mid_run_is_no_damage(
    s3, server, photos, tiny_settings, tmp_path, monkeypatch, capsys, name, code
):
    """A permission that was lost, a token that has run out."""
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    content = stores.packed(photos, tmp_path)[name]
    s3.put_object(Bucket="photos", Key=f"refused{code}/{name}", Body=content)
    typed = words(f"s3://photos/refused{code}/{name}", tmp_path / "corpus", tiny_settings)
    with stores.Proxy(server, lambda *_request: None) as proxy:
        stores.use(monkeypatch, proxy.address)
        refuse = always(code, "GET", name)
        with stores.at_the_first_image(
            monkeypatch, name, lambda: monkeypatch.setattr(proxy, "fault", refuse)
        ):
            assert main(typed) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "left undone" in said
    assert committed_shards(tmp_path / "corpus") == set()
    stores.use(monkeypatch, server)
    assert main(typed) == 0
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.parquet"])
def test_what_vanishes_in_mid_run_with_all_that_is_in_it_is_the_stores_fault(
    s3, photos, tiny_settings, tmp_path, monkeypatch, name
):
    """A bucket, a tar file or a table."""
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    bucket, content = f"brief-{name[2:]}", stores.packed(photos, tmp_path)[name]

    def vanish():
        s3.delete_object(Bucket=bucket, Key=name)
        if name == "a.png":
            s3.delete_bucket(Bucket=bucket)

    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=name, Body=content)
    typed = words(f"s3://{bucket}/{name}", tmp_path / "corpus", [*tiny_settings, "shard_size=3"])
    with stores.at_the_first_image(monkeypatch, name, vanish):
        assert main(typed) == 4
    assert committed_shards(tmp_path / "corpus") == set()
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=name, Body=content)
    assert main(typed) == 0
    assert {row["status"] for row in Corpus(tmp_path / "corpus")} == {"ok"}


@pytest.mark.parametrize(
    ("fault", "match", "code"),
    [
        ("503", "/again/run.json", 4),
        ("reset", "/again/lease.json", 4),
        pytest.param("500", "/again/plan/", 4, marks=pytest.mark.slow),
        ("403", "/again/lease.json", 2),
    ],
)
def test_a_store_that_fails_while_a_corpus_is_opened_again(
    s3, server, collection, tiny_settings, monkeypatch, capsys, fault, match, code
):
    """What a store says of who may write is no failure of its own."""
    typed = words(collection, "s3://corpora/again", tiny_settings)
    assert main(typed) == 0
    capsys.readouterr()
    with stores.Proxy(server, every(1, fault, match)) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert main(typed) == code
        assert len(proxy.faults) >= (4 if code == 4 else 1)
    assert capsys.readouterr().err.count("\n") == 1
    stores.use(monkeypatch, server)
    assert main(typed) == 0


def test_two_that_ask_for_one_name_at_once_are_told_to_ask_again(
    s3, server, collection, tiny_settings, monkeypatch
):
    """S3 turns one of them away without saying whether the name is taken now."""
    out = "s3://corpora/conflict"
    with stores.Proxy(server, once_each("409", "PUT", "conflict/lease.json")) as proxy:
        stores.use(monkeypatch, proxy.address)
        with pytest.raises(OSError, match="another writer is at it") as caught:
            atomic.create(place(f"{out}/lease.json"), b"x")
        assert caught.value.errno == errno.EBUSY
        proxy.fault = once_each("409", "PUT", "conflict/lease.json")
        assert main(words(collection, out, tiny_settings)) == 0
        assert len(proxy.faults) == 2


def test_a_lease_whose_answer_is_lost_is_the_own_one(s3, server, collection, tiny_settings, monkeypatch):
    out = "s3://corpora/lost-lease"
    with stores.Proxy(server, once_each("lost", "PUT", "lease.json")) as proxy:
        stores.use(monkeypatch, proxy.address)
        assert main(words(collection, out, tiny_settings)) == 0
        assert proxy.faults


def test_foreign_errors_become_storage_errors():
    import botocore.exceptions

    with pytest.raises(OSError, match=r"EndpointConnectionError: .*://\*\*\*@host"), as_os_errors():
        raise botocore.exceptions.EndpointConnectionError(endpoint_url="http://me:pw@host/x")
    with pytest.raises(KeyError), as_os_errors():
        raise KeyError("a bug is none")

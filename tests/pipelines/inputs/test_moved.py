"""Recorded uris and where they are read now: what is no place first, then each kind of place."""

import pytest

from maskmill.pipelines.commands.options import moved_places
from maskmill.pipelines.errors import UsageError
from maskmill.pipelines.inputs.moved import Moved, vanished


@pytest.mark.parametrize("text", ["", "=", "/a", "/a=", "=/b"])
def test_what_is_no_pair(text):
    with pytest.raises(UsageError, match="--moved: expected OLD=NEW, got "):
        moved_places([text])


def test_one_place_that_moved_twice():
    with pytest.raises(UsageError, match="--moved: /a is given two new places"):
        moved_places(["/a=/b", "/a=/c"])


def test_a_new_place_that_is_none(tmp_path):
    with pytest.raises(UsageError, match=r"moved: .*/gone: there is no such file or folder"):
        Moved.of({"/a": str(tmp_path / "gone")})
    with pytest.raises(UsageError, match="expected a local path, or s3://"):
        Moved.of({"/a": "ftp://host/b"})


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("photos=pictures", ("photos", "pictures")),
        ("/a/date=2020=/b", ("/a/date=2020", "/b")),
        ("/a=/b/date=2020", ("/a", "/b/date=2020")),
        ("s3://a/x=1=~/b", ("s3://a/x=1", "~/b")),
        ("/a=b=s3://c/x=1", ("/a=b", "s3://c/x=1")),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_an_equals_sign_of_the_paths_own(text, pair):
    assert moved_places([text]) == dict([pair])


@pytest.mark.parametrize(
    ("uri", "now"),
    [
        ("/data/photos2/a.jpg", "/data/photos2/a.jpg"),  # /data/photos is no part of it
        ("/data/a.jpg", "/data/a.jpg"),
        ("/data/photos/a#b.jpg", "/new/a#b.jpg"),
        ("/data/photos/raw/a.jpg", "s3://b/raw/a.jpg"),  # the longest OLD counts
        ("/data/photos/raw/100%#1.jpg", "s3://b/raw/100%25%231.jpg"),
        ("file:///data/photos/a%FF.jpg", "file:///new/a%FF.jpg"),
        ("file:///data/photos/raw/a%FF.jpg", "s3://b/raw/a\\xff.jpg"),
        ("file:///data/photos/a%23.tar#offset=1536&size=9", "file:///new/a%23.tar#offset=1536&size=9"),
        ("/one.jpg", "/new/two.jpg"),
        ("file:///x.parquet#row=17&column=image", "file:///new/y.parquet#row=17&column=image"),
        ("s3://bucket/photos/100%25.jpg", "/new/bucket/100%.jpg"),
        ("s3://bucket/a.tar#offset=0&size=9", "file:///new/b.tar#offset=0&size=9"),
        ("s3://bucket2/photos/a.jpg", "s3://bucket2/photos/a.jpg"),
    ],
)
def test_where_a_uri_is_read(uri, now):
    moved = Moved(
        (
            ("/data/photos", "/new"),
            ("/data/photos/raw", "s3://b/raw"),
            ("/one.jpg", "/new/two.jpg"),
            ("/x.parquet", "/new/y.parquet"),
            ("s3://bucket/photos", "/new/bucket"),
            ("s3://bucket/a.tar", "/new/b.tar"),
        )
    )
    assert moved.apply(uri) == now
    assert Moved().apply(uri) == uri


def test_places_as_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b").mkdir()
    for old, new in (
        ("photos/", "a b/"),
        ("~/photos", "~/a b"),
        (f"file://{tmp_path}/photos", f"file://{tmp_path}/a%20b"),
    ):
        moved = Moved.of({old: new})
        assert moved.apply(f"{tmp_path}/photos/x.jpg") == f"{tmp_path}/a b/x.jpg"
    assert Moved.of({"/": str(tmp_path)}).apply("/photos/x.jpg") == f"{tmp_path}/photos/x.jpg"


def test_the_old_place_to_name(tmp_path):
    assert vanished(f"{tmp_path}/gone/deep/x.jpg") == f"{tmp_path}/gone"
    assert vanished(f"{tmp_path}/x.jpg") == str(tmp_path), "an empty mount point is there"
    assert vanished(f"file://{tmp_path}/g%20one/a.tar#offset=0&size=9") == f"{tmp_path}/g one"
    assert vanished("s3://bucket/photos/x.jpg") == "s3://bucket/photos"

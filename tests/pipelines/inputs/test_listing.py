"""Folders, globs, file lists and files: what is wrong first, then which keys come out, and in which order."""

import os
import time
from pathlib import Path

import pytest

from maskmill.pipelines.errors import UsageError
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.storage.paths import path_of, uri_of

ENDINGS = (".jpg", ".png")


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def keys(*inputs) -> list[str]:
    return column("key", *inputs)


def column(name, *inputs) -> list[str]:
    return list_inputs(inputs, ENDINGS)[name].to_pylist()


@pytest.fixture
def photos(tmp_path):
    return make(
        tmp_path / "photos",
        "b.jpg",
        "a.jpg",
        "a.png",
        "trip/c.JPG",
        "trip/notes.txt",
        ".hidden.jpg",
        ".cache/d.jpg",
    )


def test_nothing_given():
    with pytest.raises(UsageError, match="expected a folder, a glob, a file list"):
        list_inputs([], ENDINGS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("missing", "no such file or folder"),
        ("missing/*.jpg", "there is no folder"),
        ("photos/*.gif", "no image found"),
        ("empty", r"no image found; looked for files ending in \.jpg, \.png"),
        ("empty.txt", "no image found"),
        ("ftp://host/photos", "expected a local path, or s3://, gs://, hf:// or file://"),
        ("remote.txt", r"remote\.txt, line 2: ftp://host/a\.jpg: expected a local path, or s3://"),
        ("binary.txt", "line 1: expected a path in each line"),
        ("x" * 300, "cannot be read|no such file"),
        ("nul\0byte", "no such file"),
    ],
)
def test_inputs_that_are_wrong(photos, monkeypatch, given, says):
    monkeypatch.chdir(photos.parent)
    make(Path(), "empty/notes.md", "empty.txt")
    Path("remote.txt").write_text("# a comment\nftp://host/a.jpg\n")
    Path("binary.txt").write_bytes(b"\0\1\2\3")
    with pytest.raises(UsageError, match=says):
        list_inputs([given], ENDINGS)


@pytest.mark.parametrize("given", ["packed/*", "packed/*.tar.gz", "packed/**/*.TGZ", "packed/all.txt"])
def test_compressed_tar_files_that_a_glob_or_a_list_reaches_are_no_photographs(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    make(Path("packed"), "a.jpg", "b.tar.gz", "c/d.TGZ")
    Path("packed/all.txt").write_text("a.jpg\nb.tar.gz\n")
    if given == "packed/*":
        assert keys(given) == ["a.jpg"], "a glob that names no extension is for photographs"
        return
    with pytest.raises(
        UsageError, match=r"packed/(b.tar.gz|c/d.TGZ): a compressed tar file has to be unpacked"
    ):
        list_inputs([given], ENDINGS)


def test_a_folder_that_may_not_be_listed(photos, monkeypatch):
    """Root may list everything, so that the disk's answer is put in its mouth."""
    listing = os.scandir

    def refuse(folder):
        if str(folder).endswith("trip"):
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="trip: cannot be listed: Permission denied"):
        list_inputs([photos], ENDINGS)


def test_a_folder(photos):
    assert keys(photos) == ["a.jpg", "a.png", "b.jpg", "trip/c.JPG"]
    assert column("uri", photos)[3] == str(photos / "trip" / "c.JPG")


def test_a_folder_given_otherwise_gives_the_same(photos, monkeypatch):
    expected = list_inputs([photos], ENDINGS)
    monkeypatch.chdir(photos / "trip")
    assert list_inputs([".."], ENDINGS) == expected
    assert list_inputs(["../../photos/"], ENDINGS) == expected


def test_sorted_by_code_points(tmp_path):
    make(tmp_path, "b.jpg", "B.jpg", "ä.jpg", "10.jpg", "9.jpg", "a/z.jpg", "a.jpg", "a b.jpg")
    assert keys(tmp_path) == ["10.jpg", "9.jpg", "B.jpg", "a b.jpg", "a.jpg", "a/z.jpg", "b.jpg", "ä.jpg"]


def test_several_inputs_carry_their_roots_name(photos, tmp_path):
    make(tmp_path / "more", "a.jpg")
    assert keys(photos, tmp_path / "more") == [
        "more/a.jpg",
        "photos/a.jpg",
        "photos/a.png",
        "photos/b.jpg",
        "photos/trip/c.JPG",
    ]
    assert keys(photos / "b.jpg", photos / "trip" / "c.JPG") == ["photos/b.jpg", "trip/c.JPG"]


def test_the_same_file_twice_counts_once(photos):
    assert keys(photos, photos / "a.jpg") == keys(photos, photos)
    assert keys(photos, photos)[0] == "photos/a.jpg"


def test_two_files_with_one_key(tmp_path):
    make(tmp_path, "x/photos/a.jpg", "y/photos/a.jpg")
    with pytest.raises(UsageError, match=r"two inputs have the key 'photos/a.jpg': .*/x/.* and .*/y/"):
        list_inputs([tmp_path / "x" / "photos", tmp_path / "y" / "photos"], ENDINGS)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*", ["a.jpg", "a.png", "b.jpg"]),
        ("photos/*.jpg", ["a.jpg", "b.jpg"]),
        ("photos/[ab].jp?", ["a.jpg", "b.jpg"]),
        ("photos/**", ["a.jpg", "a.png", "b.jpg", "trip/c.JPG"]),
        ("photos/**/*.JPG", ["trip/c.JPG"]),
        ("photos/**/*.txt", ["trip/notes.txt"]),  # an extension that the pattern itself names
        ("photos/*/*", ["trip/c.JPG"]),
        ("*/a.*", ["photos/a.jpg", "photos/a.png"]),
        ("**/trip/*", ["photos/trip/c.JPG"]),
    ],
)
def test_globs(photos, monkeypatch, pattern, expected):
    monkeypatch.chdir(photos.parent)
    assert keys(pattern) == expected
    assert keys(str(Path.cwd() / pattern)) == expected


def test_a_name_with_wildcards_is_a_name_first(tmp_path):
    make(tmp_path, "photos [2020]/a.jpg", "what?.jpg")
    assert keys(tmp_path / "photos [2020]") == ["a.jpg"]
    assert keys(tmp_path / "what?.jpg") == ["what?.jpg"]


def test_a_file_list(photos, tmp_path):
    listed = tmp_path / "list.txt"
    outside = make(tmp_path.parent / "outside", "o.jpg") / "o.jpg"
    listed.write_text(
        "\ufeffphotos/b.jpg\r\n\n  # a comment\n photos/trip/notes.txt \n"
        f"photos/../photos/a.jpg\n{outside}\nmissing.jpg",
        encoding="utf-8",
    )
    assert keys(listed) == [
        str(outside),
        "missing.jpg",
        "photos/a.jpg",
        "photos/b.jpg",
        "photos/trip/notes.txt",
    ]
    assert column("uri", listed)[3] == str(photos / "b.jpg")


def test_file_uris_are_paths(photos, tmp_path):
    (tmp_path / "list.txt").write_text(f"file://{photos}/a.jpg\n")
    assert keys(f"file://{photos}") == keys(photos)
    assert keys(f"file://{tmp_path}/list.txt") == ["photos/a.jpg"]
    assert column("uri", f"file://{photos}/**/*.JPG") == [str(photos / "trip" / "c.JPG")]


def test_a_file_named_outright_is_taken_whatever_it_is_called(tmp_path):
    make(tmp_path, "scan", "photo.jfif")
    assert keys(tmp_path / "scan") == ["scan"]
    assert keys(tmp_path / "photo.jfif") == ["photo.jfif"]


def test_links_are_followed_but_not_round(photos):
    (photos / "again").symlink_to("trip")
    (photos / "trip" / "up").symlink_to("..")
    (photos / "self").symlink_to("self")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "one.jpg").symlink_to("a.jpg")
    assert keys(photos) == ["a.jpg", "a.png", "again/c.JPG", "b.jpg", "one.jpg", "trip/c.JPG"]
    assert keys(str(photos / "**" / "c.*")) == ["again/c.JPG", "trip/c.JPG"]


def test_a_pipe_is_no_photograph(photos):
    os.mkfifo(photos / "pipe.jpg")
    assert "pipe.jpg" not in keys(photos)


@pytest.mark.parametrize(
    "name",
    ["a b.jpg", " lead.jpg", "new\nline.jpg", "ä.jpg", "a\u0308.jpg", "写真.jpg", "100%.jpg", "#1.jpg"],
)
def test_odd_names(tmp_path, name):
    make(tmp_path, name)
    assert keys(tmp_path) == [name]
    assert path_of(*column("uri", tmp_path)).samefile(tmp_path / name)


def test_a_name_that_is_not_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9 %41.jpg"
    os.close(os.open(raw, os.O_CREAT))
    assert keys(tmp_path) == [r"caf\xe9 %41.jpg"]
    (uri,) = column("uri", tmp_path)
    assert uri.endswith("/caf%E9%20%2541.jpg")
    assert os.fsencode(path_of(uri)) == raw


def test_uris_are_absolute(tmp_path, monkeypatch):
    make(tmp_path, "x/a.jpg")
    monkeypatch.chdir(tmp_path / "x")
    assert column("uri", "../x/a.jpg") == [str(tmp_path / "x" / "a.jpg")]
    assert uri_of(str(tmp_path / "a.jpg")) == str(tmp_path / "a.jpg")


def test_many_files_take_no_time(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"{number:06d}.jpg" for number in range(50_000)))
    started = time.perf_counter()
    assert len(keys(listed)) == 50_000
    assert time.perf_counter() - started < 10

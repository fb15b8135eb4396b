"""Tar and Parquet files as inputs: damaged ones first, then names that would like to be paths, then bytes."""

import errno
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import InputRejected, UsageError
from maskmill.pipelines.inputs import parquet
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.reader import read_input

ENDINGS = (".jpg", ".png")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))


def listed(*inputs, **more):
    return list_inputs(inputs, ENDINGS, **more).to_pylist()


def tar_of(path: Path, members, **options) -> Path:
    """A tar file of (name, bytes) by the standard library."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


# Tar files that cannot be used


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda _: b"", "expected a whole, uncompressed tar file: empty file"),
        (lambda _: b"not a tar file" * 100, "expected a whole, uncompressed tar file"),
        (lambda data: data[:700], "expected a whole, uncompressed tar file: unexpected end of data"),
        (lambda data: data[:1024], "cut short at byte 1024"),  # after a member, where a header should be
        (lambda data: data[:1300], "cut short at byte 1024|truncated"),  # within the second header
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "damaged at byte 1024"),
    ],
)
def test_a_tar_file_that_is_cut_or_damaged_is_named(tmp_path, damage, says):
    whole = tar_of(tmp_path / "a.tar", [("a.jpg", b"one"), ("b.jpg", b"two")])
    whole.write_bytes(damage(whole.read_bytes()))
    with pytest.raises(UsageError, match=says) as caught:
        listed(whole)
    assert str(whole) in str(caught.value)


def test_a_compressed_tar_file_says_what_to_do(tmp_path):
    tar_of(tmp_path / "a.tar", [("a.jpg", b"one")])
    subprocess.run(["gzip", "a.tar"], cwd=tmp_path, check=True)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="unpack a compressed one first"):
        listed(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.zst"])
def test_a_name_of_a_compressed_tar_file_says_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(UsageError, match=r"a compressed tar file has to be unpacked first"):
        listed(tmp_path / name)


def pax(**fields) -> bytes:
    """A tar file whose member has these pax fields."""
    member = tarfile.TarInfo("a.jpg")
    member.pax_headers = {name.replace("_", "."): value for name, value in fields.items()}
    return member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def long_name(claimed: int) -> bytes:
    """The header of a long name of so many bytes."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, claimed
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pax(GNU_sparse_size="abc", GNU_sparse_map="0,1"), "uncompressed tar file: invalid literal"),
        (pax(GNU_sparse_map="abc"), "uncompressed tar file: invalid literal"),
        (pax(size="9" * 30), "expected a whole, uncompressed tar file"),
        (tarfile.TarInfo("b.jpg").tobuf() + pax(size="-1536"), "a member claims -1536 bytes"),
        (long_name(0) * 3000, "expected a whole, uncompressed tar file: maximum recursion depth"),
        (long_name(1 << 32), "a header claims 4294967296 bytes"),
    ],
)
def test_hostile_headers(tmp_path, content, says):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        listed(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)


def test_a_tar_file_without_photographs(tmp_path):
    with pytest.raises(UsageError, match=r"no image found in .*a\.tar"):
        listed(tar_of(tmp_path / "a.tar", [("notes.txt", b"x")]))


def test_a_member_twice(tmp_path):
    with pytest.raises(
        UsageError, match=r"two inputs have the key .*; unpack the archive, .* or pack it anew"
    ):
        listed(tar_of(tmp_path / "a.tar", [("a.jpg", b"one"), ("a.jpg", b"two")]))


# Names


@pytest.mark.parametrize(
    "name", ["../../etc/x.jpg", "/etc/x.jpg", "a/../../x.jpg", "x#1&size=9.jpg", "%2e.jpg"]
)
def test_a_members_path_is_only_a_name(tmp_path, name):
    path = tar_of(tmp_path / "odd # %41 &.tar", [(name, b"inside")])
    (row,) = listed(path)
    assert row["key"] == f"{path}#{name}"
    assert read_input(row["uri"]) == b"inside"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cache", path.name]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    names = ["long/" * 60 + "a.jpg", "ä/写真.jpg", "sub/B.JPG"]
    path = tar_of(tmp_path / "a.tar", [(name, name.encode()) for name in names], format=form)
    rows = listed(path)
    assert {row["key"].partition("#")[2] for row in rows} == set(names)
    assert {read_input(row["uri"]).decode() for row in rows} == set(names)


def test_what_tar_itself_writes(tmp_path):
    """`tar cf x.tar .`: names begin with ./, folders and links have entries, hidden files are there."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", "sub/.hidden.jpg", "._a.jpg", "notes.txt"):
        (tree / name).write_text(name)
    (tree / "soft.jpg").symlink_to("a.jpg")
    (tree / "hard.jpg").hardlink_to(tree / "sub" / "b.jpg")
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "--sort=name", "."], cwd=tree, check=True)
    notes = []
    rows = listed(tmp_path / "x.tar", note=notes.append)
    # Which of two hard links has the bytes is tar's choice; the other is passed over with the soft one.
    keys = [row["key"].partition("#")[2] for row in rows]
    assert keys == ["a.jpg", "hard.jpg"]
    assert [read_input(row["uri"]) for row in rows] == [b"a.jpg", b"sub/b.jpg"]
    assert "1 archive: headers read in" in notes[0]
    assert "2 images, 2 links passed over" in notes[0]


def test_keys_of_several_archives_do_not_meet(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tar_of(tmp_path / name / "0.tar", [("x.jpg", name.encode()), ("x.png", b"")])
    rows = listed(str(tmp_path / "*" / "*.tar"))
    assert [row["key"] for row in rows] == [
        f"{tmp_path}/{name}/0.tar#x.{ending}" for name in "ab" for ending in ("jpg", "png")
    ]
    (tmp_path / "list.txt").write_text("a/0.tar\nb/0.tar\n")
    assert listed(tmp_path / "list.txt") == listed(tmp_path / "a/0.tar", tmp_path / "b/0.tar") == rows


# The index


def test_headers_are_read_once(tmp_path):
    path = tar_of(tmp_path / "a.tar", [("a.jpg", b"one")])
    notes = []
    first = listed(path, note=notes.append)
    assert listed(path, note=notes.append) == first
    assert ["(0 cached)" in notes[0], "(1 cached)" in notes[1]] == [True, True]
    tar_of(path, [("a.jpg", b"one"), ("b.jpg", b"two")])  # another file now
    assert len(listed(path, note=notes.append)) == 2
    for kept in (tmp_path / "cache" / "tar").iterdir():
        kept.write_bytes(b"damaged")
    assert len(listed(path, note=notes.append)) == 2
    assert "(0 cached)" in notes[3]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(listed(tar_of(tmp_path / "a.tar", [("a.jpg", b"one")]))) == 1


@pytest.mark.parametrize(
    ("change", "error_class"),
    [(lambda path: path.write_bytes(path.read_bytes()[:600]), "Missing"), (os.path.exists, "EmptyFile")],
)
def test_a_member_that_cannot_be_read(tmp_path, change, error_class):
    path = tar_of(tmp_path / "a.tar", [("a.jpg", b"x" * 200 if error_class == "Missing" else b"")])
    (row,) = listed(path)
    change(path)
    with pytest.raises(InputRejected) as caught:
        read_input(row["uri"])
    assert caught.value.error_class == error_class


def test_an_archive_that_is_gone_is_not_the_images_fault(tmp_path):
    path = tar_of(tmp_path / "a.tar", [("a.jpg", b"one")])
    (row,) = listed(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_input(row["uri"])


def test_a_member_over_the_limit_is_not_read(tmp_path):
    (row,) = listed(tar_of(tmp_path / "a.tar", [("a.jpg", b"12345")]))
    with pytest.raises(InputRejected, match="TooLarge"):
        read_input(row["uri"], max_bytes=4)


# Parquet


def parquet_of(path: Path, rows=None, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("columns", "column", "says"),
    [
        ({"label": ["a"]}, None, "expected one column of images.*got none out of label"),
        ({"a": [b"1"], "b": [b"2"]}, None, "got a, b out of a, b; set input.image_column to one"),
        ({"image": ["a path"]}, None, "got none out of image"),
        ({"a": [b"1"]}, "b", r"expected a column 'b' of bytes \(input.image_column\), got a"),
    ],
)
def test_a_table_without_a_clear_column(tmp_path, columns, column, says):
    with pytest.raises(UsageError, match=says):
        listed(parquet_of(tmp_path / "t.parquet", **columns), image_column=column)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 10])
def test_a_table_that_cannot_be_read(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UsageError, match=r"t\.parquet: cannot be read as Parquet"):
        listed(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"image": [b"0", b"1", b"2"], "other": [b"", b"", b""]}, None),
        ({"picture & more": [b"0", b"1", b"2"], "label": [1, 2, 3]}, None),
        ({"a": [b"0", b"1", b"2"], "b": [b"", b"", b""]}, "a"),
        ({"image": pa.array([{"bytes": b"0"}, {"bytes": b"1"}, {"bytes": b"2"}], STRUCT)}, None),
        ({"image": pa.array([b"0", b"1", b"2"], pa.large_binary())}, None),
    ],
)
def test_columns(tmp_path, columns, column):
    path = parquet_of(tmp_path / "t # 1.parquet", **columns)
    rows = listed(path, image_column=column)
    assert [row["key"] for row in rows] == [f"{path}#{number}" for number in range(3)]
    assert [read_input(row["uri"]) for row in rows] == [b"0", b"1", b"2"]


def test_rows_stay_in_order_and_row_groups_are_read_once(tmp_path, monkeypatch):
    path = parquet_of(tmp_path / "t.parquet", rows=5, image=[str(number).encode() for number in range(23)])
    rows = listed(path)
    assert [row["key"].partition("#")[2] for row in rows] == [f"{number:02}" for number in range(23)]
    read, unpacked = [], parquet._unpacked
    monkeypatch.setattr(
        parquet,
        "_unpacked",
        lambda file, group, column: read.append(group) or unpacked(file, group, column),
    )
    assert [read_input(row["uri"]) for row in rows] == [str(number).encode() for number in range(23)]
    assert read == [0, 1, 2, 3, 4]
    assert len(parquet._groups._columns) <= parquet.GROUPS_KEPT


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "elsewhere.jpg"}])
def test_a_row_without_bytes_is_rejected(tmp_path, image):
    rows = listed(parquet_of(tmp_path / "t.parquet", image=pa.array([image], STRUCT)))
    with pytest.raises(InputRejected, match="Missing"):
        read_input(rows[0]["uri"])


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
def test_a_damaged_page_is_the_fault_of_its_rows(tmp_path, codec):
    """Of the rows of its row group, and of no other: nobody tries them again for ever."""
    images = [b"\xff\xd8" + bytes([number]) * 3000 for number in range(6)]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": images}), path, row_group_size=2, compression=codec, use_dictionary=False
    )
    rows = listed(path)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = (
        b"\xff" * chunk.total_compressed_size
    )
    path.write_bytes(data)
    for number, row in enumerate(rows):
        if number in (2, 3):
            with pytest.raises(InputRejected, match=r"Unreadable.*its row group is damaged"):
                read_input(row["uri"])
        else:
            assert read_input(row["uri"]) == images[number]


def test_a_disk_that_fails_is_not_the_fault_of_the_rows(tmp_path, monkeypatch):
    (row,) = listed(parquet_of(tmp_path / "t.parquet", image=[b"0"]))

    def fail(*_given, **_options):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "iter_batches", fail)
        with pytest.raises(OSError, match="Input/output error"):
            read_input(row["uri"])
    assert read_input(row["uri"]) == b"0"


@pytest.mark.parametrize("change", [{"other": [b"0", b"1"]}, {"image": [b"0"]}])
def test_a_table_that_is_another_one_now_is_not_the_fault_of_the_rows(tmp_path, change):
    rows = listed(parquet_of(tmp_path / "t.parquet", image=[b"0", b"1"]))
    parquet_of(tmp_path / "t.parquet", **change)
    with pytest.raises(OSError, match="any more"):
        read_input(rows[1]["uri"])


def test_a_row_group_over_the_limit(tmp_path, monkeypatch):
    """By what it says of itself, before any work; and by what a dictionary makes of it, row for row."""
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 1 << 16)
    with pytest.raises(UsageError, match=r"row group 0 has \d+ bytes of images.*fewer rows in a group"):
        listed(parquet_of(tmp_path / "t.parquet", image=[os.urandom(1 << 16)]))
    rows = listed(parquet_of(tmp_path / "bomb.parquet", image=[bytes(1 << 12)] * 64))
    for row in rows[:2]:
        with pytest.raises(InputRejected, match=r"TooLarge.*unpacks to over 65536 bytes"):
            read_input(row["uri"])


@pytest.mark.parametrize("part", ["row=1", "offset=3", "row=x&column=image", "else"])
def test_a_uri_that_is_none(tmp_path, part):
    path = parquet_of(tmp_path / "t.parquet", image=[b"0"])
    with pytest.raises(InputRejected, match="names no part of an archive"):
        read_input(f"file://{path}#{part}")


# A run


def test_a_corpus_of_archives_has_the_masks_of_the_files(photos, tiny_settings, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "coffee", folder)
    files = sorted(folder.iterdir())
    tar_of(tmp_path / "photos.tar", [(path.name, path.read_bytes()) for path in files])
    parquet_of(tmp_path / "photos.parquet", image=[path.read_bytes() for path in files])
    annotations = []
    for name in ("photos", "photos.tar", "photos.parquet"):
        out = tmp_path / f"corpus of {name}"
        settings = [word for setting in tiny_settings for word in ("--set", setting)]
        assert main(["generate", str(tmp_path / name), "--out", str(out), "--workers", "0", *settings]) == 0
        assert main(["verify", str(out)]) == 0
        annotations.append([row["annotations"] for row in Corpus(out)])
    assert annotations[0] == annotations[1] == annotations[2]
    assert len(annotations[0]) == 3

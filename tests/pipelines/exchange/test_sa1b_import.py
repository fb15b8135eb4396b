"""SA-1B's files into a corpus: bad input first, then what is kept, kills, and verify's own word."""

import json
import os
import re
import signal
import tarfile

import numpy as np
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import digest_of
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import NothingUsable, UsageError
from maskmill.pipelines.exchange import sa1b
from maskmill.pipelines.exchange.sa1b import read_entry
from maskmill.pipelines.exchange.sa1b_import import import_sa1b
from maskmill.pipelines.format.ids import released_id
from maskmill.pipelines.format.run_record import IMPORTED, RunRecord
from maskmill.pipelines.verification.corpus import verify
from tests.support.commands import start, wait_for_a_shard
from tests.support.releases import entry_of, jpeg_of, pack, release


def rows_of(out):
    return {row["image_id"]: row for row in Corpus(out)}


def test_no_release(tmp_path, capsys):
    assert main(["import", str(tmp_path)]) == 2
    assert "expected --out CORPUS" in capsys.readouterr().err
    for inputs, says in (
        ([tmp_path / "missing"], "there is no such file or folder"),
        ([tmp_path], "no image found"),
    ):
        assert main(["import", *map(str, inputs), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert len(error.splitlines()) == 1
    (tmp_path / "a.jpg").write_bytes(jpeg_of(1))
    assert main(["import", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "looked for sa_NUMBER.jpg and sa_NUMBER.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("ending", "other"), [("jpg", "json"), ("json", "jpg")])
def test_a_file_without_its_partner(tmp_path, ending, other):
    folder = release(tmp_path / "sa", [1, 2, 10])
    (folder / f"sa_1.{ending}").unlink()
    with pytest.raises(UsageError, match=rf"sa_1.{other}: there is no sa_1.{ending} for it; SA-1B's"):
        import_sa1b([str(folder)], tmp_path / "out")
    (folder / f"sa_10.{ending}").unlink()
    with pytest.raises(UsageError, match=r"nor have 1 others"):
        import_sa1b([str(folder)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_id_twice(tmp_path):
    for name in ("a", "b"):
        release(tmp_path / name, [1])
    with pytest.raises(UsageError, match=r"'a/sa_1.jpg' and 'b/sa_1.jpg' have the same image_id"):
        import_sa1b([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out")
    with pytest.raises(UsageError, match="have the same image_id"):
        import_sa1b([str(tmp_path)], tmp_path / "out2")


def test_a_tar_that_is_cut(tmp_path):
    path = pack(release(tmp_path / "sa", [1, 2]), tmp_path / "sa.tar")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError, match="tar"):
        import_sa1b([str(path)], tmp_path / "out")


def changed(change):
    """The text of image 1's JSON after a change of its contents."""

    def make():
        content = entry_of(1)
        change(content, content["annotations"][1])
        return json.dumps(content)

    return make


def put(name, value):
    return changed(lambda _, mask: mask.update({name: value}))


WRONG = {
    "empty": (lambda: "", "EmptyFile"),
    "no JSON": (lambda: "{", "EOF while parsing"),
    "not UTF-8": (lambda: b"\xff\xfe", "Invalid JSON"),
    "a list": (lambda: "[]", "Input should be an object"),
    "deep": (lambda: '{"image":' * 10_000, "recursion limit exceeded"),
    "long": (lambda: json.dumps(entry_of(1)).replace('"area": 1,', f'"area": {"9" * 5000},'), "out"),
    "no image": (changed(lambda all_, _: all_.pop("image")), "image: Field required"),
    "more than SA-1B has": (put("category", 1), "annotations.1.category: Extra inputs are not permitted"),
    "more in the whole": (changed(lambda all_, _: all_.update(info={})), "info: Extra inputs"),
    "no id": (changed(lambda _, mask: mask.pop("id")), "annotations.1.id: Field required"),
    "a text for a number": (put("area", "5"), "annotations.1.area: Input should be a valid integer"),
    "true for a number": (put("area", True), "annotations.1.area: Input should be a valid integer"),
    "a fraction of a pixel": (put("area", 5.5), "annotations.1.area"),
    "an id past 63 bits": (put("id", 2**63), "annotations.1.id: Input should be less than"),
    "a negative id": (put("id", -1), "annotations.1.id: Input should be greater"),
    "not a number": (put("predicted_iou", float("nan")), "annotations.1.predicted_iou: Input should be a f"),
    "infinite": (put("bbox", [0.0, 0.0, float("inf"), 1.0]), "annotations.1.bbox.2: Input should be a fin"),
    "infinite in 32 bits": (put("predicted_iou", 1e300), "mask 1: predicted_iou is inf"),
    "too few in a box": (put("crop_box", [0.0, 0.0, 1.0]), "annotations.1.crop_box.3: Field required"),
    "a point of one number": (put("point_coords", [[1.0]]), "annotations.1.point_coords.0.1: Field required"),
    "no point": (put("point_coords", []), r"mask 1: point_coords \[\] are no points"),
    "a point outside": (put("point_coords", [[31.0, 1.0]]), "mask 1: point_coords"),
    "a wide score": (put("stability_score", 1.5), "mask 1: stability_score is 1.5"),
    "another area": (put("area", 1), "mask 1: area is 1, the mask has"),
    "COCO's box": (
        changed(lambda _, mask: mask["bbox"].__setitem__(2, mask["bbox"][2] + 1)),
        "mask 1: bbox is",
    ),
    "a code of another size": (
        changed(lambda _, mask: mask["segmentation"].update(size=[30, 20])),
        r"mask 1: the segmentation's size is \[30, 20\], expected \[20, 30\]",
    ),
    "a code that is cut": (
        changed(lambda _, mask: mask["segmentation"].update(counts=mask["segmentation"]["counts"][:-1])),
        "mask 1: segmentation: ",
    ),
    "a code that wraps round": (
        changed(lambda _, mask: mask["segmentation"].update(counts="hb0" + "PPPPPPPPPP8" * 2 + "0" * 2046)),
        "mask 1: segmentation: runs must",
    ),
    "runs in full": (
        changed(lambda _, mask: mask["segmentation"].update(counts=[5, 5, 590])),
        "annotations.1.segmentation.counts: Input should be a valid string",
    ),
    "one id twice": (
        changed(lambda all_, mask: mask.update(id=all_["annotations"][0]["id"])),
        "mask 1: id is .*, expected one of its own",
    ),
    "another image": (changed(lambda all_, _: all_["image"].update(image_id=7)), "it is of image 7, sa_1"),
    "a path for a name": (
        changed(lambda all_, _: all_["image"].update(file_name="../../sa_1.jpg")),
        r"it is of image 1, ../../sa_1.jpg, and not of sa_1.jpg",
    ),
    "another size": (changed(lambda all_, _: all_["image"].update(width=31)), "it is for 31×20 pixels"),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """One import of a release in which each image but one is wrong in its own way."""
    folder = tmp_path_factory.mktemp("spoilt") / "sa"
    folder.mkdir()
    for number, (make, _) in enumerate(WRONG.values(), start=100):
        text = make()
        text = text.decode("latin-1") if isinstance(text, bytes) else text
        text = text.replace("sa_1.jpg", f"sa_{number}.jpg").replace(
            '"image_id": 1,', f'"image_id": {number},'
        )
        (folder / f"sa_{number}.json").write_bytes(text.encode("latin-1"))
        (folder / f"sa_{number}.jpg").write_bytes(jpeg_of(1))
    release(folder, [1])
    out = folder.parent / "corpus"
    tally = import_sa1b([str(folder)], out, shard_size=10)
    return out, tally


@pytest.mark.parametrize(
    ("place", "says"), [(at, says) for at, (_, says) in enumerate(WRONG.values())], ids=WRONG
)
def test_a_json_file_that_is_wrong_rejects_its_image(spoilt, place, says):
    row = rows_of(spoilt[0])[100 + place]
    assert row["status"] == "rejected"
    error = row["error"]
    if says == "EmptyFile":
        assert (error["stage"], error["class"]) == ("read", "EmptyFile")
        return
    assert (error["stage"], error["class"]) == ("read", "BadAnnotations")
    says = says.replace("sa_1.jpg", f"sa_{100 + place}.jpg").replace("image 1,", f"image {100 + place},")
    assert re.search(says, error["message"]), error["message"]


def test_the_others_of_a_spoilt_release_are_there(spoilt):
    out, tally = spoilt
    assert tally.statuses == {"rejected": len(WRONG), "ok": 1}
    assert rows_of(out)[1]["annotations"] == entry_of(1)["annotations"]
    report = verify(out)
    assert report.problems == []
    assert report.counts["rejected"] == len(WRONG)


def test_json_that_is_too_large(tmp_path, monkeypatch):
    folder = release(tmp_path / "sa", [1])
    monkeypatch.setattr("maskmill.pipelines.exchange.sa1b_import.MAX_JSON_BYTES", 100)
    with pytest.raises(NothingUsable, match="none of its 1 image could be used"):
        import_sa1b([str(folder)], tmp_path / "out")
    (row,) = Corpus(tmp_path / "out")
    assert (row["error"]["class"], row["status"]) == ("TooLarge", "rejected")
    monkeypatch.setattr(sa1b, "MAX_JSON_BYTES", 100)
    with pytest.raises(Exception, match="over the limit of 100"):
        read_entry(b" " * 101)


@pytest.mark.parametrize(
    ("data", "error_class"),
    [
        (b"", "EmptyFile"),
        (b"GIF89a", "NotAnImage"),
        (jpeg_of(1)[:300], "Truncated"),
        (jpeg_of(1)[:-20], "Truncated"),
        (jpeg_of(1, (30, 20)), "BadAnnotations"),
        (jpeg_of(1, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\3\0\0\0\0\0\0\0"), "Unsupported"),
    ],
)
def test_a_picture_that_is_wrong(tmp_path, data, error_class):
    folder = release(tmp_path / "sa", [1])
    (folder / "sa_1.jpg").write_bytes(data)
    with pytest.raises(NothingUsable):
        import_sa1b([str(folder)], tmp_path / "out")
    (row,) = Corpus(tmp_path / "out")
    assert row["error"]["class"] == error_class
    assert verify(tmp_path / "out").ok


def test_hostile_members_are_only_names(tmp_path):
    folder = release(tmp_path / "sa", [1, 2])
    path = tmp_path / "in" / "sa.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number, prefix in ((1, "../../"), (2, "/abs/../")):
            for ending in ("jpg", "json"):
                tar.add(folder / f"sa_{number}.{ending}", f"{prefix}sa_{number}.{ending}")
        link = tarfile.TarInfo("sa_3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = {str(file) for file in tmp_path.rglob("*")}
    out = tmp_path / "in" / "corpus"
    import_sa1b([str(path)], out)
    assert set(rows_of(out)) == {1, 2}
    new = {str(file) for file in tmp_path.rglob("*")} - before
    assert all(name.startswith(str(out)) for name in new)
    assert verify(out).ok


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("sa_1.jpg", 1), ("a/sa_0.json", 0), ("/x.tar#sa_223750.jpg", 223750), ("a/b.tar#c/sa_5.jpg", 5),
        (f"sa_{2**63 - 1}.jpg", 2**63 - 1), (f"sa_{2**63}.jpg", None), ("sa_01.jpg", None),
        ("sa_-1.jpg", None), ("sa_1.JPG", None), ("sa_1.jpg/x", None), ("xsa_1.jpg", None),
        ("sa_١.jpg", None), ("sa_1.jpg\n", None), ("sa_1.jpeg", None), ("", None),
    ],
)  # fmt: skip
def test_the_number_in_a_name(key, number):
    assert released_id(key) == number


def test_names_that_are_not_the_releases_are_passed_over(tmp_path, capfd):
    folder = release(tmp_path / "sa", [1])
    for name in ("sa_01.jpg", f"sa_{2**63}.jpg", "readme.json", "sa_1.jpeg"):
        (folder / name).write_bytes(b"?")
    import_sa1b([str(folder)], tmp_path / "out")
    assert set(rows_of(tmp_path / "out")) == {1}
    assert "3 files passed over" in capfd.readouterr().err


@pytest.mark.parametrize("form", ["folder", "tars"])
@pytest.mark.parametrize("embed", [True, False])
def test_what_is_kept(tmp_path, form, embed):
    numbers = [7, 70, 71, 8, 700]
    folder = release(tmp_path / "sa", numbers)
    (folder / "sa_8.json").write_text(json.dumps(entry_of(8, masks=0)))
    inputs = [str(folder)]
    if form == "tars":
        pack(folder, tmp_path / "sa_000000.tar")
        pack(release(tmp_path / "more", [9]), tmp_path / "sa_000001.tar", prefix="")
        inputs, numbers = [f"{tmp_path}/*.tar"], [*numbers, 9]
    out = tmp_path / "corpus"
    import_sa1b(inputs, out, embed=embed, shard_size=2)
    rows = rows_of(out)
    assert set(rows) == set(numbers)
    for number, row in rows.items():
        expected = entry_of(number, masks=0 if number == 8 else 3)["annotations"]
        assert row["annotations"] == expected
        assert row["status"] == ("ok" if expected else "empty")
        assert (row["width"], row["height"], row["candidates"]) == (30, 20, len(expected))
        assert (row["image"] and row["image"]["bytes"]) == (jpeg_of(number) if embed else None)
    run = json.loads((out / "run.json").read_text())
    assert run["conventions"] == IMPORTED
    assert run["conventions"]["bbox"].endswith("width = x_max - x_min")
    report = verify(out)
    assert report.problems == []
    assert report.counts["images"] == len(numbers)


def test_a_row_by_its_key_or_its_number(tmp_path):
    import_sa1b([str(release(tmp_path / "sa", [1, 20]))], tmp_path / "out")
    corpus = Corpus(tmp_path / "out")
    assert corpus.row("sa_20.jpg") == corpus.row(20)
    for image, says in (
        ("sa_3.jpg", "3: there is no such image"),
        ("x.jpg", "has such a key"),
        (3, "3: there"),
    ):
        with pytest.raises(KeyError, match=says):
            corpus.row(image)


def test_boxes_are_held_to_the_convention_that_is_recorded(tmp_path):
    """The same rows under a `run.json` of an ordinary run are wrong, in ids, boxes and plan."""
    out = tmp_path / "corpus"
    import_sa1b([str(release(tmp_path / "sa", [1]))], out)
    path = out / "run.json"
    run = json.loads(path.read_text())
    del run["config"]["import"]
    run["config_digest"] = digest_of(run["config"])
    path.write_text(json.dumps(run, indent=1) + "\n")
    assert any("run_digest" in problem for problem in verify(out).problems)
    record = RunRecord(run["config"], run["config_digest"], "unknown", "", run["software"])
    path.write_text(json.dumps(record.as_json(), indent=1) + "\n")
    problems = verify(out).problems
    assert any("image_id is 1, not its key's" in problem for problem in problems)
    assert any("bbox is" in problem for problem in problems)


def test_a_number_that_needs_64_bits_is_rounded_and_counted(tmp_path, capfd):
    folder = release(tmp_path / "sa", [1])
    content = entry_of(1)
    content["annotations"][0]["predicted_iou"] = 0.9
    (folder / "sa_1.json").write_text(json.dumps(content))
    import_sa1b([str(folder)], tmp_path / "out")
    assert "1 numbers were not 32-bit floats" in capfd.readouterr().err
    (row,) = Corpus(tmp_path / "out")
    assert row["annotations"][0]["predicted_iou"] == np.float32(0.9)


def test_again_extend_and_another_choice(tmp_path, capfd):
    folder = release(tmp_path / "sa", [1, 2, 3])
    words = ["import", str(folder), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert main(words) == 0
    assert "complete, nothing to do" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    assert main([*words, "--no-embed"]) == 2
    assert "embed_images was True, now False" in capfd.readouterr().err
    assert main([*words, "--extend", "--overwrite"]) == 2
    release(folder, [0, 20])
    assert main(words) == 2
    assert "add the new inputs with --extend" in capfd.readouterr().err
    assert main([*words, "--extend"]) == 0
    rows = rows_of(tmp_path / "out")
    assert {number: row["annotations"] for number, row in rows.items()} == {
        number: entry_of(number)["annotations"] for number in (0, 1, 2, 3, 20)
    }
    assert verify(tmp_path / "out").problems == []
    assert main([*words, "--overwrite", "--no-embed"]) == 0
    assert verify(tmp_path / "out").problems == []


def test_an_import_that_is_not_finished_is_not_extended(tmp_path):
    first, more = release(tmp_path / "first", range(6)), release(tmp_path / "more", range(10, 13))
    out = tmp_path / "out"
    import_sa1b([str(first)], out, shard_size=2)
    for gone in ("shards/shard-000001.parquet", "corpus.json"):
        (out / gone).unlink()
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(UsageError, match=r"sa_2\.jpg is planned and not imported yet; first finish"):
        import_sa1b([str(more)], out, mode="extend", shard_size=2)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before

    import_sa1b([str(first)], out, shard_size=2)
    import_sa1b([str(more)], out, mode="extend", shard_size=2)
    for gone in ("shards/shard-000004.parquet", "corpus.json"):  # the extension was killed, and goes on
        (out / gone).unlink()
    import_sa1b([str(more)], out, mode="extend", shard_size=2)
    assert verify(out).problems == []
    assert {number: row["annotations"] for number, row in rows_of(out).items()} == {
        number: entry_of(number)["annotations"] for number in (*range(6), *range(10, 13))
    }


def test_shards_that_are_gone_are_made_again(tmp_path):
    folder = release(tmp_path / "sa", range(6))
    out = tmp_path / "out"
    import_sa1b([str(folder)], out, shard_size=2)
    before = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    (out / "shards" / "shard-000001.parquet").unlink()
    (out / "shards" / ".maskmill-shard-000001.parquet-0f.tmp").write_bytes(b"half")
    tally = import_sa1b([str(folder)], out, shard_size=2)
    assert tally.images == 2
    assert verify(out).problems == []
    after = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {"shard-000001.parquet", "corpus.json"}
    (out / "corpus.json").unlink()
    assert import_sa1b([str(folder)], out, shard_size=2).images == 0
    assert (out / "corpus.json").read_bytes() == after["corpus.json"]


@pytest.mark.slow
def test_a_killed_import_goes_on_and_ends_the_same(tmp_path):
    folder = release(tmp_path / "sa", range(200))
    words = ["import", str(folder), "--out", str(tmp_path / "killed")]
    process = start(words)
    wait_for_a_shard(process, tmp_path / "killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "corpus.json").exists()
    assert main(words) == 0
    assert verify(tmp_path / "killed").problems == []
    import_sa1b([str(folder)], tmp_path / "whole")
    assert list(Corpus(tmp_path / "killed")) == list(Corpus(tmp_path / "whole"))

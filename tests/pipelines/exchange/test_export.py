"""Exports: what is refused first, then what others read out of them, kills, and the way back."""

import io
import json
import os
import shutil
import signal
import tarfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.corpus.views import View
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.exchange.encode import label_png
from maskmill.pipelines.exchange.export import Options, export
from maskmill.pipelines.exchange.sa1b_import import import_sa1b
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.verification.corpus import verify
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import open_run
from tests.support import stores
from tests.support.commands import start
from tests.support.corpora import fill_shard, make_corpus, make_photos, make_record, open_corpus
from tests.support.image_files import smooth
from tests.support.releases import entry_of, pack, release, unpacked

KEYS = ["id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exporting")
    return make_corpus(make_photos(folder / "photos"), folder / "corpus")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    out = folder / "corpus"
    import_sa1b([str(release(folder / "sa", range(12)))], out, shard_size=5)
    return out


def run(corpus, out, form, *more):
    """`maskmill export`, and its exit code."""
    return main(["export", str(corpus), "--format", form, "--out", str(out), *more])


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--format", "sa1b"], "expected --out DIR"),
        (["--out", "x"], "--format: expected sa1b or coco, got nothing"),
        (["--out", "x", "--format", "voc"], "expected sa1b or coco, got voc"),
        (["--out", "x", "--format", "sa1b", "--polygons"], "--polygons: SA-1B's files have run-length codes"),
        (["--out", "x", "--format", "coco", "--skip-missing"], "--skip-missing: COCO's JSON needs no image"),
        (["--out", "x", "--format", "coco", "--non-overlapping", "id"], "expected area or predicted_iou"),
        (["--out", "x", "--format", "coco", "--mask-nms", "2"], "Invalid value for '--mask-nms'"),
        (["--out", "x", "--format", "sa1b", "--images-per-tar", "0"], "Invalid value for '--images-per-tar'"),
        (["--out", "s3://b/x", "--format", "coco"], "choose a local folder"),
    ],
)
def test_wrong_use(corpus, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(corpus), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert not list(tmp_path.iterdir())


def test_no_corpus(tmp_path, capsys):
    assert run(tmp_path / "missing", tmp_path / "out", "coco") == 2
    assert "there is no such folder; expected a corpus" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_places_that_are_refused(corpus, tmp_path, capsys, form):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for place, says in (
        (tmp_path / "file", "this is a file"),
        (tmp_path / "full", "neither empty nor an export"),
        (corpus / "shards" / "x", "lies in the corpus"),
        (corpus, "lies in the corpus"),
    ):
        before = files_of(corpus) | files_of(tmp_path)
        assert run(corpus, place, form) == 2
        assert says in capsys.readouterr().err
        assert files_of(corpus) | files_of(tmp_path) == before


def test_a_folder_of_another_export(corpus, imported, tmp_path, capsys):
    assert run(corpus, tmp_path / "out", "coco") == 0
    before = files_of(tmp_path)
    for other, form, more in (
        (corpus, "sa1b", ()),
        (corpus, "coco", ("--polygons",)),
        (corpus, "coco", ("--min-area", "9")),
        (imported, "coco", ()),
    ):
        assert run(other, tmp_path / "out", form, *more) == 2
        assert "an export with different" in capsys.readouterr().err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_an_unfinished_corpus(tmp_path, capsys, form):
    opened = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    fill_shard(opened, 2)
    assert run(opened.out, tmp_path / "out", form) == 2
    assert "not finished: it has no corpus.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(opened.out, tmp_path / "out", form, "--unfinished") == 0
    assert "written, 1 image, 1 mask" in capsys.readouterr().out
    fill_shard(opened, 0)
    assert run(opened.out, tmp_path / "out", form, "--unfinished") == 2
    assert "an export with different shards" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_a_damaged_corpus(corpus, tmp_path, capsys, form):
    """A changed bit, and a shard that is sound but not the one that was recorded."""
    spoilt = shutil.copytree(corpus, tmp_path / "corpus")
    path = spoilt / "shards" / "shard-000001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 255]) + whole[101:])
    assert run(spoilt, tmp_path / "out", form) == 2
    assert "shard-000001.parquet" in capsys.readouterr().err
    pq.write_table(pq.read_table(corpus / "shards" / "shard-000001.parquet"), path)
    assert run(spoilt, tmp_path / "out", form) == 2
    assert "shard-000001.parquet is damaged: it is not what was recorded" in capsys.readouterr().err
    assert not (tmp_path / "out" / "annotations.json").exists()
    assert not list((tmp_path / "out").glob("*.tar"))
    path.unlink()
    assert run(spoilt, tmp_path / "new", form) == 2
    assert "shard-000001.parquet is missing" in capsys.readouterr().err
    path.write_bytes(whole)
    assert run(spoilt, tmp_path / "out", form) == 0


def test_a_source_that_is_gone_or_changed(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos")
    corpus = make_corpus(photos, tmp_path / "corpus")
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").unlink()
    (photos / "5.png").write_bytes(whole)
    words = corpus, tmp_path / "out", "sa1b", "--images-per-tar", "2"
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "3.png: there is no such file any more; if it was moved" in error
    assert "; bring it back and run this again" in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["sa_000000.tar"]
    assert run(*words, "--skip-missing") == 0
    told = capsys.readouterr()
    assert "left out: 3.png" in told.err
    assert "left out: 5.png" in told.err
    assert "has changed" in told.err
    assert (
        "written, 2 images, 1 mask, 2 left out, 1 rejected" in told.out
    )  # those of the first tar were there
    names = {name.partition(".")[0] for name in unpacked(tmp_path / "out")}
    kept = [row["image_id"] for row in Corpus(corpus) if row["key"] in ("0.png", "2.png", "4.png", "6.png")]
    assert names == {f"sa_{number}" for number in kept}
    photos.rename(tmp_path / "elsewhere")
    assert run(corpus, tmp_path / "out2", "sa1b", "--skip-missing") == 4
    assert "cannot be read: No such file" in capsys.readouterr().err


def pictures(folder):
    """A JPEG that is upright, one that EXIF turns, a PNG, a WebP."""
    folder.mkdir()
    picture = Image.fromarray(smooth())
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "upright.jpg", quality=80)
    picture.save(folder / "turned.jpg", exif=turned)
    picture.save(folder / "plain.png")
    picture.save(folder / "web.webp", lossless=True)
    return folder


@pytest.mark.parametrize("embed", [True, False])
def test_photographs(tmp_path, embed):
    photos = pictures(tmp_path / "photos")
    config = {"generator": {}, "shard_size": 3, "embed_images": embed}
    listed = list_inputs([photos], [".jpg", ".png", ".webp"])
    opened = open_run(tmp_path / "corpus", listed, make_record(config=config), 3)
    for shard in opened.todo():
        fill_shard(opened, shard)
    finish_corpus(opened.out, opened.plan.shards)
    if embed:
        shutil.move(photos, tmp_path / "elsewhere")
        photos = tmp_path / "elsewhere"
    assert run(opened.out, tmp_path / "out", "sa1b") == 0
    found = unpacked(tmp_path / "out")
    for row in Corpus(opened.out):
        data = found[f"sa_{row['image_id']}.jpg"]
        source = (photos / row["key"]).read_bytes()
        assert (data == source) == (row["key"] == "upright.jpg")
        with Image.open(io.BytesIO(data)) as written:
            assert written.format == "JPEG"
            assert written.size == (row["width"], row["height"])
            assert 0x0112 not in written.getexif() or written.getexif()[0x0112] == 1
            pixels = np.asarray(written.convert("RGB")).astype(int)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(source))).convert("RGB")
        assert np.abs(pixels - np.asarray(upright)).mean() < 3
    turned = next(row for row in Corpus(opened.out) if row["key"] == "turned.jpg")
    assert (turned["height"], turned["width"]) == smooth().shape[1::-1]


def test_sa1b_as_the_release_has_it(corpus, tmp_path, capsys):
    assert run(corpus, tmp_path / "out", "sa1b", "--images-per-tar", "4") == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: written, 6 images, 9 masks, 0 left out, 1 rejected\n"
    )
    assert sorted(files_of(tmp_path / "out")) == ["export.json", "sa_000000.tar", "sa_000001.tar"]
    members = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            headers = tar.getmembers()
        members.append([header.name for header in headers])
        assert {(h.mode, h.uid, h.gid, h.uname, h.gname, h.mtime, h.type) for h in headers} == {
            (0o644, 0, 0, "", "", 0, tarfile.REGTYPE)
        }
    rows = [row for row in Corpus(corpus) if row["status"] != "rejected"]
    names = [f"sa_{row['image_id']}.{ending}" for row in rows for ending in ("jpg", "json")]
    assert members == [names[:8], names[8:]]
    found = unpacked(tmp_path / "out")
    for row in rows:
        content = json.loads(found[f"sa_{row['image_id']}.json"])
        assert list(content) == ["image", "annotations"]
        assert content["image"] == {
            "image_id": row["image_id"],
            "width": row["width"],
            "height": row["height"],
            "file_name": f"sa_{row['image_id']}.jpg",
        }
        assert len(content["annotations"]) == len(row["annotations"])
        for written, kept in zip(content["annotations"], row["annotations"], strict=True):
            assert list(written) == KEYS
            mask_HW = coco_masks.decode(
                {**written["segmentation"], "counts": written["segmentation"]["counts"].encode()}
            )
            ys, xs = np.nonzero(mask_HW)
            assert written["bbox"] == [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]  # as the release counts
            assert written["area"] == len(ys)
            for name in set(KEYS) - {"bbox"}:
                assert written[name] == kept[name]


def test_a_coco_export_stopped_before_its_last_step_says_what_it_then_does(
    corpus, tmp_path, monkeypatch, capsys
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("maskmill.pipelines.exchange.export.coco.write_whole", killed)
        assert run(corpus, tmp_path / "out", "coco") == 130
    assert (tmp_path / "out" / "parts").is_dir()
    capsys.readouterr()
    assert run(corpus, tmp_path / "out", "coco") == 0
    assert "written, 0 images" in capsys.readouterr().out  # their entries were there already
    assert len(json.loads((tmp_path / "out" / "annotations.json").read_bytes())["images"]) == 6
    assert sorted(files_of(tmp_path / "out")) == ["annotations.json", "export.json"]


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_the_same_bytes_again(corpus, tmp_path, monkeypatch, capsys, form):
    more = ("--non-overlapping", "area")
    assert run(corpus, tmp_path / "a", form, *more) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    moved = shutil.copytree(corpus, tmp_path / "moved")
    time.sleep(0.02)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert run(moved, tmp_path / "b", form, *more) == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    capsys.readouterr()
    assert run(corpus, tmp_path / "a", form, *more) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_there_and_back_is_lossless(tmp_path):
    """SA-1B → corpus → SA-1B: every JPEG byte for byte, every JSON value for value; and once more."""
    source = release(tmp_path / "sa", [3, 30, 31, 4, 400])
    (source / "sa_4.json").write_text(json.dumps(entry_of(4, masks=0)))
    given = {path.name: path.read_bytes() for path in source.iterdir()}
    packed = pack(source, tmp_path / "sa.tar")
    for inputs, name in (([source], "1"), ([packed], "2"), ([tmp_path / "out1" / "*.tar"], "3")):
        import_sa1b([str(one) for one in inputs], tmp_path / f"corpus{name}", shard_size=2)
        assert run(tmp_path / f"corpus{name}", tmp_path / f"out{name}", "sa1b", "--images-per-tar", "2") == 0
        found = unpacked(tmp_path / f"out{name}")
        assert found.keys() == given.keys()
        for member, data in found.items():
            if member.endswith(".jpg"):
                assert data == given[member]
            else:
                assert json.loads(data) == json.loads(given[member])
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out3") | {
        "export.json": (tmp_path / "out1" / "export.json").read_bytes()  # the shards have other keys
    }


def test_a_corpus_of_ours_by_way_of_sa1b(corpus, tmp_path):
    assert run(corpus, tmp_path / "out", "sa1b") == 0
    import_sa1b([str(tmp_path / "out" / "*.tar")], tmp_path / "again")
    assert verify(tmp_path / "again").problems == []
    before = {row["image_id"]: row for row in Corpus(corpus)}
    for row in Corpus(tmp_path / "again"):
        kept = before[row["image_id"]]
        assert np.array_equal(Corpus(corpus).masks(kept), Corpus(tmp_path / "again").masks(row))
        assert [one["id"] for one in row["annotations"]] == [one["id"] for one in kept["annotations"]]


@pytest.mark.parametrize("more", [(), ("--polygons",)])
@pytest.mark.parametrize("name", ["corpus", "imported"])
def test_coco_by_its_own_reader(request, tmp_path, capsys, name, more):
    source = request.getfixturevalue(name)
    assert run(source, tmp_path / "out", "coco", *more) == 0
    assert sorted(files_of(tmp_path / "out")) == ["annotations.json", "export.json"]
    read = COCO(tmp_path / "out" / "annotations.json")
    rows = [row for row in Corpus(source) if row["status"] != "rejected"]
    assert read.getCatIds() == [1]
    assert list(read.imgs) == [row["image_id"] for row in rows]
    for row in rows:
        image = read.imgs[row["image_id"]]
        assert image == {key: image[key] for key in ("id", "file_name", "width", "height")}
        assert (image["file_name"], image["width"], image["height"]) == (
            row["key"],
            row["width"],
            row["height"],
        )
        annotations = read.imgToAnns[row["image_id"]]
        masks_HWN = Corpus(source).masks(row)
        assert len(annotations) == masks_HWN.shape[2]
        for index, annotation in enumerate(annotations):
            mask_HW = read.annToMask(annotation)
            assert np.array_equal(mask_HW.astype(bool), masks_HWN[..., index])
            assert annotation["bbox"] == coco_masks.toBbox(read.annToRLE(annotation)).tolist()
            assert annotation["area"] == mask_HW.sum()
            assert isinstance(annotation["segmentation"], list) == bool(more)
            kept = row["annotations"][index]
            for key in ("id", "predicted_iou", "stability_score", "crop_box", "point_coords"):
                assert annotation[key] == kept[key]
    capsys.readouterr()


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_fewer_masks(imported, tmp_path, form):
    words = ("--min-area", "2", "--predicted-iou", "0.9", "--stability-score", "0.96", "--mask-nms", "0.5")
    assert run(imported, tmp_path / "out", form, *words) == 0
    view = View(min_area=2, predicted_iou=0.9, stability_score=0.96, mask_nms=0.5)
    expected = {row["image_id"]: [one["id"] for one in view.annotations(row)] for row in Corpus(imported)}
    if form == "coco":
        read = COCO(tmp_path / "out" / "annotations.json")
        found = {number: [one["id"] for one in read.imgToAnns[number]] for number in read.imgs}
    else:
        entries = [json.loads(data) for name, data in unpacked(tmp_path / "out").items() if "json" in name]
        found = {entry["image"]["image_id"]: [one["id"] for one in entry["annotations"]] for entry in entries}
    assert found == expected
    assert 0 < sum(map(len, found.values())) < 36


def test_what_a_view_cannot_tell_is_said(imported, tmp_path, capsys):
    assert run(imported, tmp_path / "out", "coco", "--predicted-iou", "0.9") == 0
    assert "note: predicted_iou=0.9: run.json does not say by which thresholds" in capsys.readouterr().err


@pytest.mark.parametrize("priority", ["area", "predicted_iou"])
@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_label_maps(corpus, tmp_path, form, priority):
    assert run(corpus, tmp_path / "out", form, "--non-overlapping", priority) == 0
    for row in Corpus(corpus):
        if row["status"] == "rejected":
            continue
        if form == "sa1b":
            data = unpacked(tmp_path / "out")[f"sa_{row['image_id']}.png"]
        else:
            data = (tmp_path / "out" / "labels" / f"{row['image_id']}.png").read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.mode == "I;16"
            labels_HW = np.asarray(picture)
        expected_HW = np.zeros((row["height"], row["width"]), int)
        masks_HWN = Corpus(corpus).masks(row)
        sign = -1 if priority == "area" else 1
        for index in sorted(
            range(masks_HWN.shape[2]), key=lambda at: sign * row["annotations"][at][priority]
        ):
            expected_HW[masks_HWN[..., index]] = index + 1
        assert np.array_equal(labels_HW, expected_HW)


@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_an_export_that_stopped_goes_on(imported, tmp_path, monkeypatch, form):
    """It ends in the middle of a part; what is there stays, and the end is the same bytes."""
    options = Options(form, images_per_tar=4, non_overlapping="area")
    export(imported, tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        drawn = []

        def interrupted(*of_image):
            drawn.append(of_image)
            if len(drawn) == 7:
                raise KeyboardInterrupt
            return label_png(*of_image)

        patch.setattr("maskmill.pipelines.exchange.export.label_png", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(imported, tmp_path / "stopped", options)
    stopped = set(files_of(tmp_path / "stopped"))
    assert len(stopped) > 1
    assert "annotations.json" not in stopped
    export(imported, tmp_path / "stopped", options)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    import_sa1b([str(release(folder / "sa", range(120)))], folder / "corpus", shard_size=4)
    return folder / "corpus"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sa1b", "coco"])
def test_a_killed_export_goes_on_and_ends_the_same(many, tmp_path, form):
    words = [
        "export",
        str(many),
        "--format",
        form,
        "--out",
        str(tmp_path / "killed"),
        "--images-per-tar",
        "4",
    ]
    process = start(words)
    pattern = "*.tar" if form == "sa1b" else "parts/*.images"
    while not list((tmp_path / "killed").glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob(pattern)}
    assert 0 < len(there) < 30
    (tmp_path / "killed" / ".maskmill-sa_000009.tar-0f.tmp").write_bytes(b"half")
    assert main(words) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in there.items() if form == "sa1b")
    export(many, tmp_path / "whole", Options(form, images_per_tar=4))
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("words", [["export", "c", "--format", "coco"], ["import", "sa"]])
def test_an_interruption_says_how_to_go_on(monkeypatch, tmp_path, capsys, words):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskmill.pipelines.exchange.export.export", interrupted)
    monkeypatch.setattr("maskmill.pipelines.exchange.sa1b_import.import_sa1b", interrupted)
    assert main([*words, "--out", "x"]) == 130
    assert f"stay{'s' if words[0] == 'export' else ''}, go on with: maskmill {' '.join(words)} --out x" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_from_a_store_into_a_store(tmp_path, monkeypatch):
    with stores.s3_server() as address:
        stores.use(monkeypatch, address)
        client = stores.client_of(address)
        pack(release(tmp_path / "sa", [1, 2, 3]), tmp_path / "sa.tar")
        client.upload_file(str(tmp_path / "sa.tar"), "photos", "release/sa.tar")
        words = ["import", "s3://photos/release/*.tar", "--out", "s3://corpora/sa", "--no-embed"]
        assert main(words) == 0
        assert main(["verify", "s3://corpora/sa"]) == 0
        words = ["--images-per-tar", "2"]
        assert run("s3://corpora/sa", "s3://corpora/out", "sa1b", *words) == 0
        assert run("s3://corpora/sa", tmp_path / "out", "sa1b", *words) == 0
        listed = client.list_objects_v2(Bucket="corpora", Prefix="out/")["Contents"]
        assert {
            one["Key"].removeprefix("out/"): client.get_object(Bucket="corpora", Key=one["Key"])[
                "Body"
            ].read()
            for one in listed
        } == files_of(tmp_path / "out")
        found = unpacked(tmp_path / "out")
        assert found["sa_2.jpg"] == (tmp_path / "sa" / "sa_2.jpg").read_bytes()
        assert len(found) == 6
        client.delete_object(Bucket="photos", Key="release/sa.tar")
        assert run("s3://corpora/sa", tmp_path / "again", "sa1b") == 4


def test_decoding_an_export(corpus, tmp_path):
    """What is encoded anew is a photograph that this program itself takes."""
    assert run(corpus, tmp_path / "out", "sa1b") == 0
    for name, data in unpacked(tmp_path / "out").items():
        if name.endswith(".jpg"):
            decode_image(data, 10**6)

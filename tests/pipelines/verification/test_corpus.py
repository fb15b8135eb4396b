"""Every way of damaging a corpus is found, named by file and row; none ends in a traceback or a crash."""

import errno
import io
import json
import os
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format import manifest
from maskmill.pipelines.format.layout import CORPUS
from maskmill.pipelines.format.schema import ROW_SCHEMA
from maskmill.pipelines.storage.json_files import as_bytes, sealed
from maskmill.pipelines.verification.corpus import verify
from maskmill.pipelines.writing import close
from tests.support.corpora import fill_shard, make_corpus, make_photos, open_corpus
from tests.support.damage import rewrite, seal

SHARD_0 = "shards/shard-000000.parquet"
PART = "plan/part-000000.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    return make_corpus(make_photos(folder / "photos"), folder / "corpus")


@pytest.fixture
def corpus(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "corpus"))


def test_what_is_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="expected a corpus"):
        verify(tmp_path)
    with pytest.raises(CorpusError, match="expected a corpus"):
        verify(tmp_path / "missing")


def test_a_sound_corpus(sound):
    report = verify(sound)
    assert report.ok, report.problems
    assert report.counts == {
        "images": 7, "ok": 5, "empty": 1, "rejected": 1, "masks": 9, "shards": 3, "files": 6,
    }  # fmt: skip


def test_a_run_that_has_not_finished(tmp_path):
    run = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    fill_shard(run, 1)
    problems = verify(run.out).problems
    assert [problem.split(":")[0] for problem in problems] == [
        SHARD_0,
        SHARD_0.replace("00.", "02."),
        "corpus.json",
    ]


@pytest.mark.parametrize("seed", range(60))
def test_any_byte_of_any_file(corpus, seed):
    rng = random.Random(seed)
    path = rng.choice(sorted(path for path in corpus.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    assert any(path.name in problem for problem in verify(corpus).problems)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_shards_with_a_matching_checksum_do_not_crash(corpus, seed):
    """Without the checksum's word for it, the pages' own checksums and the contents must do."""
    rng = random.Random(seed)
    path = corpus / SHARD_0
    data = bytearray(path.read_bytes())
    start = rng.choice([4, len(data) * 3 // 4])  # pages, or the footer
    for _ in range(rng.choice([1, 8])):
        data[rng.randrange(start, len(data))] = rng.randrange(256)
    path.write_bytes(data)
    seal(corpus)
    assert all("\n" not in problem for problem in verify(corpus).problems)


@pytest.mark.parametrize("keep", [0, 1, 4, 100, -1, -9, -200])
@pytest.mark.parametrize("name", [SHARD_0, PART, "run.json", "corpus.json"])
def test_truncated_files(corpus, name, keep):
    path = corpus / name
    path.write_bytes(path.read_bytes()[:keep])
    assert any(name in problem for problem in verify(corpus).problems)


@pytest.mark.parametrize("name", [SHARD_0, PART, "run.json", "corpus.json"])
def test_missing_files(corpus, name):
    (corpus / name).unlink()
    assert any("missing" in problem or "no plan" in problem for problem in verify(corpus).problems)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("shards/shard-000003.parquet", "not part"),
        ("shards/shard-0.parquet", "not part"),
        ("shards/.maskmill-shard-000000.parquet-1f.tmp", "left behind"),
        ("plan/part-000000.parquet.bak", "not part"),
        ("notes.txt", "not part"),
        ("more/shard-000000.parquet", "this folder is not part"),
    ],
)
def test_files_that_do_not_belong(corpus, name, says):
    (corpus / name).parent.mkdir(exist_ok=True)
    shutil.copy(corpus / SHARD_0, corpus / name)
    assert any(says in problem for problem in verify(corpus).problems)


def set_row(index, **values):
    return lambda rows: rows[index].update(values)


def set_mask(**values):
    return lambda rows: rows[0]["annotations"][0].update(values)


def set_code(**values):
    return lambda rows: rows[0]["annotations"][0]["segmentation"].update(values)


def swap(rows):
    rows[0], rows[2] = rows[2], rows[0]


def swap_masks(rows):
    rows[2]["annotations"].reverse()


# Shard 0 holds 0.png (20×30, one mask), 1.png (rejected) and 2.png (three masks).
EDITS = {
    "swapped rows": (swap, "row 0: out of order, expected 0.png"),
    "missing row": (lambda rows: rows[1:], "0 rows for 0.png"),
    "no rows": (lambda rows: rows.clear(), "0 rows for 0.png"),
    "doubled row": (lambda rows: [rows[0], *rows], "2 rows for 0.png"),
    "foreign row": (set_row(0, image_id=17), "row 0 (0.png): not planned for this shard"),
    "null id": (set_row(0, image_id=None), "row 0 (0.png): not planned for this shard"),
    "key": (set_row(0, key="9.png"), "row 0 (9.png): key is '9.png'"),
    "uri": (set_row(0, uri="/elsewhere"), "row 0 (0.png): uri is"),
    "file_name": (set_row(0, file_name=None), "file_name is None"),
    "width": (set_row(0, width=31), "mask 0: the segmentation's size is [20, 30], expected [20, 31]"),
    "null height": (set_row(0, height=None), "height is None"),
    "zero width": (set_row(0, width=0), "width is 0"),
    "orientation": (set_row(0, orientation=-1), "orientation is -1"),
    "image_sha256": (set_row(0, image_sha256="F" * 64), "image_sha256 is"),
    "rejected sha256": (set_row(1, image_sha256="x"), "row 1 (1.png): image_sha256 is 'x'"),
    "status unknown": (set_row(0, status="fine"), "row 0 (0.png): status is 'fine'"),
    "status empty": (set_row(0, status="empty"), "row 0 (0.png): empty, but it has 1 masks"),
    "status ok": (set_row(1, status="ok"), "row 1 (1.png): ok, but"),
    "status rejected": (set_row(0, status="rejected"), "row 0 (0.png): rejected, but the error is None"),
    "null annotations": (set_row(0, annotations=None), "annotations are null"),
    "lost annotations": (set_row(0, annotations=[], candidates=7), "ok, but it has 0 masks"),
    "null annotation": (set_row(0, annotations=[None]), "mask 0: null"),
    "error on ok": (set_row(0, error={"stage": "read", "class": "X", "message": ""}), "ok, but the error is"),
    "null error": (set_row(1, error=None), "rejected, but the error is None"),
    "null class": (set_row(1, error={"stage": "read", "class": None}), "rejected, but the error"),
    "candidates": (set_row(0, candidates=9), "9 candidates, but 1 kept and 7 dropped"),
    "null drops": (set_row(0, drops=None), "candidates or drops are null"),
    "negative drops": (lambda rows: rows[0]["drops"].update(nms=-3, empty=6), "negative"),
    "image": (set_row(0, image={"bytes": b"x", "path": "0.png"}), "an image is embedded"),
    "mask id": (set_mask(id=2), "row 0 (0.png): mask 0: id is 2, expected 1"),
    "mask order": (swap_masks, "row 2 (2.png): mask 0: id is 2097155, expected 2097153"),
    "area": (set_mask(area=1), "mask 0: area is 1, the mask has"),
    "null area": (set_mask(area=None), "area is None"),
    "bbox": (set_mask(bbox=[0.0, 0.0, 30.0, 12.0]), "bbox is [0.0, 0.0, 30.0, 12.0]"),
    "bbox shifted": (set_mask(bbox=[0.5, 0.0, 30.0, 20.0]), "bbox is [0.5"),
    "nan score": (set_mask(predicted_iou=float("nan")), "predicted_iou is nan"),
    "infinite stability": (set_mask(stability_score=float("inf")), "stability_score is inf"),
    "stability over 1": (set_mask(stability_score=1.5), "stability_score is 1.5"),
    "null score": (set_mask(predicted_iou=None), "predicted_iou is None"),
    "crop box outside": (set_mask(crop_box=[10.0, 0.0, 30.0, 20.0]), "crop_box"),
    "null crop box": (set_mask(crop_box=None), "crop_box"),
    "empty crop box": (set_mask(crop_box=[3.0, 3.0, 0.0, 4.0]), "is empty"),
    "no points": (set_mask(point_coords=[]), "point_coords [] are no points"),
    "point outside": (set_mask(point_coords=[[31.0, 2.0]]), "point_coords"),
    "half a point": (set_mask(point_coords=[[3.0]]), "point_coords"),
    "null segmentation": (set_mask(segmentation=None), "size is None"),
    "size": (set_code(size=[30, 20]), "size is [30, 20], expected [20, 30]"),
    "null counts": (set_code(counts=None), "segmentation"),
    "no counts": (set_code(counts=""), "segmentation"),
    "unended counts": (set_code(counts="h"), "segmentation"),
    "endless counts": (set_code(counts="o" * 4000), "segmentation"),
    "foreign counts": (set_code(counts="çö\x00"), "segmentation"),
    "too long": (set_code(counts="oooooooooooooooooooooo0"), "segmentation"),
    "short": (set_code(counts="0"), "segmentation"),
    "beyond the image": (set_code(counts="11" * 900), "segmentation"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_edited_rows(corpus, name):
    """Each is found twice: by the checksum, and, with that made right again, by what the row says."""
    change, says = EDITS[name]
    rewrite(corpus / SHARD_0, change)
    assert any(SHARD_0 in problem and "sha256" in problem for problem in verify(corpus).problems)
    seal(corpus)
    found = [problem for problem in verify(corpus).problems if problem.startswith(f"{SHARD_0}: ")]
    assert any(says in problem for problem in found), found


def test_a_value_that_agrees_with_all_others_is_found_by_its_checksum(corpus):
    rewrite(corpus / SHARD_0, set_mask(predicted_iou=0.5))
    assert verify(corpus).problems == [f"{SHARD_0}: its bytes or its sha256 are not those in corpus.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[0].update(image_id=5), "row 0 (0.png): image_id is 5, not its key's"),
        (lambda rows: rows[0].update(key="00.png"), "row 0 (00.png): image_id is"),
        (lambda rows: rows.reverse(), "not numbered in order"),
        (lambda rows: rows[0].update(shard=1), "not numbered in order"),
        (lambda rows: rows[0].update(uri=None), "without nulls"),
        (lambda rows: rows[1].update(rows[0]), "two images have one image_id"),
        (lambda rows: rows[:-1], "not part of the corpus"),
        (lambda rows: rows.clear(), "the plan is empty"),
    ],
)
def test_edited_plans(corpus, change, says):
    rewrite(corpus / PART, change)
    seal(corpus)
    problems = verify(corpus).problems
    assert any(says in problem for problem in problems), problems


def test_plan_keys_out_of_order(corpus):
    def exchange(rows):
        rows[0], rows[1] = rows[1], rows[0]

    rewrite(corpus / PART, exchange)
    seal(corpus)
    assert f"{PART}: the keys are not in order: 1.png stands before 0.png" in verify(corpus).problems


@pytest.mark.parametrize(
    ("footer", "says"),
    [
        ({"maskmill.format_version": "2"}, "format_version is b'2', expected '1'"),
        ({"maskmill.run_digest": "0" * 64}, "run_digest is"),
        ({"maskmill.shard": "1"}, "shard is b'1', expected '0'"),
        ({"maskmill.seconds": "[1"}, "seconds are"),
        ({"maskmill.seconds": '{"decode": "soon"}'}, "seconds are"),
    ],
)
def test_footers(corpus, footer, says):
    rewrite(corpus / SHARD_0, list, footer)
    seal(corpus)
    assert [problem for problem in verify(corpus).problems if says in problem]


def test_a_shard_in_place_of_another(corpus):
    shutil.copy(corpus / SHARD_0.replace("00.", "01."), corpus / SHARD_0)
    seal(corpus)
    problems = verify(corpus).problems
    assert any("the footer's shard is b'1'" in problem for problem in problems)
    assert any("0 rows for 0.png" in problem for problem in problems)


def test_other_columns(corpus):
    table = pq.read_table(corpus / SHARD_0).drop_columns(["drops"])
    pq.write_table(table, corpus / SHARD_0)
    seal(corpus)
    assert any("columns are not those of the format" in problem for problem in verify(corpus).problems)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b'{"files": [3]}',
        b'{"files": {}}',
    ],
    ids=range(9),
)  # fmt: skip
@pytest.mark.parametrize("name", ["run.json", "corpus.json"])
def test_json_of_any_kind(corpus, name, content):
    (corpus / name).write_bytes(content)
    assert any(problem.startswith(name) for problem in verify(corpus).problems)


def test_the_seal_covers_totals_and_files(corpus):
    path = corpus / CORPUS
    content = json.loads(path.read_bytes())
    content["totals"]["masks"] += 1
    path.write_bytes(as_bytes(content))
    assert any("its sha256 is not that of its contents" in problem for problem in verify(corpus).problems)
    path.write_bytes(as_bytes(sealed(content)))
    assert any("the totals are" in problem for problem in verify(corpus).problems)
    content["files"].pop(0)
    path.write_bytes(as_bytes(sealed(content)))
    assert "corpus.json: does not list run.json" in verify(corpus).problems


@pytest.mark.parametrize("name", ["run.json", "corpus.json", PART, SHARD_0])
def test_a_disk_that_fails_at_a_file(corpus, monkeypatch, name):
    """Root may read everything, so that the disk's answer is put in its mouth."""
    opening = io.open

    def refuse(file, *more, **options):
        if str(file) == str(corpus / name):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return opening(file, *more, **options)

    monkeypatch.setattr(io, "open", refuse)
    problems = verify(corpus).problems
    assert any(problem.startswith(name) and "Input/output error" in problem for problem in problems)


@pytest.mark.parametrize("name", ["plan", "shards"])
def test_a_disk_that_fails_at_a_folder(corpus, monkeypatch, name):
    listing = os.listdir

    def refuse(folder):
        if str(folder) == str(corpus / name):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    problems = verify(corpus).problems
    assert any(problem.startswith(name) and "Permission denied" in problem for problem in problems)


@pytest.mark.parametrize("change", [{"sha256": None}, {"bytes": "12"}, {"note": "ours"}])
def test_an_entry_that_is_not_as_it_was_written_fits_no_file(corpus, change):
    """Neither for `verify` nor for a rerun, which keeps it while the corpus is open."""
    path = corpus / CORPUS
    content = json.loads(path.read_bytes())
    entry = content["files"][-1]
    entry |= change
    path.write_bytes(as_bytes(sealed(content)))
    assert verify(corpus).problems == [f"{entry['path']}: its bytes or its sha256 are not those in {CORPUS}"]
    manifest.reopen(corpus)
    with pytest.raises(CorpusError, match=f"{entry['path']} is damaged"):
        close.finish_corpus(corpus, range(3))


def test_numbers_and_lists_that_json_has_and_a_corpus_cannot(corpus):
    """`recorded` reads them for a rerun; what has a matching checksum is no less damaged."""
    path = corpus / CORPUS
    content = json.loads(path.read_bytes())
    path.write_bytes(as_bytes(sealed({**content, "files": 5})))
    with pytest.raises(CorpusError, match="damaged: its list of files"):
        manifest.recorded(corpus)
    path.write_bytes(b'{"totals": 1234e6789}')
    with pytest.raises(CorpusError, match=r"damaged: .*not JSON compliant.*restore it from a copy"):
        manifest.recorded(corpus)


@pytest.mark.parametrize(
    "name",
    ["../notes.txt", "/etc/hosts", "plan/../../notes.txt", "s3://a/b", "run.json\n\x1b[2J", 3, None, ["run"]],
)
def test_names_that_no_corpus_has_are_told_and_not_opened(corpus, name):
    """Also by somebody who can seal the file; and what a terminal would obey is shown, not sent."""
    (corpus.parent / "notes.txt").write_text("mine")
    path = corpus / CORPUS
    content = json.loads(path.read_bytes())
    content["files"].append({"path": name, "bytes": 4, "sha256": "0" * 64})
    path.write_bytes(as_bytes(sealed(content)))
    (problem,) = verify(corpus).problems
    assert problem.startswith("corpus.json: lists something that is not a file of a corpus: {'path': ")
    assert problem.isprintable()


def test_one_worker_or_many_say_the_same(corpus):
    for number in range(3):
        rewrite(corpus / f"shards/shard-00000{number}.parquet", lambda rows: rows[0].update(orientation=-1))
    assert verify(corpus, workers=1) == verify(corpus, workers=8)


@pytest.mark.parametrize(
    "change",
    [
        (b'"points_per_side": 32', b'"points_per_side": 33'),
        (b'"embed_images": false', b'"embed_images": true'),
    ],
)
def test_a_setting_that_decides_rows_is_held_by_its_digest(corpus, change):
    (corpus / "corpus.json").unlink()  # and the checksums with it
    path = corpus / "run.json"
    assert not any(problem.startswith("run.json") for problem in verify(corpus).problems)
    path.write_bytes(path.read_bytes().replace(*change))
    assert "run.json: its config_digest is not that of its config" in verify(corpus).problems


def test_many_problems_of_one_file_are_counted(tmp_path):
    corpus = make_corpus(make_photos(tmp_path / "photos", 3), tmp_path / "corpus")
    annotation = pq.read_table(corpus / SHARD_0).to_pylist()[0]["annotations"][0]
    rewrite(corpus / SHARD_0, set_row(0, annotations=[annotation] * 40))
    # The counts, 39 ids out of 40, the checksum; twenty of them are told.
    assert f"{SHARD_0}: and 21 more problems" in verify(corpus).problems


def test_embedded_images_are_checked(tmp_path):
    config = {"shard_size": 3, "embed_images": True}
    corpus = make_corpus(make_photos(tmp_path / "photos", 3), tmp_path / "corpus", config=config)
    assert verify(corpus).ok
    rewrite(corpus / SHARD_0, set_row(0, image={"bytes": b"other", "path": "0.png"}))
    assert any("not the one of image_sha256" in problem for problem in verify(corpus).problems)
    rewrite(corpus / SHARD_0, set_row(0, image=None))
    assert any("row 0 (0.png): no image is embedded" in problem for problem in verify(corpus).problems)


def test_the_columns_are_compared_as_the_format_has_them(sound):
    with pq.ParquetFile(sound / SHARD_0) as file:
        assert file.schema_arrow.equals(ROW_SCHEMA)

"""Reading in any order, by id, by column, through a view: what is asked wrongly first."""

import gc
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from maskmill.pipelines.corpus import windows
from maskmill.pipelines.corpus.order import Order
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.corpus.views import View, ViewWarning
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format import parquet_files
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import open_run
from tests.support.corpora import fill_shard, make_corpus, make_photos, make_record, open_corpus

PHOTOS = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of six shards of three rows, a row group each; the last has two."""
    folder = tmp_path_factory.mktemp("reading")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "ROW_GROUP_BYTES", 100)
        make_corpus(make_photos(folder / "photos", PHOTOS), folder / "corpus")
    return folder


@pytest.fixture
def corpus(folder):
    return Corpus(folder / "corpus")


def keys(rows):
    return [row["key"] for row in rows]


@pytest.mark.parametrize("name", ["colour", "annotations.colour", "annotations.area.x", "width.x", "", "Key"])
def test_columns_that_are_not_there(corpus, name):
    with pytest.raises(ValueError, match="expected one of the columns .*, got '" + re.escape(name)):
        corpus.rows(columns=["key", name])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seed": -1}, "a seed of at least 0, got -1"),
        ({"epoch": -1}, "an epoch of at least 0, got -1"),
        ({"part": 2, "parts": 2}, "a part from 0 to 1, got 2"),
    ],
)
def test_orders_that_mean_nothing(values, says):
    with pytest.raises(ValueError, match=says):
        Order(**values)


def test_images_that_are_not_there(folder, corpus, tmp_path):
    for image in (17, "17.png", -1, 2**63 - 1):
        with pytest.raises(KeyError, match="there is no such image in the plan"):
            corpus.row(image)
    for position in (PHOTOS, -PHOTOS - 1):
        with pytest.raises(IndexError, match=f"expected a position below 17, got {position}"):
            corpus[position]
    run = open_corpus(folder / "photos", tmp_path / "corpus")
    fill_shard(run, 1)
    growing = Corpus(run.out)
    with pytest.raises(KeyError, match=r"0\.png: its shard, 0, is not committed yet"):
        growing.row("0.png")
    assert growing.row(growing[0]["image_id"])["key"] == "11.png"
    fill_shard(run, 0)
    assert growing.row("0.png")["key"] == "0.png"


def test_a_shard_that_is_not_the_planned_one(folder, tmp_path):
    out = make_corpus(folder / "photos", tmp_path / "corpus")
    (out / "shards" / "shard-000001.parquet").rename(out / "shards" / "shard-000000.parquet")
    with pytest.raises(CorpusError, match=r"shard-000000.parquet: row 0 is not the one that was planned"):
        Corpus(out).row("0.png")
    (out / "shards" / "shard-000005.parquet").rename(out / "shards" / "shard-000002.parquet")
    with pytest.raises(CorpusError, match=r"it has 2 rows, fewer than are planned"):
        Corpus(out).row("16.png")


def test_by_id_by_key_and_by_position(corpus):
    rows = list(corpus)
    assert len(rows) == len(corpus) == PHOTOS
    for position, row in enumerate(rows):
        assert corpus.row(image_id(row["key"])) == corpus.row(row["key"]) == corpus[position] == row
        assert corpus[position - PHOTOS] == row
    some = corpus.row(rows[2]["key"], columns=["annotations.area"], view=View(predicted_iou=0.9))
    assert some["annotations"] == [
        {"area": mask["area"], "predicted_iou": mask["predicted_iou"]}
        for mask in rows[2]["annotations"]
        if mask["predicted_iou"] > 0.9
    ]


@pytest.mark.parametrize("name", ["width", "error.class", "annotations.segmentation.counts", "image.bytes"])
def test_columns(corpus, name):
    """What was asked for, by pyarrow's own reading of the whole; and what every row has."""
    top, *fields = name.split(".")
    for row, whole in zip(corpus.rows(columns=[name]), corpus, strict=True):
        assert set(row) == {"image_id", "key", "status", top}
        assert {one: row[one] for one in row if one != top} == {one: whole[one] for one in row if one != top}
        assert row[top] == only(whole[top], fields)


def only(value, fields):
    """The value with the one field, at every depth, that the names lead to."""
    if value is None or not fields:
        return value
    if isinstance(value, list):
        return [only(one, fields) for one in value]
    return {fields[0]: only(value[fields[0]], fields[1:])}


def test_a_view_and_a_status(corpus):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ViewWarning)
        seen = list(corpus.rows("ok", view=View(min_area=200, max_area=400)))
    whole = list(corpus.rows("ok"))
    assert keys(seen) == keys(whole), "a row that has no mask left stays"
    for row, one in zip(seen, whole, strict=True):
        assert row["annotations"] == [mask for mask in one["annotations"] if 200 <= mask["area"] <= 400]
    assert any(not row["annotations"] for row in seen)


def test_the_reader_warns_where_a_run_could_have_other_masks(corpus):
    with pytest.warns(ViewWarning, match="run.json does not say by which thresholds") as caught:
        corpus.rows(view=View(predicted_iou=0.9))
    assert caught[0].filename == __file__


def test_shuffled(corpus):
    in_order = keys(corpus)
    shuffled = keys(corpus.rows(seed=1))
    assert shuffled == keys(corpus.rows(seed=1)) != in_order
    assert shuffled == keys(corpus.rows(seed=1, columns=["key"])), "whatever is read"
    others = [keys(corpus.rows(seed=seed, epoch=epoch)) for seed, epoch in ((1, 1), (2, 0), (2, 1))]
    assert len({tuple(one) for one in [shuffled, in_order, *others]}) == 5
    assert all(sorted(one) == sorted(in_order) for one in [shuffled, *others])


def test_a_shuffle_holds_a_window_and_no_more(corpus, monkeypatch):
    """Windows of six rows, a row group each: so two shards at a time, in any order."""
    monkeypatch.setattr(windows, "WINDOW_GROUPS", 6)
    found = list(corpus.windows(Order(seed=4), ["key"]))
    assert [(len(window.batches), len(window.rows_K2)) for window in found] == [(6, 6), (6, 6), (5, 5)]
    assert [window.position for window in found] == [0, 6, 12]
    assert max(len({path.name for path in window.paths}) for window in found) <= 3
    monkeypatch.setattr(windows, "WINDOW_BYTES", 1)
    assert [len(window.batches) for window in corpus.windows(Order(seed=4), ["key"])] == [1] * PHOTOS


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.none() | st.integers(0, 9), st.integers(0, 3), st.integers(1, 8), st.data())
def test_parts_lose_nothing_and_share_nothing(folder, parts, seed, epoch, groups, data):
    """Over any number of readers; their shares differ by a row at most; each can be left and taken up."""
    corpus = Corpus(folder / "corpus")
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_GROUPS", groups)
        for part in range(parts):
            one = Order(seed, epoch, part, parts)
            rows = drawn_keys(corpus.windows(one, ["key"]))
            skip = data.draw(st.integers(0, len(rows) + 1))
            assert drawn_keys(corpus.windows(one, ["key"], skip)) == rows[skip:]
            shares.append(rows)
    assert Counter(key for share in shares for key in share) == Counter(keys(corpus.rows(columns=["key"])))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def drawn_keys(windows):
    return [
        window.batches[at]["key"][row].as_py() for window in windows for at, row in window.rows_K2.tolist()
    ]


def test_cutouts_are_the_masks(corpus):
    count = 0
    for row in corpus.rows("ok"):
        masks_HWN = corpus.masks(row)
        for index, (cut, mask) in enumerate(zip(corpus.cutouts(row), row["annotations"], strict=True)):
            height, width = cut.mask_HW.shape
            assert (cut.x, cut.y, width, height) == tuple(mask["bbox"])
            whole_HW = np.zeros(masks_HWN.shape[:2], np.bool_)
            whole_HW[cut.y : cut.y + height, cut.x : cut.x + width] = cut.mask_HW
            assert np.array_equal(whole_HW, masks_HWN[..., index])
            count += 1
    assert count > 20
    (rejected,) = corpus.rows("rejected")
    with pytest.raises(ValueError, match="a rejected image has no masks"):
        corpus.cutouts(rejected)


@pytest.fixture(scope="module", params=[False, True], ids=["by uri", "embedded"])
def photographs(request, tmp_path_factory):
    """A corpus of an upright JPEG, one that its EXIF tag turns, and no image."""
    folder = tmp_path_factory.mktemp("photographs")
    photos = folder / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(photos / "a.jpg")
    Image.fromarray(pixels).save(photos / "b.jpg", exif=exif)
    (photos / "c.jpg").write_bytes(b"no photograph at all")
    record = make_record(config={"embed_images": request.param, "input": {"max_pixels": 10**6}})
    run = open_run(folder / "corpus", list_inputs([photos], [".jpg"]), record, 3)
    fill_shard(run, 0)
    return photos, Corpus(run.out)


def test_images_that_cannot_be_had(photographs, tmp_path):
    photos, corpus = photographs
    with pytest.raises(ValueError, match=r"c\.jpg: a rejected image has no"):
        corpus.image(corpus.row("c.jpg"))
    row = {**corpus.row("a.jpg"), "image": None, "uri": str(tmp_path / "a.jpg")}
    with pytest.raises(CorpusError, match=r"a\.jpg: .*there is no such file any more"):
        corpus.image(row)
    (tmp_path / "a.jpg").write_bytes((photos / "a.jpg").read_bytes() + b"\0")
    with pytest.raises(CorpusError, match=r"a\.jpg: .* has changed"):
        corpus.image(row)


@pytest.mark.parametrize("name", ["a.jpg", "b.jpg"])
def test_images_are_upright(photographs, name):
    """As Pillow turns them; and of the size of their masks."""
    photos, corpus = photographs
    row = corpus.row(name)
    with Image.open(photos / name) as picture:
        upright_HW3 = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(corpus.image(row), upright_HW3)
    assert corpus.masks(row).shape[:2] == upright_HW3.shape[:2]


def bytes_read():
    """Bytes that this process has asked of files, by the kernel's count."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Twelve rows of 120 kB in one shard, a row group each."""
    folder = tmp_path_factory.mktemp("heavy")
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    inputs = list_inputs([photos], [".png"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "ROW_GROUP_BYTES", 1000)
        run = open_run(folder / "corpus", inputs, make_record(config={"embed_images": True}), 12)
        fill_shard(run, 0)
    assert (run.out / "shards" / "shard-000000.parquet").stat().st_size > 1_400_000
    return photos, run.out


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count")
def test_one_row_costs_one_row_group(heavy):
    """Of twelve rows in one shard one, by its id, and no other."""
    photos, out = heavy
    corpus = Corpus(out)
    corpus.row("3.png", columns=["key"])  # the plan is read once
    began = bytes_read()
    row = corpus.row("7.png")
    assert bytes_read() - began < 350_000, "its own row group, and the footer"
    assert row["image"]["bytes"] == (photos / "7.png").read_bytes()
    began = bytes_read()
    assert corpus.row("8.png", columns=["width"])["width"] == 200
    assert bytes_read() - began < 200_000, "the footer, and no image"


def test_a_shuffle_holds_three_windows(heavy, monkeypatch):
    """By Arrow's own count of its memory: of six windows of two rows each, never more than three."""
    monkeypatch.setattr(windows, "WINDOW_GROUPS", 2)
    gc.collect()
    before, most = pa.total_allocated_bytes(), 0
    for _ in Corpus(heavy[1]).windows(Order(seed=0)):
        time.sleep(0.02)  # let the reader go ahead as far as it will
        most = max(most, pa.total_allocated_bytes() - before)
    assert 240_000 < most < 3.5 * 240_000


def test_in_memory_and_while_it_is_written(folder):
    """Any store that fsspec knows; here one that is a dictionary."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    names = [path for path in sorted((folder / "corpus").rglob("*")) if path.is_file()]
    late = "shards/shard-000002.parquet"
    for path in names:
        name = str(path.relative_to(folder / "corpus"))
        if name != late:
            store.pipe_file(f"/reading/{name}", path.read_bytes())
    here = Corpus(folder / "corpus")
    there = Corpus("memory://reading")
    expected = keys(here)
    assert keys(there) == expected[:6] + expected[9:]
    assert sorted(keys(there.rows(seed=1))) == sorted(expected[:6] + expected[9:])
    store.pipe_file(f"/reading/{late}", (folder / "corpus" / late).read_bytes())
    assert len(there) == 14, "what was there when it was first asked"
    assert list(Corpus("memory://reading")) == list(here)
    assert there.row(expected[7]) == here.row(expected[7])
    assert Corpus("memory://reading")[8] == here[8]


def test_a_finished_corpus_is_what_pyarrow_reads(corpus):
    """The same rows as any other reader of Parquet has."""
    assert ds.dataset(corpus.path / "shards").to_table().to_pylist() == list(corpus)


def test_reading_by_id_and_shuffled_is_light(folder):
    """Without torch, Ray, OpenCV, Pillow or pydantic, in a fresh process; images want Pillow only.

    (pandas, where it is installed, is loaded by pyarrow once the plan's ids become numpy's.)
    """
    script = (
        "import sys; from maskmill.pipelines.corpus.reader import Corpus\n"
        "from maskmill.pipelines.corpus.views import View\n"
        "from maskmill.pipelines.corpus.masks import label_map\n"
        "corpus = Corpus(sys.argv[1]); row = corpus.row('2.png', view=View(mask_nms=0.9)); corpus[1]\n"
        "label_map(row, row['annotations']); list(corpus.rows(seed=1, columns=['width']))\n"
        "heavy = {'torch', 'ray', 'cv2', 'PIL', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules))); corpus.image(row); print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(folder / "corpus")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n['PIL']\n"


def test_a_run_that_goes_on_while_it_is_read(folder, tmp_path):
    """Every reader sees whole shards; the last one all of them."""
    run = open_corpus(folder / "photos", tmp_path / "corpus")
    for done, shard in enumerate(run.todo()):
        assert len(list(Corpus(run.out).rows(seed=2))) == 3 * done
        fill_shard(run, shard)
    finish_corpus(run.out, run.plan.shards)
    assert Corpus(run.out).complete
    assert len(list(Corpus(run.out))) == PHOTOS

"""The gallery: every photograph and every mask in its files, and nothing of the corpus run as markup; with
`-m slow`, a real browser (chromium and chromedriver on the PATH) lists, filters, selects, obeys the keyboard.
"""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskmill.engine.codes import single
from maskmill.engine.records import DROP_REASONS, GeneratedMasks, MaskRecord, Rle
from maskmill.pipelines.cli import main
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.errors import CorpusError, InputRejected, UsageError
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.rows import rejected_row, row_from_result, table_from_rows
from maskmill.pipelines.format.schema import ROW_SCHEMA
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.gallery.files import mask_colour, sampled
from maskmill.pipelines.gallery.page import write_gallery
from maskmill.pipelines.gallery.server import GalleryServer
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import open_run
from tests.support.browser import opened_browser
from tests.support.corpora import make_corpus, make_photos, make_record, open_corpus

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
ORIENTATION = 0x0112
BIG_SIZE, BIG_SCALE = (1500, 1000), 1024 / 1500


class Page(HTMLParser):
    """What a browser would see before any script runs: elements with their attributes, and texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):  # noqa: ARG002
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def side_file(page: Path, name: str):
    """What a side file hands to the page."""
    text = (page.parent / f"{page.stem}_files" / name).read_bytes().decode("ascii")
    said, content = json.loads("[" + text.removeprefix("maskmill(").removesuffix(");\n") + "]")
    assert said == name
    return content


def drawn(width: int, height: int, box: tuple[int, int, int, int]) -> MaskRecord:
    """A rectangle (x, y, width, height), prompted in its middle."""
    x, y, w, h = box
    mask_HW = np.zeros((height, width), bool)
    mask_HW[y : y + h, x : x + w] = True
    return MaskRecord(
        segmentation=single.encode(mask_HW),
        area=w * h,
        bbox=(float(x), float(y), float(w), float(h)),
        predicted_iou=0.75 + 0.125 * (w * h < 100),
        stability_score=0.96875,
        crop_box=(0.0, 0.0, float(width), float(height)),
        point_coords=((x + w / 2, y + h / 2),),
    )


def boxes_of(key: str) -> list[tuple[int, int, int, int]]:
    if key == "empty.png":
        return []
    if key == "big.jpg":
        return [(1400, 900, 1, 1), (0, 0, 750, 1000)]
    return [(4, 4, 6, 6), (2, 2, 20, 12)]  # the smaller one inside the larger


def commit(photos: Path, out: Path, **config) -> Path:
    """A corpus of rectangles over the photographs."""
    run = open_run(out, list_inputs([photos], [".png", ".jpg"]), make_record(**config), 100, "resume")
    rows = []
    for planned in run.plan.images(0):
        data = read_input(planned.uri)
        try:
            decoded = decode_image(data, 10**7)
        except InputRejected as error:
            rows.append(rejected_row(planned, error, data))
            continue
        masks = [drawn(decoded.width, decoded.height, box) for box in boxes_of(planned.key)]
        result = GeneratedMasks(
            masks, len(masks) + 3, {**dict.fromkeys(DROP_REASONS, 0), "nms": 3}, {"encode": 0.1}
        )
        rows.append(row_from_result(planned, decoded, result, embed=bool(config)))
    commit_table(out, 0, table_from_rows(rows), shard_metadata(run.record.digest, 0, {}))
    finish_corpus(out, run.plan.shards)
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Photographs of every kind that the page has a way to show."""
    folder = tmp_path_factory.mktemp("gallery")
    photos = folder / "photos"
    (photos / "cats & dogs").mkdir(parents=True)
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    for name in (HOSTILE, "changed.png", "empty.png", "gone.png", "{{script}}.png"):
        noise.save(photos / name)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    noise.save(photos / "cats & dogs" / "turned.jpg", exif=exif)
    Image.new("RGB", BIG_SIZE, (90, 120, 60)).save(photos / "big.jpg")
    (photos / "</script><script>alert(2)</script>.png".replace("/", "\u2215")).write_bytes(b"no image")
    out = commit(photos, folder / "corpus")
    (photos / "gone.png").unlink()
    noise.rotate(180).save(photos / "changed.png")
    return out


@pytest.fixture(scope="module")
def page(corpus, tmp_path_factory) -> Path:
    return write_gallery(corpus, tmp_path_factory.mktemp("page") / "new" / "page.html")


@pytest.fixture(scope="module")
def seen(page) -> Page:
    return Page(page)


def test_what_is_no_corpus_and_what_is_no_file(tmp_path, corpus):
    with pytest.raises(CorpusError, match="no such folder"):
        write_gallery(tmp_path / "missing", tmp_path / "page.html")
    with pytest.raises(UsageError, match="this is a folder"):
        write_gallery(corpus, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "holiday.jpg"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, corpus, kind):
    place = tmp_path / "page_files"
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        (place / kind).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="page_files"):
        write_gallery(corpus, tmp_path / "page.html")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_takes_the_place_of_an_older_one(tmp_path, corpus):
    page = write_gallery(corpus, tmp_path / "page.html", photographs=2)
    first = {path.name for path in (tmp_path / "page_files").iterdir()}
    write_gallery(corpus, page, photographs=1)
    second = {path.name for path in (tmp_path / "page_files").iterdir()}
    assert first - second == {"masks-000001.js", "photo-000001.jpg", "thumb-000001.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page_files"}


@pytest.mark.parametrize("name", ["predicted_iou", "area", "id"])
def test_a_row_that_lacks_a_value_is_an_error_and_not_a_crash(photos, tmp_path, name):
    out = make_corpus(photos, tmp_path / "corpus")
    path = shard_path(out, 0)
    rows = pq.read_table(path).to_pylist()
    next(row for row in rows if row["annotations"])["annotations"][0][name] = None
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    with pytest.raises(CorpusError, match="maskmill verify says which"):
        write_gallery(out, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_corpus_without_a_single_row(tmp_path):
    open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    seen = Page(write_gallery(tmp_path / "corpus", tmp_path / "page.html"))
    assert "still being made" in seen.text
    assert "images 0" in seen.text
    assert list((tmp_path / "page_files").iterdir()) == []


def test_the_page_runs_its_own_script_and_its_side_files_only(page, seen):
    assert seen.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert all("src" not in script for script in seen.all("script"))
    policy = seen.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    script = page.read_text("utf-8").rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' 'self' file:" in policy
    assert policy.startswith("default-src 'none'")


def test_every_photograph_is_there_upright_at_its_size(page):
    listed = side_file(page, "photographs-000000.js")
    assert [entry[0] for entry in listed] == [
        HOSTILE, "big.jpg", "cats & dogs/turned.jpg",
        "changed.png", "empty.png", "gone.png", "{{script}}.png",
    ]  # fmt: skip
    sizes = {}
    for path in sorted((page.parent / "page_files").glob("*.jpg")):
        picture = Image.open(io.BytesIO(path.read_bytes()))
        assert picture.format == "JPEG"
        sizes[path.name] = picture.size
    assert {name: size for name, size in sizes.items() if name.startswith("photo")} == {
        "photo-000000.jpg": (40, 30),
        "photo-000001.jpg": (1024, 683),
        "photo-000002.jpg": (30, 40),
        "photo-000004.jpg": (40, 30),
        "photo-000006.jpg": (40, 30),
    }
    assert sizes["thumb-000001.jpg"] == (420, 280)


def test_a_block_has_every_score_in_steps_rounded_down(page):
    _, identity, width, height, candidates, scores = side_file(page, "photographs-000000.js")[0]
    assert (width, height, candidates) == (40, 30, 5)
    assert identity.isdecimal()  # too large for a number of JavaScript's
    assert list(base64.b64decode(scores)) == [
        150, 193, int(200 * (240 / 1200) ** 0.5),
        175, 193, int(200 * (36 / 1200) ** 0.5),
    ]  # fmt: skip


def test_names_and_messages_are_text(page, seen):
    files = page.parent / "page_files"
    (refused,) = side_file(page, "rejected-000000.js")
    assert refused[0] == "<\u2215script><script>alert(2)<\u2215script>.png"
    assert refused[1:3] == ["NotAnImage", "decode"]
    assert not any("onerror" in attributes for _, attributes in seen.elements)
    assert page.read_text("utf-8").count("<script") == 2
    assert all(path.read_bytes().isascii() for path in files.glob("*.js"))


def test_totals_settings_and_classes(seen):
    assert "images 8 ok 6 empty 1 rejected 1 masks 12 masks per image 1.7" in seen.text
    assert "model nano weights aaaaaaaaaaaa points per side 32" in seen.text
    assert "NotAnImage 1" in seen.text
    assert "still being made" not in seen.text


def test_a_photograph_that_is_gone_or_changed_says_so(page):
    problems = [side_file(page, f"masks-{number:06d}.js")["problem"] for number in range(7)]
    assert "has changed: it is not the image that the masks were made from" in problems[3]
    assert "there is no such file any more; if it was moved, say where" in problems[5]
    assert [problem for place, problem in enumerate(problems) if place not in (3, 5)] == [None] * 5


def test_masks_on_the_grid_of_the_picture_largest_first(page):
    small, big = side_file(page, "masks-000000.js"), side_file(page, "masks-000001.js")
    assert [mask[1:4] for mask in small["masks"]] == [[0.75, 0.969, 240], [0.875, 0.969, 36]]
    assert small["masks"][1][4] == [[7.0, 7.0]]
    mask_HW = single.decode(Rle((30, 40), small["masks"][1][5]))
    assert mask_HW[4:10, 4:10].all()
    assert mask_HW.sum() == 36
    assert (big["width"], big["height"], big["pixels"]) == (1024, 683, 1_500_000)
    assert big["scale"] == pytest.approx(BIG_SCALE, abs=1e-6)
    half_HW, dot_HW = (single.decode(Rle((683, 1024), mask[5])) for mask in big["masks"])
    assert half_HW[:, :512].all()
    assert not half_HW[:, 512:].any()
    ys, xs = np.nonzero(dot_HW)  # a single pixel of the photograph is not lost
    assert (xs.tolist(), ys.tolist()) == ([int(1400.5 * BIG_SCALE)], [int(900.5 * 683 / 1000)])


def test_a_smaller_grid_has_what_lies_under_the_middles_of_its_cells():
    rng = np.random.default_rng(2)
    for height, width, rows, columns in ((9, 7, 9, 7), (50, 31, 13, 8), (64, 64, 21, 63)):
        mask_HW = np.kron(rng.random((height, width)) < 0.5, np.ones((1, 1), bool))
        ys, xs = ((np.arange(n) + 0.5) * of / n for n, of in ((rows, height), (columns, width)))
        wanted_HW = mask_HW[np.floor(ys).astype(int)][:, np.floor(xs).astype(int)]
        found = sampled(single.decode_runs(single.encode(mask_HW)), (rows, columns))
        assert np.array_equal(single.decode(single.encode_runs(found)), wanted_HW)


def test_embedded_photographs_need_no_files(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 30)).save(photos / "a.png")
    config = {"generator": {}, "shard_size": 100, "embed_images": True}
    out = commit(photos, tmp_path / "corpus", config=config)
    shutil.rmtree(photos)
    page = write_gallery(out, tmp_path / "page.html")
    assert side_file(page, "masks-000000.js")["problem"] is None


def test_a_page_has_a_limit_and_counts_all(tmp_path):
    corpus = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    page = write_gallery(corpus, tmp_path / "page.html", photographs=2)
    assert len(side_file(page, "photographs-000000.js")) == 2
    assert "images 7" in Page(page).text
    assert "The first 2 images are shown." in Page(page).text


def test_colours_are_stable_and_apart():
    assert mask_colour(1) == mask_colour(1)
    assert len({mask_colour((7 << 20) + index) for index in range(200)}) > 190
    assert all(len(mask_colour(2**62 + index)) == 7 for index in range(50))


def test_reading_a_corpus_for_a_page_loads_neither_torch_nor_ray():
    code = (
        "import sys, maskmill.pipelines.gallery.page, maskmill.pipelines.gallery.server; "
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as browser:
        yield browser


@pytest.mark.slow
class TestInABrowser:
    """Of the first photograph, 40×30: a mask of 20×12 at (2, 2), and one of 6×6 at (4, 4) above it."""

    def test_it_lists_draws_and_filters(self, browser, page):
        browser.open(page.resolve().as_uri())
        browser.wait_for(
            "[...document.querySelectorAll('#list canvas')].filter(c => c.width === 40).length >= 3"
        )
        browser.wait_for("document.querySelector('#shown').textContent === '12 of 12 masks'")
        names = browser.run(
            "return [...document.querySelectorAll('#list bdi')].map(name => name.textContent)"
        )
        assert names[0] == HOSTILE
        assert len(names) == 7
        browser.run(
            "const slider = document.getElementById('predicted-iou'); slider.value = 170;"
            "slider.dispatchEvent(new Event('input'))"
        )
        browser.wait_for("document.querySelector('#shown').textContent === '6 of 12 masks'")
        drawn = "document.querySelector('#list canvas').getContext('2d').getImageData(15, 12, 1, 1).data[3]"
        browser.wait_for(f"{drawn} === 0")
        browser.run(
            "const slider = document.getElementById('predicted-iou'); slider.value = 0;"
            "slider.dispatchEvent(new Event('input'))"
        )
        browser.wait_for(f"{drawn} > 0")

    def test_a_mask_is_told_by_the_mouse_and_stays_when_clicked(self, browser, page):
        browser.open(page.resolve().as_uri() + "#1")
        browser.wait_for("document.querySelectorAll('#masks-list li').length === 2")
        said = "document.querySelector('.tip').textContent"
        browser.point("#stage", 7 / 40, 7 / 30)
        assert browser.run(f"return {said}") == (
            "predicted IoU 0.875 · stability 0.969 · 36 px (3.0 %) · point at 7, 7"
        )
        browser.point("#stage", 16 / 40, 8 / 30, click=True)
        browser.point("#stage", 38 / 40, 28 / 30)
        assert "240 px (20.0 %)" in browser.run(f"return {said}")
        chosen = "return [...document.querySelectorAll('[aria-selected=true]')].map(e => e.id)"
        assert browser.run(chosen) == ["mask-0"]

    def test_everything_goes_by_keyboard(self, browser, page):
        browser.open(page.resolve().as_uri())
        browser.wait_for("document.querySelectorAll('#list a').length === 7")
        browser.run("document.querySelector('#list a').focus()")
        browser.press("ARROW_RIGHT", "ARROW_LEFT", "ENTER")
        browser.wait_for("document.querySelectorAll('#masks-list li').length === 2")
        browser.press("ARROW_DOWN", "ARROW_DOWN")
        assert "36 px" in browser.run("return document.querySelector('.tip').textContent")
        assert (
            browser.run("return document.getElementById('masks-list').getAttribute('aria-activedescendant')")
            == "mask-1"
        )
        browser.press("ARROW_RIGHT")
        browser.wait_for("document.getElementById('photograph-name').textContent === 'big.jpg'")
        browser.press("ESCAPE")
        browser.wait_for("!document.getElementById('photographs').hidden")
        assert browser.run("return document.activeElement.getAttribute('href')") == "#2"

    def test_rejected_inputs_have_a_view_and_run_nothing(self, browser, page):
        browser.open(page.resolve().as_uri() + "#rejected")
        browser.wait_for("document.querySelectorAll('#rejected-inputs tbody tr').length === 1")
        text = browser.run("return document.querySelector('#rejected-inputs').innerText")
        assert "NotAnImage" in text
        assert "script>alert(2)" in text
        assert browser.run("return document.querySelectorAll('#list').length") == 1

    def test_all_rejected_inputs_come_though_the_end_stays_in_sight(self, browser, tmp_path):
        (tmp_path / "photos").mkdir()
        for number in range(250):
            (tmp_path / "photos" / f"{number:03d}.png").write_bytes(b"no photograph at all")
        page = write_gallery(make_corpus(tmp_path / "photos", tmp_path / "corpus"), tmp_path / "page.html")
        browser.open(page.resolve().as_uri() + "#rejected")
        browser.run("document.body.style.zoom = 0.02")
        browser.wait_for("document.querySelectorAll('#rejected-inputs tbody tr').length === 250")

    def test_what_can_be_used_has_a_name(self, browser, page):
        browser.open(page.resolve().as_uri() + "#1")
        browser.wait_for("document.querySelectorAll('#masks-list li').length === 2")
        unnamed = browser.run(
            "const all = [...document.querySelectorAll('a, button, input, [tabindex], [role=option], img')];"
            "const named = e => e.ariaLabel || e.textContent.trim() || e.alt || e.labels?.length;"
            "return all.filter(e => e.checkVisibility() && !named(e)).map(e => e.outerHTML)"
        )
        assert unnamed == []

    def test_nothing_is_complained_of(self, browser, page):
        """But the two photographs that are not there to be loaded."""
        browser.messages()
        for view in ("", "#1", "#2", "#rejected"):
            browser.open(page.resolve().as_uri() + view)
            browser.wait_for("document.readyState === 'complete'")
        lost = ("thumb-000003.jpg", "thumb-000005.jpg")
        complaints = [line for line in browser.messages() if not any(name in line for name in lost)]
        assert complaints == []

    def test_a_server_gives_the_same_page(self, browser, corpus):
        with GalleryServer(corpus) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            browser.open(server.address)
            browser.wait_for("document.querySelector('#shown').textContent === '12 of 12 masks'")
            browser.wait_for("document.querySelectorAll('#list img.here').length === 5")
            browser.open(server.address + "#1")
            browser.wait_for("document.querySelectorAll('#masks-list li').length === 2")
            lost = ("thumb-000003.jpg", "thumb-000005.jpg")
            assert [line for line in browser.messages() if not any(name in line for name in lost)] == []
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("command", ["gallery", "report"])
def test_a_page_is_never_put_into_the_corpus(photos, tmp_path, capsys, command):
    out = make_corpus(photos, tmp_path / "corpus")
    before = (out / "run.json").read_bytes()
    assert main([command, str(out), "--out", str(out / "run.json")]) == 2
    assert "lies in the corpus" in capsys.readouterr().err
    assert (out / "run.json").read_bytes() == before


@pytest.mark.parametrize("command", ["gallery", "report"])
def test_a_page_is_never_put_into_a_store(corpus, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([command, str(corpus), "--out", "s3://bucket/page.html"]) == 2
    assert "s3://bucket/page.html: a page is written to a local disk" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

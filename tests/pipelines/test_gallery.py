"""The page: every photograph on it with its masks, and nothing of the corpus run as markup; with `-m slow`, a
real browser (chromium and chromedriver on the PATH) draws it and answers the pointer.
"""

import base64
import contextlib
import hashlib
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from engine import rle
from engine.records import DROP_REASONS, GeneratedMasks, MaskRecord, Rle
from pipelines import gallery
from pipelines.decode import decode_image
from pipelines.errors import CorpusError, InputRejected, UsageError
from pipelines.gallery import mask_colour, write_gallery
from pipelines.manifest import finish_corpus
from pipelines.plan import open_run
from pipelines.reader import read_input
from pipelines.schema import rejected_row, row_from_result, table_from_rows
from pipelines.shards import commit_table, shard_metadata
from pipelines.sources import list_inputs
from tests.pipelines.corpora import make_corpus, make_photos, make_record, open_corpus

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
ORIENTATION = 0x0112
BIG_SIZE, BIG_SCALE = (1500, 1000), 1024 / 1500


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, texts, and the masks by photograph."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data: list[dict] = []
        self._inside: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = [tag]

    def handle_endtag(self, tag):  # noqa: ARG002
        self._inside = []

    def handle_data(self, data):
        if self._inside == ["script"] and self.elements[-1][1].get("type") == "application/json":
            self.data.append(json.loads(data))
        elif self._inside not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def drawn(width: int, height: int, box: tuple[int, int, int, int]) -> MaskRecord:
    """A rectangle (x, y, width, height), prompted in its middle."""
    x, y, w, h = box
    mask_HW = np.zeros((height, width), bool)
    mask_HW[y : y + h, x : x + w] = True
    return MaskRecord(
        segmentation=rle.encode(mask_HW),
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
    for name in (HOSTILE, "changed.png", "empty.png", "gone.png", "{{cards}}.png"):
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


def test_a_corpus_without_a_single_row(tmp_path):
    open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    seen = Page(write_gallery(tmp_path / "corpus", tmp_path / "page.html"))
    assert "still being made" in seen.text
    assert "photographs 0" in seen.text
    assert seen.all("li") == []


def test_the_page_fetches_nothing_and_runs_its_own_script_only(page, seen):
    assert seen.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert all("src" not in script for script in seen.all("script"))
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in seen.all("img"))
    policy = seen.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    script = page.read_text("utf-8").rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_every_photograph_is_there_upright_at_its_size(seen):
    sizes = []
    for image in seen.all("img"):
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert picture.format == "JPEG"
        assert picture.size == (int(image["width"]), int(image["height"]))
        sizes.append((image["alt"], picture.size))
    assert sizes == [
        (f"photograph {HOSTILE}", (40, 30)),
        ("photograph big.jpg", (1024, 683)),
        ("photograph turned.jpg", (30, 40)),
        ("photograph empty.png", (40, 30)),
        ("photograph {{cards}}.png", (40, 30)),
    ]


def test_names_and_messages_are_text(page, seen):
    assert HOSTILE in seen.text
    assert "cats & dogs/ turned.jpg" in seen.text
    assert "{{cards}}.png" in seen.text
    assert "<\u2215script><script>alert(2)" in seen.text
    assert not any("onerror" in attributes for _, attributes in seen.elements)
    assert page.read_text("utf-8").count("<script") == 1 + len(seen.data)


def test_totals_settings_and_captions(seen):
    assert "photographs 8 ok 6 empty 1 rejected 1 masks 12 masks per image 1.7" in seen.text
    assert "model nano weights aaaaaaaaaaaa points per side 32" in seen.text
    assert "1500 × 1000 · 2 masks · mean predicted IoU 0.812" in seen.text
    assert "no mask among 3 candidates" in seen.text
    assert "NotAnImage" in seen.text
    assert "still being made" not in seen.text


def test_a_photograph_that_is_gone_or_changed_says_so(seen):
    assert "cannot be shown: there is no such file any more." in seen.text
    assert "cannot be shown: the file has changed since its masks were made." in seen.text
    assert len(seen.all("div", **{"class": "stage gone"})) == 2
    assert len(seen.data) == 4  # of 6 that have masks


def test_masks_on_the_grid_of_the_picture_largest_first(seen):
    small, big = seen.data[0], seen.data[1]
    assert [mask["area"] for mask in small["masks"]] == [240, 36]
    assert [mask["predicted_iou"] for mask in small["masks"]] == [0.75, 0.875]
    assert small["masks"][1]["points"] == [[7.0, 7.0]]
    mask_HW = rle.decode(Rle((30, 40), small["masks"][1]["counts"]))
    assert mask_HW[4:10, 4:10].all()
    assert mask_HW.sum() == 36
    assert (big["width"], big["height"], big["pixels"]) == (1024, 683, 1_500_000)
    assert big["scale"] == pytest.approx(BIG_SCALE, abs=1e-6)
    half_HW, dot_HW = (rle.decode(Rle((683, 1024), mask["counts"])) for mask in big["masks"])
    assert half_HW[:, :512].all()
    assert not half_HW[:, 512:].any()
    ys, xs = np.nonzero(dot_HW)  # a single pixel of the photograph is not lost
    assert (xs.tolist(), ys.tolist()) == ([int(1400.5 * BIG_SCALE)], [int(900.5 * 683 / 1000)])


def test_embedded_photographs_need_no_files(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 30)).save(photos / "a.png")
    config = {"generator": {}, "shard_size": 100, "embed_images": True}
    out = commit(photos, tmp_path / "corpus", config=config)
    shutil.rmtree(photos)
    assert len(Page(write_gallery(out, tmp_path / "page.html")).all("img")) == 1


def test_a_page_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_PHOTOGRAPHS", 2)
    corpus = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    seen = Page(write_gallery(corpus, tmp_path / "page.html"))
    assert len(seen.all("img")) == 2
    assert "photographs 7" in seen.text
    assert "The first 2 photographs are shown." in seen.text


def test_colours_are_stable_and_apart():
    assert mask_colour(1) == mask_colour(1)
    assert len({mask_colour((7 << 20) + index) for index in range(200)}) > 190
    assert all(len(mask_colour(2**62 + index)) == 7 for index in range(50))


def test_reading_a_corpus_for_a_page_loads_neither_torch_nor_ray():
    code = "import sys, pipelines.gallery; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Browser:
    """As much of the WebDriver protocol as these tests need."""

    def __init__(self, port: int, *arguments: str) -> None:
        self._root = f"http://127.0.0.1:{port}/session"
        options = {"args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *arguments]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._post("", {"capabilities": {"alwaysMatch": capabilities}})
        self._root += f"/{session['sessionId']}"

    def _post(self, path: str, content: dict):
        request = Request(
            self._root + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path) -> None:
        self._post("/url", {"url": path.resolve().as_uri()})

    def run(self, script: str):
        return self._post("/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str) -> None:
        for _ in range(100):
            if self.run(f"return {script}"):
                return
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}")

    def point(self, x: float, y: float) -> None:
        move = {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self._post("/actions", {"actions": [mouse]})

    def press(self, key: str) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._post("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"})]

    def close(self) -> None:
        with urlopen(Request(self._root, method="DELETE"), timeout=60):
            pass


@pytest.fixture
def browser(tmp_path):
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("needs chromium and chromedriver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(URLError):
                urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
                break
            time.sleep(0.1)
        browser = Browser(port, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1366,768")
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait()


DRAWN = """
const canvas = document.querySelector('.stage canvas');
return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data);
"""
BOX = (
    "const b = document.querySelector('.stage').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
)
SAID = "return document.querySelector('output').textContent"


@pytest.mark.slow
def test_a_browser_draws_the_masks_and_answers_the_pointer(browser, page):
    browser.open(page)
    browser.wait_for("document.querySelectorAll('canvas').length >= 2")
    drawn_HW4 = np.reshape(browser.run(DRAWN), (30, 40, 4))
    large_HW, small_HW = (rle.decode(Rle((30, 40), mask["counts"])) for mask in Page(page).data[0]["masks"])
    assert np.array_equal(drawn_HW4[:, :, 3] > 0, large_HW | small_HW)
    colour = Page(page).data[0]["masks"][0]["colour"]
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    assert np.abs(drawn_HW4[11, 16, :3] - wanted).max() <= 2  # a canvas keeps colours times alpha
    assert drawn_HW4[11, 16, 3] == round(255 * 0.45)
    assert drawn_HW4[8, 2, 3] == round(255 * 0.9)  # an edge

    left, top, width, height = browser.run(BOX)
    browser.point(left + width * 7 / 40, top + height * 7 / 30)
    said = browser.run(SAID)
    assert said == "predicted IoU 0.875 · stability 0.969 · 36 px (3.0 %) · prompt at 7, 7"
    browser.point(left + width * 16 / 40, top + height * 8 / 30)
    assert "240 px" in browser.run(SAID)
    browser.point(left + width * 30 / 40, top + height * 20 / 30)
    assert browser.run(SAID) == ""

    browser.run("document.querySelector('.stage').focus()")
    browser.press("\ue014")  # arrow to the right
    assert "240 px" in browser.run(SAID)
    browser.press("\ue00c")  # escape
    assert browser.run(SAID) == ""

    browser.run("document.querySelector('.toggle').click()")
    assert browser.run("return document.querySelectorAll('.card.plain').length") == 1
    browser.run("document.getElementById('masks').click()")
    assert browser.run("return document.querySelectorAll('.card:not(.plain)').length") == 0
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.messages() == []

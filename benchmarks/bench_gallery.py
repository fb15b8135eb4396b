"""How long the gallery's page takes to open in Chromium, until its list can be used.

    python -m benchmarks.bench_gallery --photographs 2000 --masks 100

Builds a corpus of synthetic photographs in a temporary folder, with a fixed seed, writes its page, and opens
that page from the disk in a fresh Chromium each time. The list can be used when every photograph in sight has
its name and its picture; its masks are there when each of them has been drawn over it. Both are counted from
the start of the navigation, by the browser's own clock. Then a slider is moved: how long until all that is in
sight is drawn anew. Needs chromium and chromedriver. Prints a table for people and JSON on the last line.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.bench_verify import blob
from maskmill.engine.records import DROP_REASONS
from maskmill.pipelines.config.run import digest_of
from maskmill.pipelines.format.records import ImageRow
from maskmill.pipelines.format.rows import table_from_rows
from maskmill.pipelines.format.run_record import RunRecord
from maskmill.pipelines.format.shards import commit_table, shard_metadata
from maskmill.pipelines.gallery.page import write_gallery
from maskmill.pipelines.writing.close import finish_corpus
from maskmill.pipelines.writing.open import open_run
from tests.support.browser import opened_browser

HEIGHT, WIDTH = 1500, 2250
IN_SIGHT = (
    "[...document.querySelectorAll('#list li')].filter(e => e.getBoundingClientRect().top < innerHeight)"
)
HAS_PICTURE = "t.every(e => e.querySelector('bdi').textContent && e.querySelector('img.here'))"
USABLE = f"(t => t.length && {HAS_PICTURE})({IN_SIGHT})"
DRAWN = f"(t => t.length && t.every(e => e.querySelector('canvas').width !== 300))({IN_SIGHT})"
WATCH = f"""
window.seen = {{}};
const look = () => {{
  if (!seen.usable && {USABLE}) seen.usable = performance.now();
  if (!seen.drawn && {DRAWN}) seen.drawn = performance.now();
  if (!seen.drawn || !seen.usable) setTimeout(look, 5);
}};
addEventListener("DOMContentLoaded", look);
"""
MOVE = """
const done = arguments[0], slider = document.getElementById('stability'), began = performance.now();
slider.value = Number(slider.value) + 10;
slider.dispatchEvent(new Event('input'));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=2000)
    parser.add_argument("--masks", type=int, default=100, help="of each photograph")
    parser.add_argument(
        "--distinct", type=int, default=24, help="photographs that are drawn; rows pick from them"
    )
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = build(Path(folder), given)
        began = time.perf_counter()
        page = write_gallery(out, Path(folder) / "page.html", given.photographs)
        written = time.perf_counter() - began
        files = list((Path(folder) / "page_files").iterdir())
        runs = [opened(page) for _ in range(given.repeat)]
        result: dict[str, Any] = {
            "write_seconds": round(written, 1),
            "page_bytes": page.stat().st_size,
            "files": len(files),
            "files_bytes": sum(path.stat().st_size for path in files),
        }
    for name in ("usable_seconds", "drawn_seconds", "slider_seconds"):
        result[name] = round(statistics.median(run[name] for run in runs), 3)
        result[f"{name}_most"] = round(max(run[name] for run in runs), 3)
    result |= {
        "config": vars(given) | {"height": HEIGHT, "width": WIDTH},
        "versions": {
            "python": platform.python_version(),
            "selenium": metadata.version("selenium"),
            "chromium": runs[0]["chromium"],
        },
        "hardware": {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
    }
    table = Table("", "median", "most", title=f"{given.photographs} photographs", title_justify="left")
    for name in ("usable", "drawn", "slider"):
        table.add_row(f"{name}, s", *(f"{result[f'{name}_seconds{end}']:.3f}" for end in ("", "_most")))
    Console().print(table)
    print(json.dumps(result))


def build(folder: Path, given: argparse.Namespace) -> Path:
    """A closed corpus with embedded photographs: smooth colours and noise, which JPEG does not make small."""
    rng = np.random.default_rng(7)
    photographs = [photograph(rng) for _ in range(given.distinct)]
    pool = [blob(rng) for _ in range(2000)]
    names = [f"{number:08d}.jpg" for number in range(given.photographs)]
    inputs = pa.table({"key": names, "uri": [f"/photos/{name}" for name in names]})
    config = {"embed_images": True, "generator": {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.9}}
    run = open_run(
        folder / "corpus", inputs, RunRecord(config, digest_of(config), "synthetic", "a" * 64, {}), 100
    )
    for shard in run.todo():
        rows = []
        for image in run.plan.images(shard):
            data, sha256 = photographs[image.row % len(photographs)]
            masks = [pool[place] for place in rng.integers(0, len(pool), given.masks)]
            drops = dict.fromkeys(DROP_REASONS, 0) | {"predicted_iou": 900}
            size = {"width": WIDTH, "height": HEIGHT, "orientation": 1, "image_sha256": sha256}
            counted = {"candidates": given.masks + 900, "drops": drops, "image": data, "masks": masks}
            rows.append(ImageRow(image.row, image.image_id, image.key, image.uri, "ok", **size, **counted))
        commit_table(run.out, shard, table_from_rows(rows), shard_metadata(run.record.digest, shard, {}))
    finish_corpus(run.out, run.plan.shards)
    return run.out


def photograph(rng: np.random.Generator) -> tuple[bytes, str]:
    """A JPEG and its SHA-256."""
    import hashlib

    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    noisy_HW3 = np.asarray(coarse, np.int16) + rng.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy_HW3, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue(), hashlib.sha256(file.getvalue()).hexdigest()


def opened(page: Path) -> dict[str, Any]:
    """One opening in a browser that has seen nothing yet."""
    with opened_browser() as browser:
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        browser.open(page.resolve().as_uri())
        browser.wait_for("seen.usable && seen.drawn", 60)
        seen = browser.run("return seen")
        slider = browser.driver.execute_async_script(MOVE)
        return {
            "usable_seconds": seen["usable"] / 1000,
            "drawn_seconds": seen["drawn"] / 1000,
            "slider_seconds": slider / 1000,
            "chromium": browser.driver.capabilities["browserVersion"],
        }


if __name__ == "__main__":
    main()

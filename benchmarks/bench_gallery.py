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
import hashlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.support.gallery_browser import opened
from benchmarks.support.machine import processor, versions
from benchmarks.support.synthetic_corpus import (
    HEIGHT,
    SEED,
    WIDTH,
    blob,
    picked,
    row_with,
    write_corpus,
)
from maskmill.pipelines.format.records import ImageRow, PlannedImage
from maskmill.pipelines.gallery.page import write_gallery


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
        out = build_embedded(Path(folder), given)
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
    for name in ("usable", "drawn", "slider"):
        seconds = [getattr(run, name) for run in runs]
        result[f"{name}_seconds"] = round(statistics.median(seconds), 3)
        result[f"{name}_seconds_most"] = round(max(seconds), 3)
    result |= {
        "config": vars(given) | {"height": HEIGHT, "width": WIDTH},
        "versions": versions(("selenium",)) | {"chromium": runs[0].chromium},
        "hardware": processor(),
    }
    table = Table("", "median", "most", title=f"{given.photographs} photographs", title_justify="left")
    for name in ("usable", "drawn", "slider"):
        table.add_row(f"{name}, s", *(f"{result[f'{name}_seconds{end}']:.3f}" for end in ("", "_most")))
    Console().print(table)
    print(json.dumps(result))


def build_embedded(folder: Path, given: argparse.Namespace) -> Path:
    """A closed corpus with embedded photographs: smooth colours and noise, which JPEG does not make small."""
    rng = np.random.default_rng(SEED)
    photographs = [photograph(rng) for _ in range(given.distinct)]
    pool = [blob(rng) for _ in range(2000)]
    config = {"embed_images": True, "generator": {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.9}}

    def row_of(image: PlannedImage) -> ImageRow:
        data, sha256 = photographs[image.row % len(photographs)]
        return row_with(image, picked(pool, given.masks, rng), sha256, data)

    return write_corpus(folder, given.photographs, config, 100, row_of)


def photograph(rng: np.random.Generator) -> tuple[bytes, str]:
    """A JPEG and its SHA-256."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    noisy_HW3 = np.asarray(coarse, np.int16) + rng.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy_HW3, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue(), hashlib.sha256(file.getvalue()).hexdigest()


if __name__ == "__main__":
    main()

"""A page to look at masks: one HTML file and a folder of what it loads, without a server or a network.

The page holds no photograph, so that it opens at once, however many there are: it lists what is in sight and
asks for the rest as it is scrolled to (`pipelines.gallery.files`). The alternative, all of them inside one
file, is handier to send and was slow to open from a few hundred photographs on. The same page serves
`maskmill view`, where a server makes the side files on demand.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.compute as pc

from ..corpus.reader import Corpus
from ..errors import UsageError
from ..format.layout import CORPUS, shard_path
from ..format.parquet_files import open_parquet, reading
from ..machine import usable_cpus
from ..pages.template import definitions, embedded_json, fill, part, policy, text
from ..storage import atomic
from ..storage.json_files import read_json
from ..storage.paths import check_page, place
from .files import BLOCK, NAME, UNITS, GalleryFiles
from .row_index import Kind

PHOTOGRAPHS = 2000
"""What a written page shows unless told otherwise."""

MOST_THREADS = 16
"""Photographs that are decoded at once: each is held whole."""

_FROM_DISK = "'self' file:"
_HERE = Path(__file__).parent


def write_gallery(
    corpus_path: str | Path,
    out_html: str | Path,
    photographs: int = PHOTOGRAPHS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    moved: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the page of a corpus, complete or still in the making; returns its path.

    Beside `page.html` comes the folder `page_files`, and takes the place of an older one. Shows the first
    `photographs` that are ok or empty and as many rejected images, in plan order; the totals count all.
    `progress` is told how many photographs of how many are done, `note` of images that could not be had;
    `moved` is as `Corpus` has it. Raises CorpusError where the corpus cannot be read, UsageError where
    `out_html` is a folder or cannot be written, or where the folder beside it has something else in it.
    """
    out, corpus = place(out_html), Corpus(corpus_path, moved)
    check_page(out, corpus.path)
    folder = out.with_name(f"{out.stem}_files")
    _refuse_foreign(folder)
    files = GalleryFiles(corpus, photographs)
    html = gallery_page(corpus, files, quote(os.fsencode(folder.name)), _FROM_DISK)
    temporary = out.with_name(f".maskmill-{uuid.uuid4().hex}.tmp")
    with atomic.failing_as(UsageError, out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            _write_files(files, temporary, progress)
            _refuse_foreign(folder)  # which may have been filled meanwhile
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        atomic.replace(out, html.encode("utf-8", "backslashreplace"))
    if files.problems:
        many, shown = len(files.problems), files.count("photographs")
        note(f"{many} of {shown} images cannot be shown; the first: {files.problems[min(files.problems)]}")
    return out


def gallery_page(corpus: Corpus, files: GalleryFiles, address: str, scripts: str) -> str:
    """The page as HTML; `address` is where its side files are, `scripts` what its policy calls that place."""
    totals = _totals(corpus)
    generator = corpus.run.config.get("generator", {})
    least = {
        name: int(UNITS * min(max(generator.get(threshold) or 0, 0), 1) + 1e-6)
        for name, threshold in (
            ("predicted_iou", "pred_iou_thresh"),
            ("stability_score", "stability_score_thresh"),
        )
    }
    index = {
        "photographs": files.count("photographs"),
        "rejected": files.count("rejected"),
        "block": BLOCK,
        "least": least,
    }
    script = f"\n{part('masks.js')}\n{part('gallery.js', _HERE)}\n"
    parts = {
        "policy": policy(script, scripts, pictures=f"data: {scripts}"),
        "files": text(address),
        "name": text(corpus.path.name or str(corpus.path)),
        "style": part("look.css") + part("gallery.css", _HERE),
        "totals": definitions(_shown(totals)),
        "settings": definitions(_settings(corpus)),
        "notes": _notes(corpus, files),
        "classes": _classes(totals["rejects"]),
        "index": embedded_json(index),
        "script": script,
    }
    return fill(part("gallery.html", _HERE), parts)


def _refuse_foreign(folder: Path) -> None:
    """Raise UsageError unless the folder may be replaced: it is missing or holds a gallery's files alone."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder for the page's files, or nothing; got something else")
    foreign = next((path.name for path in folder.iterdir() if not NAME.fullmatch(path.name)), None)
    if foreign is not None:
        raise UsageError(f"{folder}: it has files that no gallery wrote ({foreign}); choose another --out")


def _write_files(files: GalleryFiles, folder: Path, progress: Callable[[int, int], None]) -> None:
    def write(name: str) -> None:
        data = files.content(name)
        if data is not None:
            (folder / name).write_bytes(data)

    def write_photograph(number: int) -> None:
        for name in files.of_photograph(number):
            write(name)

    for name in [*files.blocks("photographs"), *files.blocks("rejected")]:
        write(name)
    total = files.count("photographs")
    threads = min(usable_cpus(), MOST_THREADS)
    ahead: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in range(total):
                ahead.append(pool.submit(write_photograph, number))
                if len(ahead) > 2 * threads:
                    ahead.popleft().result()
                progress(number + 1 - len(ahead), total)
            while ahead:
                ahead.popleft().result()
                progress(total - len(ahead), total)
        finally:
            pool.shutdown(cancel_futures=True)


def _totals(corpus: Corpus) -> dict[str, Any]:
    """Of `corpus.json`; of the shards themselves while there is none."""
    if corpus.complete:
        return dict(read_json(corpus.path / CORPUS)["totals"])
    counts: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    for shard in corpus.shards:
        path = shard_path(corpus.path, shard)
        with open_parquet(path) as file, reading(path):
            for group in range(file.num_row_groups):
                table = file.read_row_group(
                    group, columns=["status", "error.class", "annotations.list.element.id"]
                )
                counts.update(table["status"].to_pylist())
                counts["masks"] += pc.sum(pc.list_value_length(table["annotations"])).as_py() or 0
                rejects.update(error["class"] for error in table["error"].to_pylist() if error)
    statuses = {status: counts[status] for status in ("ok", "empty", "rejected")}
    return {"images": sum(statuses.values()), **statuses, "masks": counts["masks"], "rejects": dict(rejects)}


def _shown(totals: Mapping[str, Any]) -> dict[str, str]:
    used = totals["ok"] + totals["empty"]
    shown = {name: f"{totals[name]:,}" for name in ("images", "ok", "empty", "rejected", "masks")}
    return shown | {"masks per image": f"{totals['masks'] / used:.1f}" if used else "–"}


def _settings(corpus: Corpus) -> dict[str, str]:
    config = corpus.run.config
    model, generator = config.get("model", {}), config.get("generator", {})
    values = {
        "model": corpus.run.model_name,
        "weights": corpus.run.weights_sha256[:12],
        "precision": model.get("precision"),
        "predicted IoU": _at_least(generator.get("pred_iou_thresh")),
        "stability": _at_least(generator.get("stability_score_thresh")),
        "points per side": generator.get("points_per_side"),
        "crop layers": generator.get("crop_n_layers"),
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _at_least(threshold: float | None) -> str | None:
    return None if threshold is None else f"≥ {threshold}"


def _notes(corpus: Corpus, files: GalleryFiles) -> str:
    notes = []
    if not corpus.complete:
        notes.append(
            "This corpus is still being made: the page shows what was committed when it was written."
        )
    words: dict[Kind, str] = {"photographs": "images", "rejected": "rejected images"}
    for kind, what in words.items():
        if files.count(kind) < files.total(kind):
            notes.append(f"The first {files.count(kind):,} {what} are shown.")
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _classes(rejects: Mapping[str, int]) -> str:
    ordered = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    return "".join(f"<li>{text(name)}<b>{count:,}</b></li>" for name, count in ordered)

"""A page to look at masks: one HTML file that needs no server, no network and nothing beside it.

The photographs travel inside the page as JPEG, their masks as COCO run lengths on the grid of that JPEG, and
the page's script draws them. The alternative, a picture of the masks and a second one that tells the pointer
which mask it is on, is larger and reads its numbers back from a canvas, which browsers that guard against
fingerprinting answer with noise. As in SA-1B's own pictures the largest masks lie at the bottom.

Nothing of the corpus is trusted: names and messages are escaped, control characters in them written out, the
masks' JSON cannot end its element, and a content security policy lets the page run its own script and nothing
else, and fetch nothing at all. A photograph that has vanished or changed is a card that says so.

The page is held in memory and read by a browser in one piece, hence the limits on what it shows.
"""

from __future__ import annotations

import base64
import colorsys
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from engine import rle
from pipelines import storage
from pipelines.corpus import Corpus
from pipelines.decode import decode_image
from pipelines.errors import InputRejected, UsageError, visible
from pipelines.reader import read_input

LONGEST_SIDE = 1024
MAX_PHOTOGRAPHS = 200
MAX_REJECTED = 1000

_JPEG_QUALITY = 85
_TEMPLATE = "gallery_page.html"
_BUTTONS = (
    '<div class="buttons"><button type="button" class="toggle" aria-pressed="true">Masks</button>'
    '<button type="button" class="enlarge" aria-pressed="false">Large</button></div>'
)
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def write_gallery(corpus_path: str | Path, out_html: str | Path) -> Path:
    """Write the page of a corpus, complete or still in the making; returns its path.

    Shows the first `MAX_PHOTOGRAPHS` photographs that are ok or empty and the first `MAX_REJECTED` rejected
    inputs, in plan order; the totals count every row. Raises CorpusError where the corpus cannot be read,
    UsageError where `out_html` is a folder or cannot be written.
    """
    out = Path(out_html)
    if out.is_dir():
        raise UsageError(f"{out}: expected a file for the page, this is a folder")
    page = _page(Corpus(corpus_path)).encode("utf-8", "backslashreplace")
    with storage.failing_as(UsageError, out):
        storage.replace(out, lambda file: _write(file, page))
    return out


def mask_colour(annotation_id: int) -> str:
    """The mask's colour as #rrggbb: looks random, is always the same; neighbouring ids are far apart.

    Hue, saturation and brightness are the fractions of the id times three irrational numbers, in 64 bits.
    """
    hue, saturation, value = (
        annotation_id * factor % 2**64 / 2**64
        for factor in (0x9E3779B97F4A7C15, 0xC13FA9A902A6328F, 0x91E10DA5C79E7B1D)
    )
    red_green_blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * saturation, 0.8 + 0.2 * value)
    return "#" + "".join(f"{round(255 * part):02x}" for part in red_green_blue)


def _write(file: BinaryIO, page: bytes) -> None:
    file.write(page)


def _page(corpus: Corpus) -> str:
    counts: Counter[str] = Counter()
    cards: list[str] = []
    rejected: list[str] = []
    for row in corpus.rows():
        counts.update({"images": 1, row["status"]: 1, "masks": len(row["annotations"])})
        if row["status"] == "rejected":
            if len(rejected) < MAX_REJECTED:
                rejected.append(_rejected(row))
        elif len(cards) < MAX_PHOTOGRAPHS:
            cards.append(_card(corpus, row))
    template = resources.files("pipelines").joinpath(_TEMPLATE).read_text("utf-8")
    parts = {
        "script_hash": _script_hash(template),
        "name": _text(corpus.path.resolve().name),
        "totals": _totals(counts),
        "settings": _settings(corpus),
        "notes": _notes(corpus, counts, len(cards)),
        "cards": "\n".join(cards),
        "rejected": _rejected_section(rejected, counts["rejected"]),
    }
    return _PLACE.sub(lambda place: parts[place[1]], template)  # one pass: a part's own braces stay


def _script_hash(template: str) -> str:
    """What the policy knows the page's one script by."""
    script = _SCRIPT.search(template)
    assert script is not None
    return base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()


def _totals(counts: Mapping[str, int]) -> str:
    used = counts["ok"] + counts["empty"]
    values = {
        "photographs": f"{counts['images']:,}",
        "ok": f"{counts['ok']:,}",
        "empty": f"{counts['empty']:,}",
        "rejected": f"{counts['rejected']:,}",
        "masks": f"{counts['masks']:,}",
        "masks per image": f"{counts['masks'] / used:.1f}" if used else "–",
    }
    return _definitions(values)


def _settings(corpus: Corpus) -> str:
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
    return _definitions({name: str(value) for name, value in values.items() if value is not None})


def _at_least(threshold: float | None) -> str | None:
    return None if threshold is None else f"≥ {threshold}"


def _definitions(values: Mapping[str, str]) -> str:
    return "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(text)}</dd></div>" for name, text in values.items()
    )


def _notes(corpus: Corpus, counts: Mapping[str, int], shown: int) -> str:
    notes = []
    if not corpus.complete:
        notes.append(
            "This corpus is still being made: the page shows what was committed when it was written."
        )
    if shown < counts["ok"] + counts["empty"]:
        notes.append(f"The first {shown:,} photographs are shown.")
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _card(corpus: Corpus, row: Mapping[str, Any]) -> str:
    """One photograph, or why it cannot be shown, and its caption."""
    buttons = ""
    try:
        stage = _stage(corpus, row, _photograph(row))
        buttons = _BUTTONS if row["annotations"] else ""
    except InputRejected as error:
        stage = _placeholder(error.message)
    except OSError as error:
        stage = _placeholder(error.strerror or type(error).__name__)
    ratio = row["width"] / row["height"]
    facts = " · ".join(f"<span>{fact}</span>" for fact in _facts(row))
    return (
        f'<li class="card {_text(row["status"])}" style="--ratio:{ratio:.4f}"><figure>{stage}<figcaption>'
        f'<div><h2 title="{_text(row["key"])}">{_name(row)}</h2><p>{facts}</p></div>'
        f"{buttons}</figcaption></figure></li>"
    )


def _facts(row: Mapping[str, Any]) -> list[str]:
    size, masks = f"{row['width']} × {row['height']}", row["annotations"]
    if not masks:
        return [size, f"no mask among {row['candidates']:,} candidates"]
    mean = np.mean([mask["predicted_iou"] for mask in masks])
    return [size, f"{len(masks)} mask{'s' * (len(masks) != 1)}", f"mean predicted IoU {mean:.3f}"]


def _text(text: str) -> str:
    """A text of the corpus as the page may hold it: without markup, control characters written out."""
    return escape(visible(text))


def _name(row: Mapping[str, Any]) -> str:
    """The key, its folders in a span of their own; kept apart from the direction of the text around it."""
    folder, slash, name = row["key"].rpartition("/")
    return f"<bdi><span>{_text(folder + slash)}</span>{_text(name)}</bdi>"


def _stage(corpus: Corpus, row: Mapping[str, Any], pixels_HW3: npt.NDArray[np.uint8]) -> str:
    """The photograph, and the masks as JSON for the page's script."""
    height, width = pixels_HW3.shape[:2]
    alt = _text(f"photograph {row['file_name']}")
    picture = (
        f'<img src="data:image/jpeg;base64,{_jpeg(pixels_HW3)}" '
        f'width="{width}" height="{height}" alt="{alt}">'
    )
    if not row["annotations"]:
        return f'<div class="stage">{picture}</div>'
    label = _text(f"Masks of {row['file_name']}; left and right arrow keys go from mask to mask")
    return (
        f'<div class="stage" tabindex="0" role="group" aria-label="{label}">{picture}<output></output>'
        f'<script type="application/json">{_masks(corpus, row, (height, width))}</script></div>'
    )


def _placeholder(reason: str) -> str:
    return f'<div class="stage gone"><p>The photograph cannot be shown: {_text(reason)}.</p></div>'


def _photograph(row: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """The upright pixels, at most `LONGEST_SIDE` long; InputRejected or OSError where they cannot be had."""
    data = row["image"]["bytes"] if row["image"] else read_input(row["uri"])
    if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
        raise InputRejected("read", "Changed", "the file has changed since its masks were made")
    pixels_HW3 = decode_image(data, 2 * row["width"] * row["height"]).pixels_HW3  # Pillow warns from half on
    height, width = pixels_HW3.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return pixels_HW3
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels_HW3, size, interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(pixels_HW3: npt.NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True, progressive=True)
    return base64.b64encode(file.getvalue()).decode()


def _masks(corpus: Corpus, row: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The masks as JSON, largest first; `size` is (height, width) of the picture they are drawn on."""
    scale = size[1] / row["width"]
    masks = [
        {
            "colour": mask_colour(annotation["id"]),
            "predicted_iou": round(annotation["predicted_iou"], 3),
            "stability_score": round(annotation["stability_score"], 3),
            "area": annotation["area"],
            "points": [[round(value, 1) for value in point] for point in annotation["point_coords"]],
            "counts": _scaled_counts(corpus, row, annotation, size),
        }
        for annotation in sorted(row["annotations"], key=lambda annotation: -annotation["area"])
    ]
    content = {
        "height": size[0],
        "width": size[1],
        "scale": round(scale, 6),
        "pixels": row["width"] * row["height"],
        "masks": masks,
    }
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scaled_counts(
    corpus: Corpus, row: Mapping[str, Any], annotation: Mapping[str, Any], size: tuple[int, int]
) -> str:
    """A mask's run lengths on a smaller grid: the cells that it covers by half, else those it covers most.

    One mask is decoded at a time: all those of a large photograph together would need gigabytes.
    """
    mask_HW = corpus.masks({**row, "annotations": [annotation]})[:, :, 0]
    if mask_HW.shape == size:
        return str(annotation["segmentation"]["counts"])
    cover_HW = cv2.resize(mask_HW.astype(np.uint8) * 255, size[::-1], interpolation=cv2.INTER_AREA)
    return rle.encode(cover_HW >= np.clip(cover_HW.max(), 1, 128)).counts


def _rejected(row: Mapping[str, Any]) -> str:
    error = row["error"]
    return (
        f'<tr><th scope="row">{_name(row)}</th><td><code>{_text(error["class"])}</code></td>'
        f"<td>{_text(error['message'])} <small>({_text(error['stage'])})</small></td></tr>"
    )


def _rejected_section(rows: list[str], count: int) -> str:
    if not rows:
        return ""
    more = f'<p class="note">The first {len(rows):,} are listed.</p>' if len(rows) < count else ""
    return (
        f'<section><h2 id="rejected">Rejected <small>{count:,}</small></h2><table aria-labelledby="rejected">'
        "<thead><tr><th>input</th><th>class</th><th>message</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{more}</section>"
    )

"""What the gallery's page asks for: its side files, by name, made of a corpus's rows.

    photographs-000000.js   a block of photographs: name, size, and three bytes for each mask
    rejected-000000.js      a block of rejected inputs
    masks-000000.js         the masks of one photograph as run lengths, on the grid of its picture
    photo-000000.jpg        its picture, upright, at most `LONGEST_SIDE` long
    thumb-000000.jpg        the same, small

They are scripts and pictures because a page that was opened from a disk may load those, and nothing else. A
block's three bytes are a mask's predicted IoU, stability and relative size (root of mask area over image
area) in steps of 1/200, rounded down, so that a slider that stands at such a step filters exactly, and a page
counts the masks of thousands of photographs without loading them.

Masks come to the picture's grid from their runs (the picture's pixel has what lies under its middle), at the
cost of their outlines: decoding each one at the photograph's size would take a second a photograph.
"""

from __future__ import annotations

import base64
import colorsys
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...engine.codes import single
from ...engine.codes.runs import Runs
from ..corpus.masks import code_of
from ..corpus.reader import Corpus
from ..decoding.image import decode_image
from ..errors import CorpusError, InputRejected
from ..pages.template import packed_json
from ..text import visible
from .row_index import Kind, RowIndex

BLOCK = 100
UNITS = 200
LONGEST_SIDE = 1024
THUMB_SIDE = 420
KEPT_PICTURES = 64

NAME = re.compile(r"(photographs|rejected|masks)-(\d{6,9})\.js|(photo|thumb)-(\d{6,9})\.jpg")
_QUALITY = {"photo": 85, "thumb": 78}
_LISTED = ("image_id", "key", "status", "width", "height", "candidates")
_SCORES = tuple(f"annotations.list.element.{name}" for name in ("area", "predicted_iou", "stability_score"))


class GalleryFiles:
    """The side files of a corpus, at most `limit` photographs and as many rejected inputs; for threads.

    Raises CorpusError where the corpus, or a row that is asked for, is damaged.

    Attributes:
        problems: why an image could not be shown, by its number, for those that were asked for.

    """

    def __init__(self, corpus: Corpus, limit: int | None = None) -> None:
        self.problems: dict[int, str] = {}
        self._originals = corpus.originals
        self._index = RowIndex(corpus)
        self._limit = limit
        self._pictures: OrderedDict[int, dict[str, bytes] | str] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, kind: Kind) -> int:
        """How many the page shows."""
        there = self._index.count(kind)
        return there if self._limit is None else min(there, self._limit)

    def total(self, kind: Kind) -> int:
        """How many the corpus has."""
        return self._index.count(kind)

    def blocks(self, kind: Kind) -> list[str]:
        """The names of the blocks that list them."""
        return [f"{kind}-{number:06d}.js" for number in range(-(-self.count(kind) // BLOCK))]

    @staticmethod
    def of_photograph(number: int) -> list[str]:
        """The names of a photograph's own files."""
        return [f"masks-{number:06d}.js", f"photo-{number:06d}.jpg", f"thumb-{number:06d}.jpg"]

    def content(self, name: str) -> bytes | None:
        """A file's bytes; None where there is no such file, or no picture to be had."""
        match = NAME.fullmatch(name)
        if match is None:
            return None
        what, number = match[1] or match[3], int(match[2] or match[4])
        try:
            if what in ("photo", "thumb"):
                pictures = self._pictures_of(number)
                return None if isinstance(pictures, str) else pictures[what]
            content = self._masks(number) if what == "masks" else self._block(match[1], number)
        except IndexError:
            return None
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise CorpusError(f"{name}: a row lacks a value: {error}; maskmill verify says which") from None
        return f"maskmill({packed_json(name)},{packed_json(content)});\n".encode("ascii")

    def _block(self, kind: Any, number: int) -> list[list[Any]]:
        start, stop = number * BLOCK, min((number + 1) * BLOCK, self.count(kind))
        if kind == "rejected":
            rows = self._index.rows(kind, start, stop, ("key", "status", "error"))
            return [[visible(text) for text in (row["key"], *_reason(row["error"]))] for row in rows]
        rows = self._index.rows(kind, start, stop, (*_LISTED, *_SCORES))
        return [
            [
                visible(row["key"]),
                str(row["image_id"]),
                row["width"],
                row["height"],
                row["candidates"],
                scores(row),
            ]
            for row in rows
        ]

    def _masks(self, number: int) -> dict[str, Any]:
        row = self._photograph(number)
        pictures = self._pictures_of(number, row)
        height, width = fitted(row["height"], row["width"], LONGEST_SIDE)
        masks = [
            [
                mask_colour(annotation["id"]),
                round(annotation["predicted_iou"], 3),
                round(annotation["stability_score"], 3),
                annotation["area"],
                [[round(value, 1) for value in point] for point in annotation["point_coords"]],
                _counts(row, annotation, (height, width)),
            ]
            for annotation in largest_first(row)
        ]
        return {
            "height": height,
            "width": width,
            "scale": round(width / row["width"], 6),
            "pixels": row["width"] * row["height"],
            "problem": pictures if isinstance(pictures, str) else None,
            "masks": masks,
        }

    def _photograph(self, number: int) -> dict[str, Any]:
        if number >= self.count("photographs"):
            raise IndexError(number)
        return self._index.row("photographs", number)

    def _pictures_of(self, number: int, row: Mapping[str, Any] | None = None) -> dict[str, bytes] | str:
        """The JPEGs by name, or why there are none."""
        with self._lock:
            if number in self._pictures:
                return self._pictures[number]
        made = self._made_pictures(row or self._photograph(number))
        with self._lock:
            self._pictures[number] = made
            if isinstance(made, str):
                self.problems[number] = made
            if len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)
        return made

    def _made_pictures(self, row: Mapping[str, Any]) -> dict[str, bytes] | str:
        most_pixels = 2 * row["width"] * row["height"]  # Pillow warns from half on
        try:
            pixels_HW3 = decode_image(self._originals.read(row), most_pixels).pixels_HW3
        except InputRejected as error:
            return error.message
        except CorpusError as error:
            return visible(str(error))
        photo_HW3 = _resized(pixels_HW3, LONGEST_SIDE)
        return {"photo": _jpeg(photo_HW3, "photo"), "thumb": _jpeg(_resized(photo_HW3, THUMB_SIDE), "thumb")}


def scores(row: Mapping[str, Any]) -> str:
    """Three bytes for each mask, the largest first, in base64."""
    pixels = row["width"] * row["height"]
    values = [
        (annotation["predicted_iou"], annotation["stability_score"], (annotation["area"] / pixels) ** 0.5)
        for annotation in largest_first(row)
    ]
    # float32 has 0.88 as 0.87999998: a millionth is given back before rounding down
    steps_M3 = np.floor(np.reshape(values, (-1, 3)) * UNITS + UNITS * 1e-6)
    return base64.b64encode(np.clip(steps_M3, 0, 255).astype(np.uint8).tobytes()).decode()


def largest_first(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The masks in the order in which they are drawn."""
    return sorted(row["annotations"], key=lambda annotation: -int(annotation["area"]))


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


def fitted(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) of a picture of at most `longest`, never enlarged."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def sampled(mask: Runs, size: tuple[int, int]) -> Runs:
    """The mask on a smaller grid: what lies under the middle of each of its cells; never nothing at all."""
    height, width = mask.size
    x_of_cell = (2 * np.arange(size[1]) + 1) * width // (2 * size[1])
    y_of_cell = (2 * np.arange(size[0]) + 1) * height // (2 * size[0])
    cell_of_x = np.full(width, -1)
    cell_of_x[x_of_cell] = np.arange(size[1])
    column_R, top_R = np.divmod(mask.start_R, height)
    cell_R = cell_of_x[column_R]
    first_R = np.searchsorted(y_of_cell, top_R)
    stop_R = np.searchsorted(y_of_cell, top_R + mask.stop_R - mask.start_R)
    met = (cell_R >= 0) & (first_R < stop_R)
    if not met.any() and len(mask.start_R):
        x, y = divmod(int(mask.start_R[len(mask.start_R) // 2]), height)
        cell_x, cell_y = (2 * x + 1) * size[1] // (2 * width), (2 * y + 1) * size[0] // (2 * height)
        cell = np.array([cell_x * size[0] + cell_y])
        return Runs(cell, cell + 1, size)
    return Runs((cell_R * size[0] + first_R)[met], (cell_R * size[0] + stop_R)[met], size)


def _counts(row: Mapping[str, Any], annotation: Mapping[str, Any], size: tuple[int, int]) -> str:
    code = code_of(row, "a mask", annotation)
    try:
        return single.encode_runs(sampled(single.decode_runs(code), size)).counts
    except ValueError as error:
        raise CorpusError(f"{row['key']}: a mask's code is damaged: {error}") from None


def _reason(error: Mapping[str, str]) -> tuple[str, str, str]:
    return error["class"], error["stage"], error["message"]


def _resized(pixels_HW3: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.uint8]:
    size = fitted(pixels_HW3.shape[0], pixels_HW3.shape[1], longest)
    if size == pixels_HW3.shape[:2]:
        return pixels_HW3
    return np.asarray(Image.fromarray(pixels_HW3).resize(size[::-1], Image.Resampling.HAMMING))


def _jpeg(pixels_HW3: npt.NDArray[np.uint8], name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", quality=_QUALITY[name], optimize=True)
    return file.getvalue()

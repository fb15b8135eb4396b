"""How far two corpora of the same images agree: bf16 and fp32, two releases, two machines.

Masks have no names that last, so each is held against the most similar one of the other corpus. Both
directions count: a corpus with more masks finds partners for all of the other's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from rich.table import Table

from ..corpus.reader import Corpus
from ..errors import CorpusError, UsageError
from ..labelled.image import checked_rle
from ..text import counted

LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
"""IoUs from which on a mask counts as a partner."""

_COLUMNS = ("height", "width", "annotations.segmentation", "annotations.predicted_iou")


def agreement(ours: Path, theirs: Path) -> dict[str, Any]:
    """Shares of masks with a partner at each IoU in each direction, mean IoU with the best one, and counts.

    `predicted_iou_difference` is the mean absolute one between partners at IoU 0.5 or more. Images that only
    one of the corpora has, or that are rejected in one of them, are counted and left out.
    Raises CorpusError for what is no corpus or is damaged; UsageError where they share no image.
    """
    other = {row["key"]: row for row in Corpus(theirs).rows(columns=_COLUMNS) if row["status"] != "rejected"}
    best: defaultdict[str, list[float]] = defaultdict(list)
    differences: list[float] = []
    images = left_out = 0
    for row in Corpus(ours).rows(columns=_COLUMNS):
        partner = other.pop(row["key"], None)
        if partner is None or row["status"] == "rejected":
            left_out += 1
            continue
        images += 1
        iou_AB = _iou(_codes(ours, row, row), _codes(theirs, partner, row))
        best["ours"] += iou_AB.max(1, initial=0).tolist()
        best["theirs"] += iou_AB.max(0, initial=0).tolist()
        for a, annotation in enumerate(row["annotations"]):
            if iou_AB.shape[1] and iou_AB[a].max() >= LEVELS[0]:
                match = partner["annotations"][int(iou_AB[a].argmax())]
                differences.append(abs(annotation["predicted_iou"] - match["predicted_iou"]))
    if not images:
        raise UsageError(f"{ours} and {theirs} have no image in common (by key)")
    return {
        "images": images,
        "images_left_out": left_out + len(other),
        "masks": {side: len(best[side]) for side in ("ours", "theirs")},
        "mean_best_iou": {side: _mean(best[side]) for side in ("ours", "theirs")},
        "matched": {
            str(level): {side: _mean([iou >= level for iou in best[side]]) for side in ("ours", "theirs")}
            for level in LEVELS
        },
        "predicted_iou_difference": _mean(differences),
    }


def score_corpora(ours: Path, theirs: Path) -> tuple[dict[str, Any], list[Table]]:
    """How far two corpora agree, as JSON and as a table; raises what `agreement` raises."""
    result = agreement(ours, theirs)
    sides = ("ours", "theirs")
    table = Table("agreement", str(ours), str(theirs))
    table.add_row("masks", *(str(result["masks"][side]) for side in sides))
    for level, of in result["matched"].items():
        table.add_row(f"partner at IoU {level}", *(_share(of[side]) for side in sides))
    table.add_row("mean best IoU", *(_share(result["mean_best_iou"][side]) for side in sides))
    difference = _share(result["predicted_iou_difference"])
    table.caption = (
        f"{counted(result['images'], 'image')}, {result['images_left_out']} left out; "
        f"predicted IoU of partners differs by {difference}"
    )
    return result, [table]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _codes(corpus: Path, row: Mapping[str, Any], of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's masks, as pycocotools takes them; of the size of the other corpus's row."""
    try:
        codes = [annotation["segmentation"] for annotation in row["annotations"]]
        size = (of["height"], of["width"])
        found = [checked_rle(code["size"], code["counts"], size) for code in codes]
    except ValueError as error:
        raise CorpusError(f"{corpus}: {row['key']}: {error}") from None
    return [code or {"size": list(size), "counts": _nothing(size)} for code in found]


def _nothing(size: tuple[int, int]) -> bytes:
    return bytes(mask_utils.encode(np.zeros(size, np.uint8, order="F"))["counts"])


def _iou(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    return np.asarray(mask_utils.iou(list(ours), list(theirs), [0] * len(theirs)))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None

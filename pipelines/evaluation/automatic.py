"""What a whole grid of prompts finds of the masks that people drew, by COCO's own evaluation.

`ar_10`, `ar_100`, `ar_1000`: average recall, over IoU thresholds 0.5 to 0.95, of so many masks of highest
predicted IoU an image; also by the size of what was to be found, `ar_100_small` (COCO's: small below 32²
pixels, large above 96²). `precision`: the share of the masks that overlap a drawn one at IoU 0.5 or more,
which says something only of images in which everything is labelled.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ...engine import MaskGenerator
from ...engine.records import MaskRecord
from ..labelled.image import LabelledImage
from .interactive import Evaluation

MAX_MASKS = (10, 100, 1000)

Masks = Sequence[dict[str, Any]]
"""Of one image: COCO RLEs; those that were found carry a `score`."""


def evaluate_automatic(generator: MaskGenerator, images: Sequence[LabelledImage]) -> Evaluation:
    """Score what the generator finds by itself against all masks of each image."""
    pairs: defaultdict[str, list[tuple[Masks, Masks]]] = defaultdict(list)
    for image in images:
        found = [_scored(record) for record in generator.generate(image.pixels())]
        pairs[image.source].append((image.rles, found))
    everything = [pair for source in pairs.values() for pair in source]
    return Evaluation(
        automatic_scores(everything), {source: automatic_scores(own) for source, own in sorted(pairs.items())}
    )


def automatic_scores(pairs: Sequence[tuple[Masks, Masks]]) -> dict[str, float]:
    """Recall, precision and masks an image, from what is drawn and what was found in each image.

    A recall of sizes that do not occur is left out.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it tells how long each part takes
        truth, results = _as_coco([drawn for drawn, _ in pairs]), _as_coco([found for _, found in pairs])
        evaluation = COCOeval(truth, results, "segm")
        evaluation.params.maxDets = list(MAX_MASKS)
        evaluation.evaluate()
        evaluation.accumulate()
    recall_TAM: NDArray[np.float64] = evaluation.eval["recall"][:, 0]  # −1 where there is nothing to recall
    wanted = {f"ar_{most}": recall_TAM[:, 0, m] for m, most in enumerate(MAX_MASKS)}
    for a, size in enumerate(evaluation.params.areaRngLbl[1:], start=1):
        wanted |= {f"ar_{most}_{size}": recall_TAM[:, a, m] for m, most in enumerate(MAX_MASKS)}
    recalls = {name: float(recall_T.mean()) for name, recall_T in wanted.items() if (recall_T >= 0).all()}
    covered = [iou >= 0.5 for drawn, found in pairs if found for iou in _best_iou(found, drawn)]
    precision = {"precision": float(np.mean(covered))} if covered else {}
    return recalls | precision | {"masks_per_image": len(covered) / len(pairs)}


def _best_iou(found: Masks, drawn: Masks) -> NDArray[np.float64]:
    return np.asarray(mask_utils.iou(list(found), list(drawn), [0] * len(drawn)).max(1))


def _scored(record: MaskRecord) -> dict[str, Any]:
    rle = record.segmentation
    return {"size": list(rle.size), "counts": rle.counts.encode(), "score": record.predicted_iou}


def _as_coco(images: Sequence[Masks]) -> COCO:
    """The masks as if from a file of COCO's, of one category, images and masks numbered from 1."""
    annotations = [
        {"image_id": image, "category_id": 1, "iscrowd": 0, "score": rle.get("score", 1.0)}
        | {
            "segmentation": {"size": rle["size"], "counts": rle["counts"]},
            "area": float(mask_utils.area(rle)),
        }
        for image, masks in enumerate(images, start=1)
        for rle in masks
    ]
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image} | dict(zip(("height", "width"), masks[0]["size"] if masks else (0, 0), strict=True))
            for image, masks in enumerate(images, start=1)
        ],
        "annotations": [{"id": number} | one for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": 1}],
    }
    coco.createIndex()
    return coco

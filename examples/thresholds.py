"""Where to put a model's thresholds: masks an image, precision and recall on labelled validation images.

    python examples/thresholds.py FOLDER thresholds.png

Runs the generator once for each stability threshold with the predicted IoU's as low as it goes here; a higher
one is applied afterwards, which gives the same masks as a run at that threshold
(`maskmill.pipelines.corpus.views` says why, and why this holds for no other filter). Precision says something
only of images in which everything is labelled, so by default only sources with complete labels are used.
Prints a table, and draws it as a plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import typer

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.engine.records import MaskRecord
from maskmill.model import load_sam
from maskmill.pipelines.evaluation.automatic import automatic_scores
from maskmill.pipelines.labelled.load import read_labelled

mpl.use("agg")

PREDICTED_IOU = [round(step, 2) for step in np.arange(0.30, 0.71, 0.05).tolist()]
STABILITY = [0.5, 0.7, 0.8]


def main(
    data: Path,
    picture: Path,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of nano; default: the bundled ones.")
    ] = None,
    source: Annotated[list[str], typer.Option()] = ["bsds500", "coco_panoptic"],  # noqa: B006
) -> None:
    """Print scores for each pair of thresholds, and draw precision over masks an image."""
    images = [image for image in read_labelled(data) if image.validates and image.source in source]
    sam = load_sam("nano", checkpoint)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    print(f"{len(images)} images\n")
    print("| stability ≥ | predicted IoU > | masks an image | precision | recall, AR@1000 |")
    print("|--:|--:|--:|--:|--:|")
    for stability in STABILITY:
        generator = MaskGenerator(
            sam, GeneratorConfig(pred_iou_thresh=PREDICTED_IOU[0], stability_score_thresh=stability)
        )
        found = [generator.generate(image.pixels()) for image in images]
        curve = []
        for threshold in PREDICTED_IOU:
            pairs = [
                (image.rles, above(threshold, masks)) for image, masks in zip(images, found, strict=True)
            ]
            if not any(masks for _, masks in pairs):
                break
            scores = automatic_scores(pairs)
            row = scores["masks_per_image"], scores["precision"], scores["ar_1000"]
            curve.append((threshold, *row))
            print(
                f"| {stability} | {threshold:.2f} | {row[0]:.1f} | {row[1]:.2f} | {row[2]:.3f} |", flush=True
            )
        threshold_T, masks_T, precision_T, recall_T = zip(*curve, strict=True)
        axes[0].plot(threshold_T, masks_T, marker="o", label=f"stability ≥ {stability}")
        axes[1].plot(precision_T, recall_T, marker="o")
    axes[0].set(xlabel="predicted IoU above", ylabel="masks an image", yscale="log")
    axes[1].set(xlabel="precision: share of masks with IoU ≥ 0.5 with a drawn one", ylabel="average recall")
    axes[0].legend()
    figure.savefig(picture, dpi=110)


def above(threshold: float, masks: Sequence[MaskRecord]) -> list[dict[str, Any]]:
    """COCO's RLE and score of those masks whose predicted IoU is above the threshold."""
    kept = [mask for mask in masks if mask.predicted_iou > threshold]
    codes = [(mask.segmentation, mask.predicted_iou) for mask in kept]
    return [{"size": [*code.size], "counts": code.counts.encode(), "score": score} for code, score in codes]


if __name__ == "__main__":
    typer.run(main)

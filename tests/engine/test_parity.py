"""The same masks as the released generator, end to end from the photograph, with the bundled weights.

The released generator takes ten seconds and more for the default grid of a thousand prompts, so all of the
photographs at that grid are a slow test; and each is segmented once, the clean-up running on a copy.
`MASKMILL_PHOTOS` may name a folder of further photographs.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import asdict
from functools import cache, reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.model import load_sam
from maskmill.model.config import THRESHOLDS
from maskmill.pipelines.bench.released import Agreement, compare, released, released_generator

NAMES = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
PHOTOS = [Path(skimage.data.__file__).with_name(name) for name in NAMES]
if "MASKMILL_PHOTOS" in os.environ:
    PHOTOS += sorted(Path(os.environ["MASKMILL_PHOTOS"]).glob("*.jpg"))
LENIENT = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}
"""Below the nano preset's: enough masks pass that the comparison means something."""


@cache
def nano():
    return load_sam("nano")


def photograph(path: Path, longest: int = 400) -> np.ndarray:
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((longest, longest))
        return np.asarray(picture)


def released_masks(image: np.ndarray, options: dict) -> tuple[released.SamAutomaticMaskGenerator, object]:
    """The released generator and what it has before the clean-up."""
    theirs = released_generator(
        nano().config, nano().state_dict(), output_mode="coco_rle", points_per_batch=16, **options
    )
    with released.torch.no_grad():
        return theirs, theirs._generate_masks(image)


def agreements(paths: list[Path], options: dict, min_areas: tuple[int, ...]) -> list[Agreement]:
    """One for each `min_mask_region_area`, summed over the photographs."""
    total = []
    for path in paths:
        image = photograph(path)
        theirs, before = released_masks(image, options)
        for min_area in min_areas:
            theirs._generate_masks = lambda _, before=before: deepcopy(before)
            theirs.min_mask_region_area = min_area
            config = GeneratorConfig(min_mask_region_area=min_area, **options)
            total.append(compare(MaskGenerator(nano(), config).generate(image), theirs.generate(image)))
    return [reduce(add, total[index :: len(min_areas)]) for index in range(len(min_areas))]


def check(agreement: Agreement, at_least: int) -> None:
    assert min(agreement.ours, agreement.theirs) >= at_least
    assert agreement.share >= 0.995, agreement
    assert agreement.swaps == 0, agreement
    assert agreement.largest_score_difference <= 1e-4, agreement


@pytest.mark.slow
def test_default_options_on_one_photograph():
    (agreement,) = agreements(PHOTOS[:1], asdict(THRESHOLDS["nano"]), (0,))
    check(agreement, at_least=10)


def test_lenient_thresholds_and_clean_up_on_a_coarser_grid():
    for agreement in agreements(PHOTOS, {"points_per_side": 12, **LENIENT}, (0, 100)):
        check(agreement, at_least=100)


def test_a_layer_of_crops_and_clean_up():
    options = {"points_per_side": 8, "crop_n_layers": 1, **LENIENT}
    for agreement in agreements(PHOTOS[2:4], options, (0, 100)):
        check(agreement, at_least=20)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [{}, {"points_per_side": 16, "crop_n_layers": 1}], ids=["full", "crops"])
def test_a_fine_grid_and_clean_up_on_all_photographs(grid):
    for agreement in agreements(PHOTOS, {**grid, **LENIENT}, (0, 100)):
        check(agreement, at_least=200)

"""Which drawn candidates are good enough: the filters for one mask at a time, in the released order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .config import GeneratorConfig
from .geometry import near_crop_edge
from .grid import Crop
from .resampling.tiles import Measures


def stability_scores(measures: Measures) -> npt.NDArray[np.float32]:
    """IoU of each mask at the tight and at the loose threshold (paper, section 5); 0 where both are empty.

    The tight mask lies in the loose one, so the IoU is the ratio of their areas.
    """
    loose = measures.loose_N.astype(np.float32)
    return np.divide(measures.tight_N.astype(np.float32), loose, out=np.zeros_like(loose), where=loose > 0)


def filter_masks(
    measures: Measures,
    boxes_N4: npt.NDArray[np.int64],
    crop: Crop,
    image_size: tuple[int, int],
    config: GeneratorConfig,
) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """Indexes of the masks that pass, and how many did not, by the first filter that failed.

    `boxes_N4` are in image pixels, `image_size` is (height, width). An empty mask touches no edge.
    """
    empty = measures.area_N == 0
    failures = {
        "stability": np.zeros_like(empty),
        "crop_edge": ~empty & near_crop_edge(boxes_N4, crop, image_size),
        "empty": empty,
        "too_large": too_large(measures.area_N, image_size, config.max_mask_area_fraction),
    }
    if config.stability_score_thresh:
        failures["stability"] = stability_scores(measures) < np.float32(config.stability_score_thresh)
    passing = np.ones_like(empty)
    drops = {}
    for reason, failed in failures.items():
        drops[reason] = int((passing & failed).sum())
        passing &= ~failed
    return np.flatnonzero(passing), drops


def too_large(
    areas: npt.NDArray[np.int64], image_size: tuple[int, int], fraction: float | None
) -> npt.NDArray[np.bool_]:
    """Which masks cover at least that share of the image; None lets all pass."""
    if fraction is None:
        return np.zeros(areas.shape, np.bool_)
    return np.asarray(areas >= fraction * (image_size[0] * image_size[1]))

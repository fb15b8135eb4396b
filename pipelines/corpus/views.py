"""Views of a corpus: fewer masks than it stores, chosen while it is read.

A corpus keeps every mask that its run kept; whoever wants stricter thresholds, no small masks or fewer near-
duplicates says so when reading, and nothing is lost for the next reader.

A stricter threshold of predicted IoU gives what a run at that threshold would have given, as long as the run
had neither crops nor clean-up: suppression prefers the higher predicted IoU, so a mask that is kept never
depends on one that is dropped. Suppression between crops prefers the smaller crop, that after the clean-up
the mask that was not touched, and neither looks at stability: there a run of its own may have masks that a
view cannot have. `View.caveats` says so, and `Corpus.rows` warns with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .masks import Annotation, mask_nms


class ViewWarning(UserWarning):
    """The masks of a view may differ from those of a run with the view's thresholds."""


@dataclass(frozen=True, slots=True)
class View:
    """Which masks of a row are wanted. The tests are in the order of the attributes.

    Attributes:
        min_area: pixels that a mask has at least.
        predicted_iou: masks have more than this; None, or 0 as in the generator, lets all pass.
        stability_score: masks have at least this; None or 0 lets all pass.
        mask_nms: of two masks with more IoU than this, pixel by pixel, the one of higher predicted IoU stays;
            of equal ones the first.
        max_area: pixels that a mask has at most.

    Raises ValueError for a value out of range.

    """

    min_area: int = 0
    predicted_iou: float | None = None
    stability_score: float | None = None
    mask_nms: float | None = None
    max_area: int | None = None

    def __post_init__(self) -> None:
        for name in ("predicted_iou", "stability_score", "mask_nms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
        if self.min_area < 0:
            raise ValueError(f"min_area: expected a number of pixels of at least 0, got {self.min_area}")
        if self.max_area is not None and self.max_area < self.min_area:
            raise ValueError(f"max_area: expected at least min_area, {self.min_area}, got {self.max_area}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What the view looks at of an annotation."""
        compares = self.mask_nms is not None
        looks_at = {
            "segmentation": compares,
            "area": compares or self.min_area > 0 or self.max_area is not None,
            "predicted_iou": compares or bool(self.predicted_iou),
            "stability_score": bool(self.stability_score),
        }
        return tuple(name for name, needed in looks_at.items() if needed)

    def annotations(self, row: Mapping[str, Any]) -> list[Annotation]:
        """The annotations of a row that the view keeps, in their order; they need its `fields`.

        Raises CorpusError where a mask's code is damaged.
        """
        kept = [annotation for annotation in row["annotations"] if self.passes(annotation)]
        if self.mask_nms is None:
            return kept
        return [kept[index] for index in mask_nms(row, kept, self.mask_nms)]

    def caveats(self, config: Mapping[str, Any]) -> list[str]:
        """Why a run of its own could have other masks than this view, a sentence each; empty where it
        could not. `config` is the configuration in `run.json`.
        """
        run = config.get("generator") or {}
        found = []
        for name, value, known in (
            ("predicted_iou", self.predicted_iou, run.get("pred_iou_thresh")),
            ("stability_score", self.stability_score, run.get("stability_score_thresh")),
        ):
            if not value or value == known:
                continue
            if known is None:
                found.append(f"{name}={value}: run.json does not say by which thresholds masks were dropped")
            elif value < known:
                found.append(f"{name}={value}: the run's was {known}: masks between the two are missing")
            else:
                found += [
                    f"{name}={value}: {reason}: a run with this threshold may have masks that are not here"
                    for reason in _dependences(name, run)
                ]
        return found

    def passes(self, fields: Mapping[str, Any]) -> Any:
        """Whether an annotation passes the tests of one mask at a time; N bools, if its fields are arrays N.

        Scores are compared as the generator does it, in 32 bits.
        """
        found: Any = True
        if self.min_area:
            found &= fields["area"] >= self.min_area
        if self.max_area is not None:
            found &= fields["area"] <= self.max_area
        if self.predicted_iou:
            found &= fields["predicted_iou"] > np.float32(self.predicted_iou)
        if self.stability_score:
            found &= fields["stability_score"] >= np.float32(self.stability_score)
        return found


def warn_of(view: View | None, config: Mapping[str, Any], stacklevel: int) -> None:
    """Warn of a view's caveats; `stacklevel` as `warnings.warn` has it, from the caller's side."""
    for caveat in view.caveats(config) if view else ():
        warnings.warn(caveat, ViewWarning, stacklevel=stacklevel + 1)


def _dependences(name: str, run: Mapping[str, Any]) -> list[str]:
    """Why a mask of this run may have gone for one that the threshold `name` would have dropped."""
    found = []
    if name == "stability_score":
        found.append("of duplicates the run kept the one of higher predicted IoU, however stable")
    if run.get("crop_n_layers", 0):
        found.append("the run had crops, and of duplicates kept the one of the smaller crop")
    if run.get("min_mask_region_area", 0):
        found.append("the run cleaned masks up, and of duplicates kept the one that was left as it was")
    return found

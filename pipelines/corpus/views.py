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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from ...engine.codes import single
from ...engine.records import Rle
from ..errors import CorpusError

Annotation = dict[str, Any]
Priority = Literal["area", "predicted_iou"]
PRIORITIES: tuple[Priority, ...] = ("area", "predicted_iou")


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
                found.append(f"{name}={value}: the run's was {known}: no mask between the two is there")
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


def mask_nms(row: Mapping[str, Any], annotations: Sequence[Annotation], threshold: float) -> list[int]:
    """Indexes, in order, of the masks that stay where of two with an IoU above `threshold` the one of higher
    predicted IoU does, or the first of equal ones.

    The IoU is that of the pixels, by pycocotools on run-length codes. It cannot exceed the ratio of the
    areas, so only masks of about the same size are compared. Raises CorpusError where a code is damaged.
    """
    codes = [_code(row, index, annotation) for index, annotation in enumerate(annotations)]
    area_N = np.array([annotation["area"] for annotation in annotations], np.float64)
    scores_N = np.array([annotation["predicted_iou"] for annotation in annotations], np.float64)
    waiting = np.argsort(-scores_N, kind="stable")
    keep = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        keep.append(int(best))
        ratio_N = area_N[waiting] / area_N[best]
        near_N = np.minimum(ratio_N, 1 / ratio_N) > threshold
        near = waiting[near_N]
        if len(near):
            iou_1K = coco.iou([codes[best]], [codes[index] for index in near], [0] * len(near))
            near_N[near_N] = iou_1K[0] > threshold
            waiting = waiting[~near_N]
    return sorted(keep)


def label_map(
    row: Mapping[str, Any], annotations: Sequence[Annotation], priority: Priority = "area"
) -> npt.NDArray[np.int32]:
    """The masks laid over each other, H×W: 0 is background, k + 1 is annotation k of those given.

    Where masks overlap, `priority` says which one shows: by "area" the smaller, so that parts stay visible on
    their wholes; by "predicted_iou" the higher; of equal ones the first. A mask that others cover wholly has
    no pixel. Raises ValueError for a rejected image, which has no size, and for another priority; CorpusError
    where a mask's code is damaged or of another size.
    """
    if priority not in PRIORITIES:
        raise ValueError(f"expected a priority out of {', '.join(PRIORITIES)}, got {priority!r}")
    height, width = row["height"], row["width"]
    if height is None or width is None:
        raise ValueError(f"{row['key']}: a rejected image has no masks")
    sign = 1 if priority == "area" else -1
    rank_N = np.array([sign * annotation[priority] for annotation in annotations], np.float64)
    labels = np.zeros(height * width, np.int32)  # down the columns, as the runs go
    for index in np.argsort(rank_N, kind="stable")[::-1]:
        paint(labels, checked_lengths(row, int(index), annotations[index]), index + 1)
    return np.ascontiguousarray(labels.reshape(width, height).T)


def paint(pixels: npt.NDArray[Any], counts: npt.NDArray[np.int64], value: int) -> None:
    """Set the pixels of a mask, given by its run lengths, to a value; `pixels` lie column after column.

    That costs the mask's outline and area, where decoding it costs the image's.
    """
    ends = np.cumsum(counts)
    for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
        pixels[start:end] = value


@dataclass(frozen=True, slots=True)
class Cutout:
    """A mask in its own box: `mask_HW[0, 0]` is pixel (x, y) of the image; outside it the mask is nowhere."""

    x: int
    y: int
    mask_HW: npt.NDArray[np.bool_]


def cutout(row: Mapping[str, Any], index: int) -> Cutout:
    """Mask `index` of a row, of its code's box; of size 0×0 for an empty mask. Costs the box's columns only.

    Raises CorpusError where the code is damaged or of another size.
    """
    ends = np.cumsum(checked_lengths(row, index, row["annotations"][index]))
    starts, ends = ends[:-1:2], ends[1::2]
    starts, ends = starts[starts < ends], ends[starts < ends]  # a code may have runs of nothing
    if len(starts) == 0:
        return Cutout(0, 0, np.zeros((0, 0), np.bool_))
    height = row["height"]
    left, right = int(starts[0]) // height, int(ends[-1] - 1) // height
    changes = np.concatenate([[left * height], np.stack([starts, ends], 1).ravel(), [(right + 1) * height]])
    inside = np.arange(len(changes) - 1) % 2 == 1
    columns_HW = np.repeat(inside, np.diff(changes)).reshape(right - left + 1, height).T
    rows = np.flatnonzero(columns_HW.any(1))
    return Cutout(left, int(rows[0]), columns_HW[rows[0] : rows[-1] + 1])


def checked_lengths(
    row: Mapping[str, Any], index: int, annotation: Mapping[str, Any]
) -> npt.NDArray[np.int64]:
    """The run lengths of mask `index` of a row; CorpusError where its code is damaged, or is not of the
    row's size where the row has one.
    """
    size, expected = list(annotation["segmentation"]["size"]), [row.get("height"), row.get("width")]
    if size != expected and expected != [None, None]:
        raise CorpusError(f"{row.get('key')}: mask {index} is for {size}, not {expected}")
    try:
        height, width = size
        return single.run_lengths(Rle((height, width), annotation["segmentation"]["counts"]))
    except ValueError as error:
        raise CorpusError(f"{row.get('key')}: mask {index}: {error}") from None


def _code(row: Mapping[str, Any], index: int, annotation: Mapping[str, Any]) -> dict[str, Any]:
    """A mask's code as pycocotools takes it; checked, since a malformed one is a crash in C."""
    checked_lengths(row, index, annotation)
    return {
        "size": list(annotation["segmentation"]["size"]),
        "counts": annotation["segmentation"]["counts"].encode("ascii"),
    }


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

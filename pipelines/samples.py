"""From Arrow's columns to tensors: what `pipelines.torch_dataset` hands out of a row group.

A row group's boxes and scores become one tensor each, of which every sample has a slice: no annotation is
made an object of Python's. A sample that is kept keeps its row group's boxes and scores alive, and no codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.corpus import Corpus
from pipelines.errors import CorpusError
from pipelines.rows import parquet_columns
from pipelines.views import View, checked_lengths, mask_nms, paint

Sample = dict[str, Any]
_NUMBERS = ("area", "predicted_iou", "stability_score")
_OF_THE_ROW = ("width", "height")
_OF_THE_FILE = ("uri", "image_sha256", "image")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is in a sample: `codes`, `masks`, the `image`, and the annotations that the `view` keeps."""

    codes: bool = False
    masks: bool = False
    images: bool = False
    view: View | None = None

    @property
    def columns(self) -> list[str]:
        """What is read for it, as paths of Parquet's."""
        names = [*_OF_THE_ROW, "annotations.bbox", *(f"annotations.{name}" for name in _NUMBERS)]
        names += ["annotations.segmentation"] * (self.codes or self.masks) + list(_OF_THE_FILE) * self.images
        found = parquet_columns(names, self.view)
        assert found is not None, "columns were named"
        return found


class RowGroup:
    """The samples of a batch that was read from the file `path` with the columns of `wanted`.

    Raises CorpusError where an annotation lacks a value, and where a view that compares masks meets a damaged
    code.
    """

    def __init__(self, corpus: Corpus, wanted: Wanted, path: Path, batch: pa.RecordBatch) -> None:
        self._corpus, self._wanted, self._batch = corpus, wanted, batch
        self._ids, self._keys = batch["image_id"].to_pylist(), batch["key"].to_pylist()
        self._sizes = list(zip(batch["height"].to_pylist(), batch["width"].to_pylist(), strict=True))
        masks = _whole(batch["annotations"], path)
        records = _whole(masks.values, path)
        values = {name: _whole(records.field(name), path).to_numpy() for name in _NUMBERS}
        boxes_N4 = _whole(_whole(records.field("bbox"), path).values, path).to_numpy().reshape(-1, 4)
        has_codes = any(field.name == "segmentation" for field in records.type.fields)
        codes = _whole(records.field("segmentation"), path) if has_codes else None
        ends = masks.offsets.to_numpy()
        if wanted.view is not None:
            kept = self._in_view(wanted.view, values, codes, ends)
            values, boxes_N4 = {name: array[kept] for name, array in values.items()}, boxes_N4[kept]
            codes = None if codes is None else codes.take(pa.array(kept))
            ends = np.searchsorted(kept, ends)
        boxes_N4 = boxes_N4.copy()
        for near, far in ((0, 2), (1, 3)):  # a column at a time: numpy is slow at rows of two
            boxes_N4[:, far] += boxes_N4[:, near]
        if corpus.run.is_imported:  # SA-1B's boxes end at the last pixel
            boxes_N4[:, 2:] += 1
        arrays = [boxes_N4, *(values[name].copy() for name in _NUMBERS)]
        counts = np.diff(ends).tolist()
        self._codes, self._ends = codes, ends.tolist()
        # Unsafe only for gradients, which no target has: a third faster than views that autograd tracks.
        self._tensors = [torch.unsafe_split_with_sizes(torch.from_numpy(array), counts) for array in arrays]

    def sample(self, row: int) -> Sample:
        """The sample of a row of the batch; `pipelines.torch_dataset` says what is in it.

        Raises CorpusError where a mask's code is damaged, or the image is not to be had.
        """
        boxes, area, predicted_iou, stability_score = self._tensors
        found: Sample = {
            "image_id": self._ids[row],
            "key": self._keys[row],
            "size": self._sizes[row],
            "boxes": boxes[row],
            "area": area[row],
            "predicted_iou": predicted_iou[row],
            "stability_score": stability_score[row],
        }
        if self._wanted.codes:
            found["codes"] = self._codes_of(row)
        if self._wanted.masks:
            found["masks"] = torch.from_numpy(self._masks(row))
        if self._wanted.images:
            columns = ["key", *_OF_THE_ROW, *_OF_THE_FILE]
            (of_file,) = self._batch.select(columns).slice(row, 1).to_pylist()
            found["image"] = torch.from_numpy(self._corpus.image(of_file)).permute(2, 0, 1).contiguous()
        return found

    def _codes_of(self, row: int) -> pa.StructArray:
        assert self._codes is not None, "the codes were read"
        return self._codes.slice(self._ends[row], self._ends[row + 1] - self._ends[row])

    def _masks(self, row: int) -> npt.NDArray[np.bool_]:
        codes, (height, width) = self._codes_of(row).to_pylist(), self._sizes[row]
        pixels_NP = np.zeros((len(codes), width * height), np.bool_)
        for index, code in enumerate(codes):
            paint(pixels_NP[index], checked_lengths(self._named(row), index, {"segmentation": code}), 1)
        return pixels_NP.reshape(-1, width, height).transpose(0, 2, 1)

    def _in_view(
        self,
        view: View,
        values: Mapping[str, npt.NDArray[Any]],
        codes: pa.StructArray | None,
        ends: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.int64]:
        """Which of all the batch's annotations the view keeps."""
        passing = np.broadcast_to(view.passes(values), len(values["area"]))
        if view.mask_nms is None:
            return np.flatnonzero(passing)
        assert codes is not None, "the view's fields were read"
        kept = [np.zeros(0, np.int64)]
        for row in range(len(self._ids)):
            places = ends[row] + np.flatnonzero(passing[ends[row] : ends[row + 1]])
            columns = [codes.take(pa.array(places)).to_pylist()]
            columns += [values[name][places].tolist() for name in ("area", "predicted_iou")]
            names = ("segmentation", "area", "predicted_iou")
            annotations = [dict(zip(names, one, strict=True)) for one in zip(*columns, strict=True)]
            kept.append(places[mask_nms(self._named(row), annotations, view.mask_nms)])
        return np.concatenate(kept)

    def _named(self, row: int) -> dict[str, Any]:
        height, width = self._sizes[row]
        return {"key": self._keys[row], "height": height, "width": width}


def sampled(batch: pa.RecordBatch, status: str | None) -> npt.NDArray[np.bool_]:
    """Which rows of a batch are samples: those of the status, or all but the rejected."""
    found = pc.equal(batch["status"], status) if status else pc.not_equal(batch["status"], "rejected")
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


def _whole(array: pa.Array, path: Path) -> pa.Array:
    """The array, if no value of it is missing."""
    if array.null_count:
        raise CorpusError(f"{path}: damaged: a row or an annotation lacks a value")
    return array

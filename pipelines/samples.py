"""From Arrow's columns to tensors: what `pipelines.torch_dataset` hands out of a row group.

A row group's boxes and scores become one tensor each, of which every sample has a slice: no annotation is made
a Python object. A sample that is kept keeps its row group's boxes and scores alive, and no codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipelines.corpus import Corpus
from pipelines.errors import CorpusError
from pipelines.rows import parquet_columns
from pipelines.views import View, checked_lengths, mask_nms

Sample = dict[str, Any]
_NUMBERS = ("area", "predicted_iou", "stability_score")
_OF_THE_ROW = ("width", "height")
_OF_THE_FILE = ("uri", "image_sha256", "image")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is in a sample: `masks`, the `image`, and the annotations that the `view` keeps."""

    masks: bool = False
    images: bool = False
    view: View | None = None

    @property
    def columns(self) -> list[str]:
        """What is read for it, as paths of Parquet's."""
        names = [*_OF_THE_ROW, "annotations.bbox", *(f"annotations.{name}" for name in _NUMBERS)]
        names += ["annotations.segmentation"] * self.masks + list(_OF_THE_FILE) * self.images
        found = parquet_columns(names, self.view)
        assert found is not None, "columns were named"
        return found


class RowGroup:
    """The samples of a batch that was read from the file `path` with the columns of `wanted`.

    Raises CorpusError where an annotation lacks a value.
    """

    def __init__(self, corpus: Corpus, wanted: Wanted, path: Path, batch: pa.RecordBatch) -> None:
        self._corpus, self._wanted, self._path, self._batch = corpus, wanted, path, batch
        self.status: list[str] = batch["status"].to_pylist()
        self._ids = batch["image_id"].to_pylist()
        self._keys = batch["key"].to_pylist()
        self._sizes = list(zip(batch["height"].to_pylist(), batch["width"].to_pylist(), strict=True))
        masks = batch["annotations"]
        self._ends = _whole(masks, path).offsets.to_numpy()
        records = _whole(masks.values, path)
        boxes_N4 = _whole(_whole(records.field("bbox"), path).values, path).to_numpy().reshape(-1, 4).copy()
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        values = {name: _whole(records.field(name), path).to_numpy().copy() for name in _NUMBERS}
        self._codes = (
            _whole(records.field("segmentation"), path) if "segmentation" in _names(records) else None
        )
        self._kept = self._in_view(values)
        counts = np.diff(self._ends).tolist()
        if self._kept is not None:
            boxes_N4, values = (
                boxes_N4[self._kept],
                {name: array[self._kept] for name, array in values.items()},
            )
            counts = np.diff(np.searchsorted(self._kept, self._ends)).tolist()
        self._boxes = torch.from_numpy(boxes_N4).split(counts)
        self._values = {name: torch.from_numpy(array).split(counts) for name, array in values.items()}

    def sample(self, row: int) -> Sample:
        """The sample of a row of the batch; `pipelines.torch_dataset` says what is in it.

        Raises CorpusError where a mask's code is damaged, or the image is not to be had.
        """
        height, width = self._sizes[row]
        found: Sample = {
            "image_id": self._ids[row],
            "key": self._keys[row],
            "size": (height, width),
            "boxes": self._boxes[row],
            **{name: tensors[row] for name, tensors in self._values.items()},
        }
        if self._wanted.masks:
            found["masks"] = torch.from_numpy(self._masks(row))
        if self._wanted.images:
            columns = ["key", *_OF_THE_ROW, *_OF_THE_FILE]
            (of_file,) = self._batch.select(columns).slice(row, 1).to_pylist()
            found["image"] = torch.from_numpy(self._corpus.image(of_file)).permute(2, 0, 1).contiguous()
        return found

    def _masks(self, row: int) -> npt.NDArray[np.bool_]:
        places = np.arange(self._ends[row], self._ends[row + 1])
        if self._kept is not None:
            places = self._kept[slice(*np.searchsorted(self._kept, self._ends[row : row + 2]))]
        height, width = self._sizes[row]
        masks_NHW = np.zeros((len(places), height, width), np.bool_)
        for index, annotation in enumerate(self._annotations(places)):
            counts = checked_lengths(self._named(row), index, annotation)
            inside = np.arange(len(counts)) % 2 == 1
            masks_NHW[index] = np.repeat(inside, counts).reshape(width, height).T
        return masks_NHW

    def _in_view(self, values: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64] | None:
        """Which of all the batch's annotations the view keeps; None for all."""
        view = self._wanted.view
        if view is None:
            return None
        passing = np.broadcast_to(view.passes(values), len(values["area"]))
        if view.mask_nms is None:
            return np.flatnonzero(passing)
        kept = [np.zeros(0, np.int64)]
        for row in range(len(self._ids)):
            first, stop = self._ends[row : row + 2]
            places = first + np.flatnonzero(passing[first:stop])
            annotations = self._annotations(places)
            for name in ("area", "predicted_iou"):
                for annotation, value in zip(annotations, values[name][places].tolist(), strict=True):
                    annotation[name] = value
            kept.append(places[mask_nms(self._named(row), annotations, view.mask_nms)])
        return np.concatenate(kept)

    def _annotations(self, places: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        assert self._codes is not None, "the codes were read"
        return [{"segmentation": code} for code in self._codes.take(pa.array(places)).to_pylist()]

    def _named(self, row: int) -> dict[str, Any]:
        height, width = self._sizes[row]
        return {"key": self._keys[row], "height": height, "width": width}


def _names(records: pa.StructArray) -> list[str]:
    return [field.name for field in records.type.fields]


def _whole(array: pa.Array, path: Path) -> pa.Array:
    """The array, if no value of it is missing."""
    if array.null_count:
        raise CorpusError(f"{path}: damaged: a row or an annotation lacks a value")
    return array

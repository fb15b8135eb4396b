"""From Arrow's columns to tensors: what `pipelines.torch_dataset` hands out of a window of rows.

A window's boxes and scores become one tensor each, in the order in which its samples are handed out, of which
every sample and every batch has a slice: no annotation is made an object of Python's. A sample that is kept
keeps its window's boxes and scores alive; its row group's codes only if it has codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..corpus.columns import parquet_columns
from ..corpus.masks import checked_lengths, mask_nms, paint
from ..corpus.reader import Corpus
from ..corpus.views import View
from ..corpus.windows import Window
from ..errors import CorpusError

Sample = dict[str, Any]
_NUMBERS = ("area", "predicted_iou", "stability_score")
_OF_THE_ROW = ("width", "height")
_OF_SAMPLES = ["image_id", "key", *_OF_THE_ROW]
_OF_THE_FILE = ("uri", "image_sha256", "image")

SPLIT = 16
"""Samples whose tensors are made together: one by one they cost twice as much, and all of a window's at once
would be taken by Python's garbage collector for objects that stay."""


def opened(corpus: Corpus | str | Path, moved: Mapping[str, str] | None) -> Corpus:
    """The corpus that is given or lies there, its images moved; ValueError for one that has been told."""
    if not isinstance(corpus, Corpus):
        return Corpus(corpus, moved)
    if moved is not None:
        raise ValueError("expected moved only with a path: give it to the Corpus itself")
    return corpus


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


class Samples:
    """The samples among the rows of a window, which was read with the columns of `wanted`, in its order.

    Attributes:
        positions: of each sample, how many rows of the part there are up to it and with it.

    Raises CorpusError where a sample or an annotation lacks a value, and where a view that compares masks
    meets a damaged code.

    """

    def __init__(self, corpus: Corpus, wanted: Wanted, window: Window, status: str | None) -> None:
        self._corpus, self._wanted = corpus, wanted
        read = zip(window.paths, window.batches, strict=True)
        self._parts = parts = [_Part.of(wanted, status, path, batch) for path, batch in read]
        firsts = np.cumsum([0, *(part.batch.num_rows for part in parts)])
        rows = firsts[window.rows_K2[:, 0]] + window.rows_K2[:, 1]  # numbered through all batches
        chosen = np.flatnonzero(np.concatenate([part.is_sample for part in parts])[rows])
        rows = rows[chosen]
        self.positions: list[int] = (window.position + 1 + chosen).tolist()
        self._rows_K2 = window.rows_K2[chosen].tolist()

        of_rows = pa.Table.from_batches([part.batch.select(_OF_SAMPLES) for part in parts]).take(rows)
        self._ids, self._keys = of_rows["image_id"].to_pylist(), of_rows["key"].to_pylist()
        self._sizes = list(zip(of_rows["height"].to_pylist(), of_rows["width"].to_pylist(), strict=True))

        counts = np.concatenate([np.diff(part.ends) for part in parts])
        begins = (np.cumsum(counts) - counts)[rows]
        self._counts = counts = counts[rows]
        ends = np.concatenate([[0], np.cumsum(counts)])
        self._ends = ends.tolist()
        arrays = [np.concatenate([part.boxes_N4 for part in parts])]
        arrays += [np.concatenate([part.values[name] for part in parts]) for name in _NUMBERS]
        moved = begins - ends[:-1]
        if moved.any() or ends[-1] < len(arrays[0]):
            places_N = np.arange(ends[-1]) + np.repeat(moved, counts)
            arrays = [array.take(places_N, axis=0) for array in arrays]
        boxes_N4 = arrays[0]
        for near, far in ((0, 2), (1, 3)):  # a column at a time: numpy is slow at rows of two
            boxes_N4[:, far] += boxes_N4[:, near]
        if corpus.run.is_imported:  # SA-1B's boxes end at the last pixel
            boxes_N4[:, 2:] += 1
        self._tensors = [torch.from_numpy(array) for array in arrays]
        self._split: tuple[int, list[tuple[Tensor, ...]]] = -1, []

    def __len__(self) -> int:
        return len(self._ids)

    def sample(self, place: int) -> Sample:
        """One sample; `pipelines.torch_dataset` says what is in it.

        Raises CorpusError where a mask's code is damaged, or the image is not to be had.
        """
        number, within = divmod(place, SPLIT)
        if number != self._split[0]:
            counts = self._counts[number * SPLIT : (number + 1) * SPLIT].tolist()
            self._split = (
                number,
                [
                    # unsafe only for gradients, which no target has
                    torch.unsafe_split_with_sizes(tensor, counts)
                    for tensor in self._annotations(number * SPLIT, number * SPLIT + len(counts))
                ],
            )
        boxes, area, predicted_iou, stability_score = self._split[1]
        found: Sample = {
            "image_id": self._ids[place],
            "key": self._keys[place],
            "size": self._sizes[place],
            "boxes": boxes[within],
            "area": area[within],
            "predicted_iou": predicted_iou[within],
            "stability_score": stability_score[within],
        }
        if self._wanted.codes:
            found["codes"] = self._codes_of(place)
        if self._wanted.masks:
            found["masks"] = self._masks(place)
        if self._wanted.images:
            found["image"] = self._image(place)
        return found

    def batch(self, begin: int, stop: int) -> Sample:
        """The samples from `begin` up to `stop` as one; raises what `sample` does."""
        places = range(begin, stop)
        boxes, area, predicted_iou, stability_score = self._annotations(begin, stop)
        found: Sample = {
            "image_id": self._ids[begin:stop],
            "key": self._keys[begin:stop],
            "size": self._sizes[begin:stop],
            "count": torch.from_numpy(self._counts[begin:stop]),
            "boxes": boxes,
            "area": area,
            "predicted_iou": predicted_iou,
            "stability_score": stability_score,
        }
        if self._wanted.codes:
            found["codes"] = pa.concat_arrays([self._codes_of(place) for place in places])
        if self._wanted.masks:
            found["masks"] = [self._masks(place) for place in places]
        if self._wanted.images:
            found["image"] = [self._image(place) for place in places]
        return found

    def _annotations(self, begin: int, stop: int) -> list[Tensor]:
        first, end = self._ends[begin], self._ends[stop]
        return [tensor[first:end] for tensor in self._tensors]

    def _codes_of(self, place: int) -> pa.StructArray:
        at, row = self._rows_K2[place]
        codes, ends = self._parts[at].codes, self._parts[at].ends
        assert codes is not None, "the codes were read"
        return codes.slice(ends[row], ends[row + 1] - ends[row])

    def _masks(self, place: int) -> Tensor:
        codes, (height, width) = self._codes_of(place).to_pylist(), self._sizes[place]
        named = {"key": self._keys[place], "height": height, "width": width}
        pixels_NP = np.zeros((len(codes), width * height), np.bool_)
        for index, code in enumerate(codes):
            paint(pixels_NP[index], checked_lengths(named, index, {"segmentation": code}), 1)
        return torch.from_numpy(pixels_NP.reshape(-1, width, height).transpose(0, 2, 1))

    def _image(self, place: int) -> Tensor:
        at, row = self._rows_K2[place]
        columns = ["key", *_OF_THE_ROW, *_OF_THE_FILE]
        (of_file,) = self._parts[at].batch.select(columns).slice(row, 1).to_pylist()
        return torch.from_numpy(self._corpus.image(of_file)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class _Part:
    """What a record batch has: of its row r, the annotations from ends[r] up to ends[r + 1]."""

    batch: pa.RecordBatch
    is_sample: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int64]
    boxes_N4: npt.NDArray[np.float32]
    values: Mapping[str, npt.NDArray[Any]]
    codes: pa.StructArray | None

    @classmethod
    def of(cls, wanted: Wanted, status: str | None, path: Path, batch: pa.RecordBatch) -> _Part:
        """The part of a batch out of the file `path`, but for the annotations that the view leaves out."""
        _whole(batch["status"], path)
        is_sample = sampled(batch, status)
        for column in batch.select(_OF_SAMPLES).filter(pa.array(is_sample)):
            _whole(column, path)
        masks = _whole(batch["annotations"], path)
        records = _whole(masks.values, path)
        values = {name: _whole(records.field(name), path).to_numpy() for name in _NUMBERS}
        boxes_N4 = _whole(_whole(records.field("bbox"), path).values, path).to_numpy().reshape(-1, 4)
        has_codes = any(field.name == "segmentation" for field in records.type.fields)
        codes = _whole(records.field("segmentation"), path) if has_codes else None
        ends = masks.offsets.to_numpy().astype(np.int64)
        if wanted.view is not None:
            kept = _in_view(wanted.view, batch, values, codes, ends)
            values, boxes_N4 = {name: array[kept] for name, array in values.items()}, boxes_N4[kept]
            codes = None if codes is None else codes.take(pa.array(kept))
            ends = np.searchsorted(kept, ends)
        return cls(batch, is_sample, ends, boxes_N4, values, codes)


def _in_view(
    view: View,
    batch: pa.RecordBatch,
    values: Mapping[str, npt.NDArray[Any]],
    codes: pa.StructArray | None,
    ends: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Which of all the batch's annotations the view keeps."""
    passing = np.broadcast_to(view.passes(values), len(values["area"]))
    if view.mask_nms is None:
        return np.flatnonzero(passing)
    assert codes is not None, "the view's fields were read"
    kept = [np.zeros(0, np.int64)]
    for row, named in enumerate(batch.select(["key", "height", "width"]).to_pylist()):
        places = ends[row] + np.flatnonzero(passing[ends[row] : ends[row + 1]])
        columns = [codes.take(pa.array(places)).to_pylist()]
        columns += [values[name][places].tolist() for name in ("area", "predicted_iou")]
        names = ("segmentation", "area", "predicted_iou")
        annotations = [dict(zip(names, one, strict=True)) for one in zip(*columns, strict=True)]
        kept.append(places[mask_nms(named, annotations, view.mask_nms)])
    return np.concatenate(kept)


def joined(parts: Sequence[Callable[[], Sample]]) -> Sample:
    """The batches that the parts make, one after another, as one."""
    batches = [part() for part in parts]
    if len(batches) == 1:
        return batches[0]
    found: Sample = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if isinstance(values[0], Tensor):
            found[name] = torch.cat(values)
        else:
            found[name] = pa.concat_arrays(values) if name == "codes" else list(chain.from_iterable(values))
    return found


def sampled(batch: pa.RecordBatch, status: str | None) -> npt.NDArray[np.bool_]:
    """Which rows of a batch are samples: those of the status, or all but the rejected."""
    found = pc.equal(batch["status"], status) if status else pc.not_equal(batch["status"], "rejected")
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


def _whole(array: pa.Array, path: Path) -> pa.Array:
    """The array, if no value of it is missing."""
    if array.null_count:
        raise CorpusError(f"{path}: damaged: a row or an annotation lacks a value")
    return array

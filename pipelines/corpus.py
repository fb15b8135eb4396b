"""Reading a corpus: rows one after another, masks when they are asked for.

Rows come as plain dicts with the columns of `docs/format.md`, a few at a time from each file, so that memory
does not grow with the corpus. Shards that are not committed yet are simply not there: a corpus may be read
while it is made. Nothing here needs torch or Ray.

    corpus = Corpus("out/corpus")
    for row in corpus.rows(status="ok"):
        masks_HWN = corpus.masks(row)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import rle
from engine.records import Rle
from pipelines import manifest
from pipelines.errors import CorpusError
from pipelines.places import place
from pipelines.schema import FORMAT_VERSION, ROW_SCHEMA, STATUSES
from pipelines.shards import committed_shards, open_parquet, reading, shard_path

BATCH_ROWS = 16
_ALWAYS = ("key", "file_name", "uri", "candidates", "drops", "annotations")


class Corpus:
    """A corpus folder, complete or still in the making.

    Attributes:
        path: the folder.
        run: what decided every row, from `run.json`.

    Raises CorpusError where the folder is missing, is no corpus, or is of another format version.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = place(path)
        if not self.path.is_dir():
            raise CorpusError(f"{path}: there is no such folder; expected a corpus")
        if not (self.path / manifest.RUN).is_file():
            raise CorpusError(f"{path}: not a corpus: it has no {manifest.RUN}")
        self.run = manifest.read_run(self.path)

    @property
    def complete(self) -> bool:
        """Whether the run that makes it has finished."""
        return (self.path / manifest.CORPUS).is_file()

    @cached_property
    def shards(self) -> list[int]:
        """The shards that were committed when first asked."""
        return sorted(committed_shards(self.path))

    def __len__(self) -> int:
        """How many rows `iter` gives."""
        return self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def rows(self, status: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows, in plan order; only those that are "ok", "empty" or "rejected", where a status is given.

        Raises ValueError for another status, CorpusError where a shard is damaged, or a row so that it has no
        known status, no size or no error.
        """
        if status is not None and status not in STATUSES:
            raise ValueError(f"expected a status out of {', '.join(STATUSES)}, got {status!r}")
        return self._read(status)

    def masks(self, row: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """The masks of a row, H×W×N, in the order of its annotations; N is 0 for an empty image.

        Raises ValueError for a rejected image, which has no size; CorpusError where a mask's code is damaged.
        """
        height, width, annotations = row["height"], row["width"], row["annotations"]
        if height is None or width is None:
            raise ValueError(f"{row['key']}: a rejected image has no masks")
        masks_HWN = np.zeros((height, width, len(annotations)), np.bool_, order="F")
        for index, annotation in enumerate(annotations):
            code = annotation["segmentation"]
            if list(code["size"]) != [height, width]:
                raise CorpusError(f"{row['key']}: mask {index} is for {code['size']}, not {[height, width]}")
            try:
                masks_HWN[:, :, index] = rle.decode(Rle((height, width), code["counts"]))
            except ValueError as error:
                raise CorpusError(f"{row['key']}: mask {index}: {error}") from None
        return masks_HWN

    @cached_property
    def _rows(self) -> int:
        total = 0
        for shard in self.shards:
            with open_parquet(shard_path(self.path, shard)) as file:
                total += file.metadata.num_rows
        return total

    def _read(self, status: str | None) -> Iterator[dict[str, Any]]:
        for shard in self.shards:
            path = shard_path(self.path, shard)
            with open_parquet(path) as file:
                if not file.schema_arrow.equals(ROW_SCHEMA):
                    raise CorpusError(
                        f"{path}: damaged: the columns are not those of format {FORMAT_VERSION}"
                    )
                batches = file.iter_batches(BATCH_ROWS)
                while True:
                    with reading(path):
                        batch = next(batches, None)
                        rows = [] if batch is None else batch.to_pylist()
                    if batch is None:
                        break
                    for row in rows:
                        if problem := _damage(row):
                            raise CorpusError(f"{path}: damaged: {row['key']}: {problem}")
                        if status in (None, row["status"]):
                            yield row


def _damage(row: Mapping[str, Any]) -> str | None:
    """What keeps a row from being used at all; `pipelines.verify` looks closer."""
    if row["status"] not in STATUSES:
        return f"the status is {row['status']!r}"
    if missing := [name for name in _ALWAYS if row[name] is None]:
        return f"no {missing[0]}"
    if row["status"] == "rejected":
        error = row["error"]
        return None if error and None not in error.values() else "rejected without an error"
    if any(row[name] is None or row[name] < 1 for name in ("width", "height")):
        return f"the size is {row['width']}×{row['height']}"
    return None

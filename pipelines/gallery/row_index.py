"""Which rows of a corpus are photographs and which were rejected, and any one without reading the rest.

The statuses of all rows are read once: a column of three words, a few bytes for a hundred rows. From then on
the n-th photograph, or the n-th rejected input, is a place in a shard, and reading it reads its row group.
The row groups used last are kept, so that neighbours cost nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.reader import Corpus
from ..errors import CorpusError
from ..format.layout import shard_path
from ..format.parquet_files import open_parquet, reading
from ..format.schema import FORMAT_VERSION, ROW_SCHEMA

Kind = Literal["photographs", "rejected"]
KEPT_BYTES = 256 << 20
_NEEDED = ("image_id", "key", "file_name", "uri", "candidates", "annotations")


class RowIndex:
    """The rows of the shards that are committed when it is made, in plan order; safe to use from threads.

    Raises CorpusError where a shard is damaged.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._kept: OrderedDict[tuple[int, int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        with ThreadPoolExecutor() as pool:
            rejected = list(pool.map(self._rejected, corpus.shards))
        shard_N = np.repeat(np.asarray(corpus.shards, np.int64), [len(own) for own in rejected])
        place_N = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(own)) for own in rejected)])
        rejected_N = np.concatenate([np.zeros(0, np.bool_), *rejected])
        places_N2 = np.stack([shard_N, place_N], axis=1)
        self._places: dict[Kind, npt.NDArray[np.int64]] = {
            "photographs": places_N2[~rejected_N],
            "rejected": places_N2[rejected_N],
        }

    def count(self, kind: Kind) -> int:
        """How many there are."""
        return len(self._places[kind])

    def row(self, kind: Kind, number: int) -> dict[str, Any]:
        """The whole row of one; raises IndexError where there are fewer."""
        return self.rows(kind, number, number + 1, ROW_SCHEMA.names)[0]

    def rows(self, kind: Kind, start: int, stop: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of a few (nested ones as Parquet names them); IndexError where none is there."""
        places = self._places[kind][max(0, start) : stop]
        if start < 0 or len(places) == 0:
            raise IndexError(f"there are {self.count(kind)} {kind}, numbered from 0, got {start}")
        found: list[dict[str, Any]] = []
        for shard in np.unique(places[:, 0]):
            found += self._of_shard(int(shard), places[places[:, 0] == shard, 1], tuple(columns))
        return found

    def _rejected(self, shard: int) -> npt.NDArray[np.bool_]:
        """Whether each row of a shard was rejected."""
        path = shard_path(self._corpus.path, shard)
        with open_parquet(path) as file:
            if not file.schema_arrow.equals(ROW_SCHEMA):
                raise CorpusError(f"{path}: damaged: the columns are not those of format {FORMAT_VERSION}")
            with reading(path):
                statuses = file.read(columns=["status"]).column("status")
        return np.asarray(pc.fill_null(pc.equal(statuses, "rejected"), False).to_numpy())

    def _of_shard(
        self, shard: int, places: npt.NDArray[np.int64], columns: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        path = shard_path(self._corpus.path, shard)
        with open_parquet(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            first = np.cumsum([0, *sizes])
            groups = np.searchsorted(first, places, side="right") - 1
            found = []
            for group in np.unique(groups):
                with reading(path):
                    table = self._group(file, (shard, int(group), columns))
                    found += table.take(places[groups == group] - first[group]).to_pylist()
        for row in found:
            _check(row, path)
        return found

    def _group(self, file: Any, name: tuple[int, int, tuple[str, ...]]) -> pa.Table:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        table = file.read_row_group(name[1], columns=list(name[2]))
        with self._lock:
            self._kept[name] = table
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return table


def _check(row: Mapping[str, Any], path: object) -> None:
    """Raise CorpusError for a row that lacks what it cannot be shown without."""
    missing = [name for name in _NEEDED if name in row and row[name] is None]
    if not missing and "annotations" in row and row.get("status") != "rejected":
        missing = [name for name in ("width", "height") if (row[name] or 0) < 1]
    if not missing and "error" in row and row.get("status") == "rejected":
        missing = [] if row["error"] and None not in row["error"].values() else ["error"]
    if missing:
        raise CorpusError(f"{path}: damaged: {row.get('key')}: no {missing[0]}")

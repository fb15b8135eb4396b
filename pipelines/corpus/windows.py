"""The rows of an order, read a window at a time.

Rows are read in *windows* of whole row groups, since nothing less can be read: as many as come to
`WINDOW_BYTES` unpacked, or `WINDOW_GROUPS`. In plan order the first windows are one row group each, so that
the first rows are there soon, and later ones up to `PLAIN_GROUPS`. Shuffled, a window's rows are permuted:
rows of different shards meet only where the permutation puts their shards side by side, which is what keeps
memory bounded, at three windows, and has every byte read once. What a window holds depends on the seed, the
epoch and the part, not on the columns that are read: a position in an order is a number of rows.

The next window is read in another thread while the current one is used. Where it has to be waited for, the
one after it is begun as well, at the same time if it is of another shard.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorpusError
from ..format.layout import shard_path
from ..format.parquet_files import open_parquet, reading
from ..format.schema import FORMAT_VERSION, ROW_SCHEMA
from ..prefetch import in_order
from .order import Order, Stretch

WINDOW_BYTES = 128 << 20
WINDOW_GROUPS = 64
PLAIN_GROUPS = 8
_OPENED_AHEAD = 2
_READERS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows `first` to `stop` − 1 of a row group of an open file; the whole group has `size` bytes."""

    path: Path
    file: pq.ParquetFile
    group: int
    first: int
    stop: int
    size: int
    turn: threading.Lock  # of the file: pyarrow reads a file's row groups one at a time

    def read(self, columns: Sequence[str] | None) -> pa.RecordBatch:
        """The whole row group, or of it the columns (paths as Parquet has them).

        Raises CorpusError where it is damaged.
        """
        with reading(self.path):
            with self.turn:
                table = self.file.read_row_group(self.group, None if columns is None else list(columns))
            (batch,) = table.combine_chunks().to_batches()
        return batch


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that were read together: row k is row `rows_K2[k, 1]` of batch `rows_K2[k, 0]`.

    `paths` are the batches' files; `position` is how many rows of the part come before the first one here.
    """

    paths: Sequence[Path]
    batches: Sequence[pa.RecordBatch]
    rows_K2: npt.NDArray[np.int64]
    position: int = 0

    @classmethod
    def of(cls, found: Sequence[Piece], columns: Sequence[str] | None) -> Window:
        """The rows of these pieces, in order. Raises CorpusError where one is damaged."""
        rows = [
            np.stack([np.full(piece.stop - piece.first, at), np.arange(piece.first, piece.stop)], 1)
            for at, piece in enumerate(found)
        ]
        batches = [piece.read(columns) for piece in found]
        return cls([piece.path for piece in found], batches, np.concatenate(rows))


def open_shard(out: Path, shard: int) -> tuple[Path, pq.ParquetFile]:
    """A shard's path and open file; CorpusError where it cannot be read or has other columns."""
    path = shard_path(out, shard)
    file = open_parquet(path)
    with reading(path):
        same = file.schema_arrow.equals(ROW_SCHEMA)
    if not same:
        raise CorpusError(f"{path}: damaged: the columns are not those of format {FORMAT_VERSION}")
    return path, file


def pieces(out: Path, stretch: Stretch) -> list[Piece]:
    """The row groups of a stretch; reads the shard's footer. CorpusError as `open_shard` has it."""
    path, file = open_shard(out, stretch.shard)
    found, start, turn = [], 0, threading.Lock()
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        stop = group.num_rows if stretch.stop is None else min(stretch.stop - start, group.num_rows)
        first = max(stretch.first - start, 0)
        if first < stop:
            found.append(Piece(path, file, number, first, stop, group.total_byte_size, turn))
        start += group.num_rows
    if stretch.stop is not None and start < stretch.stop:
        raise CorpusError(f"{path}: damaged: it has {start} rows, fewer than are planned")
    return found


def windows(
    out: Path, stretches: Iterable[Stretch], order: Order, columns: Sequence[str] | None, skip: int = 0
) -> Iterator[Window]:
    """The part's rows but for the first `skip`, window by window; of windows that are skipped, only footers
    are read.

    Raises CorpusError where a shard is damaged.
    """
    opener, reader = ThreadPoolExecutor(1, "open"), ThreadPoolExecutor(_READERS, "read")
    try:
        opened = in_order(opener, lambda stretch: pieces(out, stretch), stretches, _OPENED_AHEAD)
        planned = _planned((piece for one in opened for piece in one.result()), order, skip)
        for future in in_order(reader, lambda plan: _read(plan, order, columns), planned, 1):
            yield future.result()
    finally:
        opener.shutdown(wait=False, cancel_futures=True)
        reader.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Planned:
    number: int
    pieces: Sequence[Piece]
    position: int
    skip: int


def _planned(found: Iterable[Piece], order: Order, skip: int) -> Iterator[_Planned]:
    """What each window holds, from footers alone; those that are skipped whole are left out."""
    position = 0
    for number, gathered in enumerate(_gathered(found, order.seed is not None)):
        rows = sum(piece.stop - piece.first for piece in gathered)
        if position + rows > skip:
            yield _Planned(number, gathered, position, max(skip - position, 0))
        position += rows


def _gathered(found: Iterable[Piece], together: bool) -> Iterator[list[Piece]]:
    gathered: list[Piece] = []
    size, windows = 0, 0
    for piece in found:
        most = WINDOW_GROUPS if together else min(max(1, windows - _READERS), PLAIN_GROUPS)
        if gathered and (size + piece.size > WINDOW_BYTES or len(gathered) == most):
            yield gathered
            gathered, size, windows = [], 0, windows + 1
        gathered.append(piece)
        size += piece.size
    if gathered:
        yield gathered


def _read(plan: _Planned, order: Order, columns: Sequence[str] | None) -> Window:
    window = Window.of(plan.pieces, columns)
    rows_K2 = window.rows_K2[order.permutation(plan.number, len(window.rows_K2))][plan.skip :]
    return replace(window, rows_K2=rows_K2, position=plan.position + plan.skip)

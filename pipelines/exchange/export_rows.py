"""The rows of a corpus as an export reads them: those that are not rejected, numbered in plan order.

A corpus is exported as it was recorded, or not at all: each shard is held against `corpus.json` before its
first row is read. One that is unfinished has no such record; of it, page checksums are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ..corpus.columns import as_dict, parquet_columns
from ..corpus.order import Stretch
from ..corpus.reader import Corpus
from ..corpus.views import View
from ..corpus.windows import pieces
from ..errors import CorpusError
from ..format.layout import CORPUS, SHARDS, shard_name, shard_path
from ..format.manifest import as_entries, recorded
from ..format.parquet_files import open_parquet, reading
from ..storage.json_files import canonical, fingerprint, sha256_hex


class Source:
    """A corpus, its shards as they were when this was made, and a view of their annotations.

    Attributes:
        corpus: the corpus.
        shards: those that are committed.
        images_by_shard: how many rows of each are not rejected.
        images: how many of all are not.
        rejected: rows that are.

    Raises CorpusError for a damaged corpus, and for one that is not finished unless `unfinished` allows it.

    """

    def __init__(self, corpus: Corpus, view: View, *, unfinished: bool) -> None:
        if not corpus.complete and not unfinished:
            raise CorpusError(
                f"{corpus.path}: not finished: it has no {CORPUS}; "
                "finish its run, or export what is there with --unfinished"
            )
        self.corpus = corpus
        self.shards = corpus.shards
        self._view = view
        self._recorded = recorded(corpus.path)
        self._checked: set[int] = set()
        names = {shard_name(shard) for shard in self.shards}
        lost = sorted(name for name in self._recorded if name.startswith(SHARDS) and name not in names)
        if lost and corpus.complete:
            raise CorpusError(
                f"{corpus.path}: {lost[0]} is missing; the command that made the corpus makes it again"
            )
        counts = [self._count(shard) for shard in self.shards]
        self.images_by_shard = [usable for usable, _ in counts]
        self._ends = np.cumsum(np.array(self.images_by_shard, np.int64))
        self.images = sum(self.images_by_shard)
        self.rejected = sum(rejected for _, rejected in counts)

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, as plain JSON."""
        known = {entry["path"]: entry for entry in as_entries(self._recorded)}
        entries = [known.get(name, name) for name in map(shard_name, self.shards)]
        return {
            "run_digest": self.corpus.run.digest,
            "shards": len(self.shards),
            "shards_sha256": sha256_hex(canonical({"shards": entries})),
            "images": self.images,
        }

    def rows(self, first: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows number `first` to `stop` − 1, their annotations those of the view."""
        place = int(np.searchsorted(self._ends, first, side="right"))
        while place < len(self.shards) and (start := self._start(place)) < stop:
            for number, row in enumerate(self.shard_rows(self.shards[place], columns), start):
                if first <= number < stop:
                    yield row
            place += 1

    def _start(self, place: int) -> int:
        """How many rows come before those of the shard at this place."""
        return int(self._ends[place - 1]) if place else 0

    def shard_rows(self, shard: int, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of one shard that are not rejected."""
        self._check(shard)
        for piece in pieces(self.corpus.path, Stretch(shard, 0, None)):
            batch = piece.read(parquet_columns(columns, self._view))
            usable = pc.fill_null(pc.not_equal(batch["status"], "rejected"), True)  # null is for as_dict
            for row in np.flatnonzero(usable.to_numpy(zero_copy_only=False)).tolist():
                yield as_dict(piece.path, batch, row, self._view)

    def _count(self, shard: int) -> tuple[int, int]:
        path = shard_path(self.corpus.path, shard)
        with open_parquet(path) as file, reading(path):
            status = file.read(["status"])["status"]
        rejected = int(pc.sum(pc.equal(status, "rejected")).as_py() or 0)
        return len(status) - rejected, rejected

    def _check(self, shard: int) -> None:
        """Hold a shard against what the corpus recorded of it, once."""
        path, name = shard_path(self.corpus.path, shard), shard_name(shard)
        if shard in self._checked or (name not in self._recorded and not self.corpus.complete):
            return
        with reading(path):
            now = fingerprint(path)
        if now != self._recorded.get(name):
            raise CorpusError(
                f"{self.corpus.path}: {name} is damaged: it is not what was recorded when the corpus was "
                "closed; maskmill verify lists all that is off"
            )
        self._checked.add(shard)

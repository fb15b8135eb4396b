"""What a rerun was given against what is planned: the same, more, or something else.

The plan is read a row group at a time and held against the inputs in the same place, where they nearly always
are; only where one differs are they looked up by id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import CorpusError, UsageError
from ..format.plan import Plan
from ..inputs.moved import Moved, plain
from ..inputs.table import INPUT_SCHEMA
from .moves import moves


def new_inputs(
    out: Path, plan: Plan, wanted: pa.Table, *, extend: bool, may_move: bool
) -> tuple[pa.Table, Moved]:
    """The wanted inputs that are not planned, and where those lie that are planned elsewhere.

    Raises CorpusError where the two differ: otherwise than by places, which `may_move`, or, to `extend`, by
    inputs that are new or left out.
    """
    wanted_ids = wanted["image_id"].to_numpy()
    planned_ids = plan.column("image_id").to_numpy()
    new = wanted.filter(pa.array(~np.isin(wanted_ids, planned_ids, assume_unique=True)))
    differences = _Differences(out, plan, wanted, wanted_ids)
    gone, elsewhere = differences.keys()
    moved: Moved | None = Moved()
    if len(elsewhere):
        moved = moves(differences.uris) if may_move else None
    if extend and new.num_rows:
        again = new.filter(pc.is_in(new["uri"], value_set=plan.column("uri")))
        if again.num_rows:
            key, uri = again["key"][0].as_py(), again["uri"][0].as_py()
            raise CorpusError(
                f"{out}: {uri} is already planned under another key than {key!r}; give only the new inputs"
            )
    found = [
        *([] if moved is not None else _examples("now lies elsewhere", elsewhere)),
        *([] if extend else _examples("is new", new["key"])),
        *([] if extend else _examples("is no longer there", gone)),
    ]
    if found or moved is None:
        cure = ""
        if moved is not None and len(gone) and new.num_rows and plain(new["uri"][0].as_py())[1]:
            cure = "if an archive was moved, link it to where it was (its path is in its images' addresses), "
        elif moved is not None and new.num_rows and not extend:
            cure = "add the new inputs with --extend, "
        raise CorpusError(
            f"{out}: the inputs are not those of the plan: {'; '.join(found)}: {cure}"
            "start anew with --overwrite, or choose another --out"
        )
    return new, moved


class _Differences:
    """What is planned against what is wanted, a row group of the plan at a time."""

    def __init__(self, out: Path, plan: Plan, wanted: pa.Table, wanted_ids: npt.NDArray[np.int64]) -> None:
        self._out = out
        self._plan = plan
        self._wanted = wanted
        self._ids = wanted_ids
        self._order: npt.NDArray[np.int64] | None = None  # of the ids; not needed while nothing differs

    def keys(self) -> tuple[list[str], pa.ChunkedArray]:
        """The keys that are no longer wanted, and those of inputs that lie elsewhere now; in plan order."""
        gone: list[str] = []
        elsewhere: list[pa.Array] = []
        for was, left_out, now in self._groups():
            if was is now:
                continue
            gone += left_out.to_pylist()
            if pc.any(pc.not_equal(was["key"], now["key"])).as_py():
                raise UsageError(f"{self._out}: a new input has the image_id of a planned one; rename it")
            elsewhere += now["key"].filter(pc.not_equal(was["uri"], now["uri"])).chunks
        return gone, pa.chunked_array(elsewhere, pa.string())

    def uris(self) -> Iterator[tuple[str, str]]:
        """Of each planned input that is wanted: its uri in the plan, and now."""
        for was, _, now in self._groups():
            yield from zip(was["uri"].to_pylist(), now["uri"].to_pylist(), strict=True)

    def _groups(self) -> Iterator[tuple[pa.Table, pa.ChunkedArray, pa.Table]]:
        """Of each row group of the plan: the inputs that are wanted, the keys of the others, and the inputs
        as they are now, the very same table where nothing differs.
        """
        row = 0
        for planned in self._plan.tables(("image_id", *INPUT_SCHEMA.names)):
            same_rows = self._wanted.slice(row, planned.num_rows).select(planned.schema.names)
            row += planned.num_rows
            if same_rows.equals(planned):
                yield planned, planned["key"].slice(0, 0), planned
                continue
            is_wanted, now = self._find(planned["image_id"].to_numpy())
            yield planned.filter(is_wanted), planned["key"].filter(pc.invert(is_wanted)), now

    def _find(self, ids: npt.NDArray[np.int64]) -> tuple[pa.Array, pa.Table]:
        """Which of the ids are wanted, and the inputs that they are, in the order of the ids."""
        if self._order is None:
            for column, name in enumerate(INPUT_SCHEMA.names, start=1):
                whole = self._wanted[name].cast(pa.large_string()).combine_chunks()
                self._wanted = self._wanted.set_column(column, name, whole)
            self._order = np.argsort(self._ids)
        places = np.searchsorted(self._ids, ids, sorter=self._order)
        places = self._order[np.minimum(places, len(self._order) - 1)]
        is_wanted = self._ids[places] == ids
        now = self._wanted.take(pa.array(places[is_wanted])).select(INPUT_SCHEMA.names)
        return pa.array(is_wanted), now.cast(INPUT_SCHEMA)


def _examples(what: str, keys: Sequence[str] | pa.ChunkedArray) -> list[str]:
    if not len(keys):
        return []
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return [f"{keys[0]}{more} {what}"]

"""Where the row of an image is: the plan's ids in memory, sorted, 16 bytes an image."""

from __future__ import annotations

import numpy as np

from ..format.plan import Plan


class Lookup:
    """From an `image_id` to a shard and a row of it. Raises CorpusError where the plan is damaged."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        ids = plan.column("image_id").to_numpy()
        self._rows = np.argsort(ids, kind="stable")
        self._ids = ids[self._rows]

    def find(self, image_id: int) -> tuple[int, int]:
        """The shard, and which row of the shard it is; KeyError for an image that is not planned."""
        at = int(np.searchsorted(self._ids, image_id))
        if at == len(self._ids) or self._ids[at] != image_id:
            raise KeyError(f"{image_id}: there is no such image in the plan")
        return self._plan.place(int(self._rows[at]))

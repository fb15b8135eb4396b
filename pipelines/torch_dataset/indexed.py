"""Any sample of a corpus by its number, at the cost of a row group, of which a few are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ..corpus.columns import check_status
from ..corpus.order import Stretch
from ..corpus.reader import Corpus
from ..corpus.views import View, warn_of
from ..corpus.windows import Window, pieces
from .samples import Sample, Samples, Wanted, opened, sampled

GROUPS_KEPT = 4
"""Row groups whose samples a `CorpusImages` holds, in each process: each comes to about 64 MiB at most."""


class CorpusImages(Dataset[Sample]):
    """The samples of a corpus by number, in the order of the plan; the other arguments as
    `CorpusStream` has them.

    When it is made it reads every shard's statuses. A sample costs its row group, unless it is one of the
    `GROUPS_KEPT` that were used last: neighbours come cheap, shuffled ones do not.
    """

    def __init__(
        self,
        corpus: Corpus | str | Path,
        *,
        status: str | None = "ok",
        view: View | None = None,
        codes: bool = False,
        masks: bool = False,
        images: bool = False,
        moved: Mapping[str, str] | None = None,
    ) -> None:
        check_status(status)
        self.corpus = opened(corpus, moved)
        warn_of(view, self.corpus.run.config, stacklevel=2)
        self._status, self._wanted = status, Wanted(codes, masks, images, view)
        places = [np.zeros((0, 3), np.int64)]
        for shard in self.corpus.shards:
            for piece in pieces(self.corpus.path, Stretch(shard, 0, None)):
                count = np.count_nonzero(sampled(piece.read(["status"]), status))
                within = np.arange(count)
                places.append(np.stack([np.full(count, shard), np.full(count, piece.group), within], 1))
        self._places_K3 = np.concatenate(places)
        self._kept: OrderedDict[tuple[int, int], Samples] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places_K3)

    def __getitem__(self, number: int) -> Sample:
        """Raises IndexError past the end, CorpusError where the sample is damaged."""
        shard, group, place = self._places_K3[number].tolist()
        if (shard, group) not in self._kept:
            while len(self._kept) >= GROUPS_KEPT:
                self._kept.popitem(last=False)
            self._kept[shard, group] = self._read(shard, group)
        self._kept.move_to_end((shard, group))
        sample = self._kept[shard, group].sample(place)
        # Of its own, since what is changed in place would be found changed the next time.
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in sample.items()}

    def _read(self, shard: int, group: int) -> Samples:
        piece = pieces(self.corpus.path, Stretch(shard, 0, None))[group]
        window = Window.of([piece], self._wanted.columns)
        return Samples(self.corpus, self._wanted, window, self._status)

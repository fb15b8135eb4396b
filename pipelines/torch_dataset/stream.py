"""A corpus for PyTorch: one image a sample, boxes and scores as tensors, masks and pixels if asked for.

- `CorpusStream` is iterable and reads each byte once: for training. Ranks and the loader's workers share the
  rows (`pipelines.corpus.order`); a seed shuffles them in windows; its position can be kept and taken up
  again.
- `CorpusImages` is a map: any sample by its number, at the cost of a row group, of which it keeps a few. For
  evaluation, and for samplers of one's own, torch's `DistributedSampler` among them.

    stream = CorpusStream("out/corpus", masks=True, images=True, seed=0)
    loader = DataLoader(stream, batch_size=4, num_workers=2, collate_fn=for_detection)
    for epoch in range(10):
        stream.set_epoch(epoch)
        for images, targets in loader:
            losses = detector(images, targets)

A sample is a dict:

    image_id, key      of the row
    size               (height, width) of the upright image
    boxes              N×4 float32, XYXY; the second corner lies outside: x1 = x_max + 1, whatever
                       convention the corpus's own boxes have
    area               N int64, pixels
    predicted_iou      N float32
    stability_score    N float32
    codes              N run-length codes as Arrow has them, if asked for: `codes.to_pylist()` is what
                       pycocotools takes; what the corpus has, unchecked
    masks              N×H×W bool, if asked for
    image              3×H×W uint8 RGB, if asked for
    position           of a stream: (worker, workers, rows of the worker's share up to this one)

Codes are not even read unless they or masks are asked for. A stream with a `batch_size` hands out several
samples as one dict: `image_id`, `key`, `size`, `masks` and `image` are lists of theirs, `boxes`, `area`,
`predicted_iou`, `stability_score` and `codes` are those of all, end to end, and `count`, int64, says how many
each has; `position` is the last one's. `DataLoader(stream, batch_size=None)`, whose workers pay for every
tensor, is what it is meant for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..corpus.columns import check_status
from ..corpus.order import Order
from ..corpus.reader import Corpus
from ..corpus.views import View, warn_of
from .samples import Sample, Samples, Wanted, joined, opened


class CorpusStream(IterableDataset[Sample]):
    """The samples of a corpus one after another: this rank's share of them, and in it the worker's.

    Args:
        corpus: a `Corpus`, or where one lies.
        status: of the rows; None for all but the rejected, which are never samples.
        view: which annotations are handed out. A sample that has none left stays.
        codes, masks, images: whether samples have them.
        moved: where images lie now, as `Corpus` has it; with a path, since a `Corpus` is given its own.
        batch_size: how many samples are handed out as one; the last ones may be fewer. None for single ones.
        seed: shuffles, differently in each epoch; None keeps the order of the plan.
        rank, world: this process among those that train together. Shares differ by a row of the corpus at
            most; by more samples, where rows of another status are passed over.

    The order is decided by corpus, seed, epoch, `world` and the number of workers. Over all ranks and workers
    each sample comes once. Raises ValueError for a rank or seed that means nothing; CorpusError as `Corpus`.

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
        batch_size: int | None = None,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_status(status)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        Order(seed, 0, rank, world)
        self.corpus = opened(corpus, moved)
        warn_of(view, self.corpus.run.config, stacklevel=2)
        self._status, self._wanted = status, Wanted(codes, masks, images, view)
        self._batch_size = batch_size
        self._seed, self._rank, self._world = seed, rank, world
        self._shards = self.corpus.shards  # the same ones in every worker, whatever is committed meanwhile
        self._epoch = torch.zeros(1, dtype=torch.int64)
        # Seen by workers that stay; where there is no shared memory, a loader has no workers either.
        with suppress(RuntimeError, OSError):
            self._epoch.share_memory_()
        self._begin: tuple[int, int, dict[int, int]] | None = None
        self._workers, self._done = 1, dict[int, int]()

    def set_epoch(self, epoch: int) -> None:
        """What the next iteration is: epoch `epoch` from its beginning."""
        Order(self._seed, epoch)
        self._epoch[0] = epoch
        self._begin, self._done = None, {}

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch = int(self._epoch)
        order = Order(self._seed, epoch, self._rank * workers + worker, self._world * workers)
        skip = self._skipped(epoch, worker, workers)
        self._workers = workers
        of_windows = (
            Samples(self.corpus, self._wanted, window, self._status)
            for window in self.corpus.windows(order, self._wanted.columns, skip)
        )
        size = self._batch_size
        for position, made in _batches(of_windows, size) if size else _ones(of_windows):
            # before the sample is made: one that is damaged is passed by going on after it
            self._done[worker] = position
            sample = made()
            sample["position"] = (worker, workers, position)
            yield sample

    def advance(self, samples: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Note that these samples or targets of `for_detection`, or this batch, were used.

        For a loader with workers, which read ahead of what is used, in processes of their own; without
        workers the stream knows by itself.
        """
        for sample in [samples] if isinstance(samples, Mapping) else samples:
            worker, self._workers, position = sample["position"]
            self._done[worker] = max(position, self._done.get(worker, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain JSON values: of each worker, how many rows of its share are done."""
        return {
            "order": self._identity(),
            "epoch": int(self._epoch),
            "workers": self._workers,
            "done": {str(worker): rows for worker, rows in self._done.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the epoch, and after the rows, of `state_dict`; until `set_epoch` begins another one.

        Raises ValueError where the state is that of another corpus, other shards, seed, rank or world.
        """
        if state["order"] != self._identity():
            raise ValueError(
                f"expected a position in the order {self._identity()}, got one in {state['order']}"
            )
        done = {int(worker): int(rows) for worker, rows in state["done"].items()}
        self.set_epoch(int(state["epoch"]))
        self._workers, self._done = int(state["workers"]), dict(done)
        self._begin = int(state["epoch"]), self._workers, done

    def _skipped(self, epoch: int, worker: int, workers: int) -> int:
        """How many rows of its share a worker has done before."""
        if self._begin is None or self._begin[0] != epoch:
            return 0
        if self._begin[1] != workers:
            raise ValueError(
                f"expected {self._begin[1]} workers, as when the position was kept, got {workers}"
            )
        return self._begin[2].get(worker, 0)

    def _identity(self) -> dict[str, Any]:
        shards = hashlib.sha256(",".join(map(str, self._shards)).encode()).hexdigest()[:16]
        run = self.corpus.run.digest[:16]
        return {"run": run, "shards": shards, "seed": self._seed, "rank": self._rank, "world": self._world}


def _ones(of_windows: Iterable[Samples]) -> Iterator[tuple[int, Callable[[], Sample]]]:
    """Each sample's position, and what makes it."""
    for samples in of_windows:
        for place, position in enumerate(samples.positions):
            yield position, partial(samples.sample, place)


def _batches(of_windows: Iterable[Samples], size: int) -> Iterator[tuple[int, Callable[[], Sample]]]:
    """The same for batches, which go on from window to window."""
    parts: list[Callable[[], Sample]] = []
    missing, position = size, 0
    for samples in of_windows:
        begin = 0
        while begin < len(samples):
            stop = min(begin + missing, len(samples))
            parts.append(partial(samples.batch, begin, stop))
            missing, begin, position = missing - (stop - begin), stop, samples.positions[stop - 1]
            if not missing:
                yield position, partial(joined, parts)
                parts, missing = [], size
    if parts:
        yield position, partial(joined, parts)

"""What a run has left to do: shards that are not there, and rejected images of shards that are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ... import __version__
from ..format import manifest
from ..format.layout import CORPUS
from ..format.records import ShardTask
from ..storage.retries import retrying
from ..text import counted, one_line
from ..workers.tasks import ShardFailure
from ..writing.open import Run
from ..writing.progress import named
from ..writing.rejects import rejected_images, shard_sha256


@dataclass(frozen=True, slots=True)
class Work:
    """What this call has to do; whether the corpus is closed already."""

    run: Run
    todo: Sequence[int]
    again: Mapping[int, frozenset[int]]
    is_closed: bool

    @property
    def shards(self) -> list[int]:
        """The shards to do, in order."""
        return sorted([*self.todo, *self.again])

    @property
    def images(self) -> int:
        """How many images there are to do."""
        return self.run.plan.size(self.todo) + sum(map(len, self.again.values()))

    def facts(self) -> dict[str, Any]:
        """What the log of events says when a run starts."""
        record, plan = self.run.record, self.run.plan
        return {
            "out": str(self.run.out),
            "images_planned": len(plan),
            "shards_planned": len(plan.shards),
            "images_left": self.images,
            "shards_left": len(self.shards),
            "config_digest": record.config_digest,
            "model": record.model_name,
            "weights_sha256": record.weights_sha256,
            "version": __version__,
        }

    def task(self, shard: int) -> ShardTask | ShardFailure:
        """Read what a worker is told of a shard; return a failure where the storage keeps failing."""
        try:
            return retrying(lambda: self._read_task(shard))
        except (OSError, MemoryError) as error:
            return ShardFailure(shard, one_line(error), output=True)

    def _read_task(self, shard: int) -> ShardTask:
        images = self.run.plan.images(shard)
        if shard in self.again:
            chosen = tuple(image for image in images if image.image_id in self.again[shard])
            return ShardTask(shard, chosen, replaces=shard_sha256(self.run.out, shard))
        return ShardTask(shard, tuple(images))


def work_of(run: Run, todo: Sequence[int], retry: Collection[str], console: Console) -> Work:
    """Find what is left to do; `todo` are the shards that are not there. Where rejected images are run again,
    `corpus.json` is removed before any shard changes.

    Tells of it when all is known, since storage that fails has it asked again.
    """
    there = sorted(set(run.plan.shards) - set(todo))
    again, classes = rejected_images(run.out, there, retry) if retry else ({}, Counter())
    if again:
        manifest.reopen(run.out, again)
    is_closed = (run.out / CORPUS).exists()
    if there and todo:
        images = run.plan.size(there)
        shards = counted(len(run.plan.shards), "shard")
        found = f"{len(there)} of {shards} there already ({counted(images, 'image')})"
        console.print(f"{named(run.out)}: {found}")
    if retry and not again:
        found = ", ".join(f"{name} ({count})" for name, count in sorted(classes.items())) or "none"
        console.print(
            f"{named(run.out)}: no image is rejected as {' or '.join(retry)}; the classes there are: {found}"
        )
    return Work(run, todo, again, is_closed)

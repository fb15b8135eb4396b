"""Which image kills its worker, found without punishing its neighbours.

Nothing tells a native crash from a memory kill, and two shards share a worker, so a death accuses every shard
that was in hand. Each is tried alone; one that kills that worker too has its images tried singly; and only an
image that ends three workers by itself is rejected, while the rest of its shard survives. A trial computes
and throws away: innocent images cost their time once more, in the rare case, and the file that is committed
is made in one piece.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace

from ...format.records import PlannedImage, ShardTask

SOLITARY_DEATHS = 3  # of one image, on live nodes, before it is rejected
ROUNDS = 2  # of a shard alone and its images singly, before the shard is given up
LOST_NODES = 20  # under one shard, before it is given up


@dataclass(slots=True, eq=False)
class Suspect:
    """A shard that was in a worker's hands when it died: tried alone, then image by image, then as what is
    left.
    """

    task: ShardTask
    rounds: int = 0
    lost: int = 0
    probing: deque[PlannedImage] = field(default_factory=deque)
    strikes: Counter[int] = field(default_factory=Counter)

    def next_task(self) -> ShardTask:
        """What to try next, on a worker that holds nothing else."""
        if self.probing:
            return replace(self.task, images=(self.probing[0],), probe=True)
        return self.task

    @property
    def is_tried_again(self) -> bool:
        """Whether the next try is of an image that has ended a worker by itself already."""
        return bool(self.probing) and self.strikes[self.probing[0].image_id] > 0

    def survived(self) -> None:
        """The image on trial did not kill its worker."""
        self.probing.popleft()

    def died(self, proof: bool) -> str | None:
        """Its worker died again; `proof` unless the node went too. Returns why the shard is given up, or
        None.
        """
        if not proof:
            self.lost += 1
            return f"its nodes were lost {self.lost} times" if self.lost >= LOST_NODES else None
        if self.probing:
            image = self.probing[0]
            self.strikes[image.image_id] += 1
            if self.strikes[image.image_id] >= SOLITARY_DEATHS:
                self.probing.popleft()
                self.task = replace(self.task, deadly=self.task.deadly | {image.image_id})
            return None
        self.rounds += 1
        if self.rounds > ROUNDS:
            return f"it killed its worker {self.rounds} times, but no single image of it does"
        # By id, which is a hash: neighbours are often bad together, and many bad ones in a row look like
        # workers that die over whatever they get.
        images = (image for image in self.task.images if image.image_id not in self.task.deadly)
        self.probing.extend(sorted(images, key=lambda image: image.image_id))
        return None

"""The circuit breaker: a run that gets nowhere stops, and says why.

With a wrong mount, a missing codec or a list of the wrong files image after image is rejected; on a full disk
the work of shard after shard is lost. Only what this run itself did is counted, so that the same command, run
again, looks anew instead of tripping over the rows that are there. Workers that die are counted in
`pipelines.workers.dispatcher`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config.run import BreakerConfig
from ..errors import BreakerTripped
from ..format.tally import Tally
from ..text import counted
from ..workers.tasks import ShardFailure

CLASSES_TOLD = 4


def too_many_rejected(tally: Tally, limits: BreakerConfig) -> BreakerTripped | None:
    """Return the error that ends a run with too many rejected images, with a diagnosis; None where it may go
    on.

    `tally` is of shards that are committed, so that a run that is stopped, and stopped again when it is run
    again, leaves more behind each time.
    """
    rejected = tally.statuses["rejected"]
    if tally.images < limits.min_images or rejected <= limits.rejected_share * tally.images:
        return None
    classes = [
        f"{count} {name}, such as {tally.examples[name]}"
        for name, count in tally.rejects.most_common(CLASSES_TOLD)
    ]
    left_out = len(tally.rejects) - len(classes)
    more = f"; and {left_out} more classes" if left_out else ""
    first = tally.rejects.most_common(1)[0][0]
    return BreakerTripped(
        f"stopped: this run rejected {rejected} of {counted(tally.images, 'image')}: "
        f"{'; '.join(classes)}{more}. Fix the cause and run the same command with --retry-rejects {first}; "
        "or, if they are rejected rightly, go on with --set breaker.rejected_share=1"
    )


def check_unwritten(failures: Sequence[ShardFailure], workers: int, limits: BreakerConfig) -> None:
    """Raise BreakerTripped where the corpus's storage failed for too many shards; `failures` are those since
    one was written.
    """
    unwritten = [failure for failure in failures if failure.output]
    if len(unwritten) >= limits.unwritten_shards * max(1, workers):
        raise BreakerTripped(
            f"stopped: the corpus's storage failed for the last {counted(len(unwritten), 'shard')}; shard "
            f"{unwritten[-1].shard}: {unwritten[-1].reason}: fix this, then run the same command again"
        )

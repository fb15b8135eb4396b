"""Shards made by this process alone: what its events are, and how it is ended between two of them."""

from collections import Counter

import pytest

from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import IncompleteRun
from maskmill.pipelines.format.records import ShardTask
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.workers import local_crew
from maskmill.pipelines.workers.events import Progress, Watcher
from maskmill.pipelines.workers.local_crew import LocalCrew
from maskmill.pipelines.workers.tasks import Job, ShardFailure, ShardReceipt, this_place
from tests.support.crews import outcomes_of


class Told(Watcher):
    """Writes down which workers were ready."""

    def __init__(self):
        self.ready = []

    def worker_ready(self, worker):
        self.ready.append(worker)


@pytest.fixture
def made(monkeypatch):
    """Shards of two batches that make nothing; which were begun, and which were given up in between."""
    begun, left = [], []

    def shard_steps(task, _generator, _job):
        begun.append(task.shard)
        try:
            for images in (1, 2):
                yield Tally(Counter(ok=images))
        except GeneratorExit:
            left.append(task.shard)
            raise
        return ShardReceipt(task.shard, True, Tally(Counter(ok=2)))

    monkeypatch.setattr(local_crew, "make_generator", lambda _job: None)
    monkeypatch.setattr(local_crew, "shard_steps", shard_steps)
    return begun, left


def crew_of(tmp_path, tasks, watcher=None):
    job = Job(tmp_path, load_config(None, ["workers=0"]), "")
    return LocalCrew(job, range(len(tasks)), tasks.__getitem__, watcher or Watcher())


def test_without_shards_it_loads_its_weights_and_ends(tmp_path, made):
    told = Told()
    assert list(crew_of(tmp_path, [], told).run()) == []
    assert told.ready == [this_place()]


def test_weights_that_find_no_memory_leave_the_run_incomplete(tmp_path, monkeypatch):
    def fail(_job):
        raise MemoryError("2 GiB are too little")

    monkeypatch.setattr(local_crew, "make_generator", fail)
    with pytest.raises(IncompleteRun, match=r"^no shard was begun: 2 GiB are too little$"):
        next(crew_of(tmp_path, []).run())


def test_each_batch_is_told_then_the_outcome_then_that_nothing_is_in_hand(tmp_path, made):
    failure = ShardFailure(0, "the plan cannot be read", output=True)
    events = list(crew_of(tmp_path, [failure, ShardTask(1, ())]).run())
    assert events[0] is failure
    assert [event.in_hand[0].images for event in events[1:3]] == [1, 2]
    assert events[3] == ShardReceipt(1, True, Tally(Counter(ok=2)))
    assert events[4] == Progress((), 1)
    assert len(events) == 5


def test_progress_on_top_of_what_is_done_leaves_that_as_it_is():
    done = Tally(Counter(ok=5))
    both = Progress((Tally(Counter(ok=1)), Tally(Counter(rejected=2))), 2).on_top_of(done)
    assert (both.images, both.statuses["rejected"], done.images) == (8, 2, 5)


@pytest.mark.parametrize("images", [[], [1]], ids=["between two shards", "in one"])
def test_a_crew_that_is_stopped_finishes_the_shard_in_hand(tmp_path, made, images):
    tasks = [ShardTask(shard, ()) for shard in range(3)]
    crew = crew_of(tmp_path, tasks)
    outcomes = outcomes_of(crew, lambda progress: [tally.images for tally in progress.in_hand] != images)
    assert [outcome.shard for outcome in outcomes] == [0]
    assert made == ([0], [])


def test_a_crew_whose_events_nobody_takes_any_more_ends_the_shard_where_it_is(tmp_path, made):
    """As Ctrl-C does."""
    events = crew_of(tmp_path, [ShardTask(shard, ()) for shard in range(3)]).run()
    assert next(events).in_hand[0].images == 1
    events.close()
    assert made == ([0], [0])

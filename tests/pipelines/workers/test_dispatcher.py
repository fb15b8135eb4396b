"""The driver's decisions, with workers that are none: each call is answered at once, deaths are arranged."""

from collections import Counter

import pytest

from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import BreakerTripped, IncompleteRun
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.format.records import PlannedImage, ShardTask
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.workers import dispatcher as dispatch_module
from maskmill.pipelines.workers.crew import WorkerLost
from maskmill.pipelines.workers.dispatcher import Dispatcher
from maskmill.pipelines.workers.events import Loss, Progress, Watcher
from maskmill.pipelines.workers.tasks import Job, ShardFailure, ShardReceipt, WorkerPlace
from tests.support.crews import outcomes_of


class Actors:
    """Workers that die over each image of `deadly`, and write down what they are given."""

    def __init__(self, deadly=()):
        self.deadly = frozenset(deadly)
        self.given = []
        self._calls = {}

    def start(self):
        return object()

    def call(self, _worker, method, *arguments):
        ref = object()
        self._calls[ref] = method, arguments
        return ref

    def answered(self, refs, _seconds):
        return list(refs)

    def answer(self, ref):
        method, arguments = self._calls.pop(ref)
        return getattr(self, method)(*arguments)

    def end(self, _workers, _refs):
        pass

    def node_lives(self, _node):
        return True

    def hello(self):
        return WorkerPlace("node", "host", 1)

    def load(self):
        pass

    def stats(self):
        return {}

    def run(self, task):
        self.given.append(task)
        tried = {image.image_id for image in task.images} - task.deadly
        if tried & self.deadly:
            raise WorkerLost("a crash")
        statuses = Counter(ok=len(tried), rejected=len(task.images) - len(tried))
        return ShardReceipt(task.shard, not task.probe, Tally(statuses=statuses))


def tasks_of(shards, size):
    """Shards of `size` images, whose ids are those of their keys `0.png`, `1.png`, …"""
    return [
        ShardTask(
            shard,
            tuple(
                PlannedImage(image_id(f"{row}.png"), f"{row}.png", f"/{row}.png", shard, row)
                for row in range(shard * size, (shard + 1) * size)
            ),
        )
        for shard in range(shards)
    ]


def ids(task, rows):
    return {image.image_id for image in task.images if image.row in rows}


def dispatch(actors, tasks, tmp_path, goes_on=lambda _progress: True, workers=1, watcher=None, settings=()):
    job = Job(tmp_path, load_config(None, settings), "")
    dispatcher = Dispatcher(job, range(len(tasks)), tasks.__getitem__, actors, workers, watcher)
    return outcomes_of(dispatcher, goes_on)


def test_workers_that_die_over_whatever_they_get_end_the_run(tmp_path):
    tasks = tasks_of(2, 64)
    actors = Actors(image.image_id for task in tasks for image in task.images)
    with pytest.raises(IncompleteRun, match="10 workers in a row died on their images, and none finished"):
        dispatch(actors, tasks, tmp_path)


def test_small_shards_all_of_whose_images_were_refused_unread_are_no_progress(tmp_path):
    tasks = tasks_of(9, 2)
    actors = Actors(image.image_id for task in tasks for image in task.images)
    with pytest.raises(IncompleteRun, match="10 workers in a row died on their images"):
        dispatch(actors, tasks, tmp_path)


@pytest.mark.parametrize("bad", [4, 20])
def test_neighbours_that_each_end_three_workers_are_refused_and_end_no_run(tmp_path, bad):
    tasks = tasks_of(2, 64)
    actors = Actors(ids(tasks[0], range(8, 8 + bad)))
    outcomes = dispatch(actors, tasks, tmp_path)
    assert {outcome.shard: outcome.tally.statuses["rejected"] for outcome in outcomes} == {0: bad, 1: 0}
    alone = Counter(task.images[0].image_id for task in actors.given if task.probe)
    assert {image for image, tries in alone.items() if tries == 3} == actors.deadly


@pytest.mark.parametrize("bad", [0, 3, 8])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_of_nothing_but_deadly_images_is_refused_whole_and_ends_no_run(tmp_path, bad, workers):
    """The others show, each time it looks like workers that die over whatever they get, that they do not."""
    tasks = tasks_of(9, 32)
    actors = Actors(ids(tasks[bad], range(288)))
    outcomes = dispatch(actors, tasks, tmp_path, workers=workers)
    rejected = {outcome.shard: outcome.tally.statuses["rejected"] for outcome in outcomes}
    assert rejected == {shard: 32 * (shard == bad) for shard in range(9)}


@pytest.mark.parametrize("when", [0, 3, 6])
def test_workers_that_die_over_whatever_they_get_from_some_moment_on_end_the_run(tmp_path, when):
    """An image that came through before tells."""
    tasks = tasks_of(9, 32)
    actors = Actors()

    def break_down(_progress):
        if len(actors.given) > when:
            actors.deadly = frozenset(image.image_id for task in tasks for image in task.images)
        return True

    with pytest.raises(IncompleteRun, match="10 workers in a row died on their images"):
        dispatch(actors, tasks, tmp_path, break_down)
    alone = Counter(task.images[0].image_id for task in actors.given if task.probe)
    assert sum(tries == 3 for tries in alone.values()) < 10, "hardly any image pays for it"


def test_a_control_that_its_storage_does_not_give_ends_no_run_and_is_no_shard_undone(tmp_path):
    class Flaky(Actors):
        def run(self, task):
            if task.probe and task.shard != 0:
                self.given.append(task)
                return ShardFailure(task.shard, "the mount is gone")
            return super().run(task)

    tasks = tasks_of(9, 16)
    outcomes = dispatch(Flaky(ids(tasks[0], range(16))), tasks, tmp_path)
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes)
    assert sorted(outcome.shard for outcome in outcomes) == list(range(9))


def test_a_task_that_cannot_be_made_is_a_shard_undone_and_the_others_are_done(tmp_path):
    tasks = tasks_of(4, 2)
    tasks[1] = ShardFailure(1, "the plan cannot be read", output=True)
    outcomes = dispatch(Actors(), tasks, tmp_path)
    assert sorted(outcome.shard for outcome in outcomes if isinstance(outcome, ShardReceipt)) == [0, 2, 3]
    assert tasks[1] in outcomes


def test_a_run_that_is_told_to_stop_finishes_what_is_in_hand(tmp_path):
    actors = Actors()
    seen = dispatch(actors, tasks_of(9, 2), tmp_path, lambda _progress: not actors.given)
    assert sorted(outcome.shard for outcome in seen) == [0, 1]


def test_whoever_takes_no_more_events_leaves_no_worker_behind(tmp_path):
    class Ending(Actors):
        ended = ()

        def end(self, workers, refs):
            self.ended = (len(workers), len(refs))

    actors = Ending()
    tasks, job = tasks_of(9, 2), Job(tmp_path, load_config(None, []), "")
    events = Dispatcher(job, range(9), tasks.__getitem__, actors, 1).run()
    assert next(events) == Progress([], 1)
    events.close()
    assert actors.ended == (1, 0)


@pytest.mark.parametrize(
    ("workers", "stall_seconds", "each"),
    [
        (4, 1800, 1.0),
        (64, 1800, 1.0),
        (256, 1800, 4.0),  # 64 a second
        (256, 8, 2.0),  # but four times before one that is well would seem to have stalled
    ],
)
def test_workers_are_asked_how_far_they_are_once_a_second_or_64_of_them(
    tmp_path, monkeypatch, workers, stall_seconds, each
):
    clock = [1000.0]
    monkeypatch.setattr(dispatch_module.time, "monotonic", lambda: clock[0])

    class Slow(Actors):
        """Its shards take 17 seconds; a turn of the driver a quarter of one."""

        begun, asked = None, 0

        def answered(self, refs, _seconds):
            clock[0] += 0.25
            running = [ref for ref in refs if self._calls[ref][0] == "run"]
            if running and self.begun is None:
                self.begun = clock[0]
            waits = self.begun is None or clock[0] - self.begun < 17
            return [ref for ref in refs if not (waits and ref in running)]

        def stats(self):
            self.asked += 1
            return {shard: Tally(statuses=Counter(ok=self.asked)) for shard in range(workers)}

    actors = Slow()
    limits = ["cluster.shards_in_flight=1", f"cluster.stall_seconds={stall_seconds}"]
    job = Job(tmp_path, load_config(None, limits), "")
    tasks = tasks_of(workers, 1)
    dispatcher = Dispatcher(job, range(workers), tasks.__getitem__, actors, workers)
    outcomes = outcomes_of(dispatcher)
    assert len(outcomes) == len(actors.given) == workers, "none was thought to have stalled"
    assert actors.asked / workers == pytest.approx(17 / each, abs=1.5)


@pytest.mark.parametrize(("least", "shards"), [(1, 6), (3, 6), (3, 2)])
def test_nothing_is_handed_out_before_enough_workers_are_ready(tmp_path, least, shards):
    """One is ready at once, another in each fifth turn; two shards are no work for three workers."""
    ready_at_first_shard = []

    class OneByOne(Actors):
        turns = ready = 0

        def answered(self, refs, _seconds):
            self.turns += 1
            loading = [ref for ref in refs if self._calls[ref][0] == "load"]
            held_back = loading if self.turns % 5 else loading[1:]
            return [ref for ref in refs if ref not in held_back]

        def load(self):
            self.ready += 1

        def run(self, task):
            ready_at_first_shard.append(self.ready)
            return super().run(task)

    job = Job(tmp_path, load_config(None, [f"cluster.min_workers={least}", "workers=4"]), "")
    dispatcher = Dispatcher(job, range(shards), tasks_of(shards, 1).__getitem__, OneByOne(), 4)
    assert len(outcomes_of(dispatcher)) == shards
    assert ready_at_first_shard[0] == min(least, shards)


class Told(Watcher):
    """Writes down what it is told."""

    def __init__(self):
        self.ready, self.lost, self.loads = [], [], []

    def worker_ready(self, worker):
        self.ready.append(worker)

    def worker_lost(self, loss):
        self.lost.append(loss)

    def load(self, queued, in_hand, workers):
        self.loads.append((queued, in_hand, workers))


class Unhurried(Actors):
    """Shards take it a while."""

    turns = 0

    def answered(self, refs, _seconds):
        self.turns += 1
        return [ref for ref in refs if self._calls[ref][0] != "run" or self.turns > 3]


def test_a_watcher_is_told_of_workers_that_come_and_go_and_of_the_load(tmp_path):
    tasks, told = tasks_of(4, 1), Told()
    actors = Unhurried(ids(tasks[0], [0]))
    dispatch(actors, tasks, tmp_path, watcher=told)
    place = WorkerPlace("node", "host", 1)
    deaths = 5  # with its neighbour, alone, and the image three times
    assert told.lost[0] == Loss(place, "a crash", (0, 1), starting=False)
    assert told.lost[1:] == [Loss(place, "a crash", (0,), starting=False)] * (deaths - 1)
    assert told.ready == [place] * (deaths + 1)
    assert told.loads[:2] == [(4, 0, 1), (2, 2, 1)]
    assert (4, 0, 0) in told.loads, "suspects wait too"
    assert told.loads[-1] == (0, 0, 0)


def test_a_watcher_is_told_of_a_worker_that_dies_before_it_is_placed(tmp_path):
    class Stillborn(Actors):
        def hello(self):
            raise WorkerLost("its node is gone")

    told = Told()
    with pytest.raises(BreakerTripped, match="3 workers in a row died while starting"):
        dispatch(Stillborn(), tasks_of(1, 1), tmp_path, watcher=told)
    assert told.lost == [Loss(None, "its node is gone", (), starting=True)] * 3
    assert told.ready == []

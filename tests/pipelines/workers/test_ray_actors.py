"""Shards on a real Ray: workers that crash, hang and misbehave, seen through the files that are left."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import ConfigError, IncompleteRun, UsageError
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.records import PlannedImage, ShardTask
from maskmill.pipelines.format.run_record import write_run
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.signals import orderly
from maskmill.pipelines.workers.placement import (
    Node,
    Placement,
    check_sees_its_gpus,
    fitting_shard_size,
    place,
)
from maskmill.pipelines.workers.tasks import Job, ShardReceipt
from maskmill.pipelines.writing.rejects import shard_sha256
from tests.support.corpora import make_record
from tests.support.crews import outcomes_of


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        (["threads_per_worker=8"], [(2, 0)], "expected a node with 8 CPU"),
        (["model.device=cuda"], [(8, 0)], "expected a node with 1 CPU.* and 1 GPU"),
        (["cluster.gpus_per_worker=2"], [(8, 1), (8, 1)], "and 2 GPU"),  # two, but not on one node
        (["threads_per_worker=16"], [(64, 0), (8, 1)], "expected a node with 16 CPU.* and 1 GPU"),
        ([], [(0, 0)], "expected a node with 1 CPU"),
        (["cluster.gpus_per_worker=1.5"], [(8, 4)], "gpus_per_worker: expected a fraction"),
        (["workers=2", "cluster.min_workers=3"], [(8, 0)], "min_workers: expected at most workers, 2, got 3"),
    ],
)
def test_a_worker_that_fits_on_no_node_is_refused_where_none_will_be_added(overrides, nodes, expected):
    with pytest.raises(UsageError, match=expected):
        place(load_config(None, overrides), [Node(*node) for node in nodes], grows=False)


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        ([], [(2, 0)], (1, 2, 0.0)),
        ([], [(1, 0)], (1, 1, 0.0)),
        ([], [(16, 0)], (8, 2, 0.0)),
        (["workers=2"], [(2, 0)], (2, 1, 0.0)),
        (["workers=3"], [(2, 0)], (3, 1, 0.0)),
        (["threads_per_worker=3"], [(8, 0)], (2, 3, 0.0)),
        (["threads_per_worker=8"], [(8, 0)], (1, 8, 0.0)),  # what is started here for it on two CPUs
        ([], [(16, 2)], (2, 8, 1.0)),
        (["cluster.gpus_per_worker=0.5"], [(16, 2)], (4, 4, 0.5)),
        (["cluster.gpus_per_worker=0.6"], [(16, 2)], (2, 8, 0.6)),  # no worker has parts of two GPUs
        (["cluster.gpus_per_worker=0.4"], [(16, 4)], (8, 2, 0.4)),
        (["model.device=cpu"], [(16, 2)], (8, 2, 0.0)),
        (["cluster.gpus_per_worker=0"], [(16, 2)], (8, 2, 0.0)),
        # More than one node: no worker may need what none of them has alone.
        ([], [(8, 0), (8, 1)], (1, 8, 1.0)),
        ([], [(8, 1), (8, 1), (64, 0)], (2, 8, 1.0)),
        (["workers=1"], [(4, 0), (4, 0)], (1, 4, 0.0)),
        (["workers=2"], [(6, 0), (2, 0)], (2, 3, 0.0)),
        ([], [(3, 0), (3, 0)], (2, 3, 0.0)),
        # The autoscaler adds nodes: the head has nothing, or one of eight is there already.
        (["model.device=cuda", "workers=4", "threads_per_worker=6"], [(0, 0)], (4, 6, 1.0)),
        (["workers=8"], [(0, 0), (8, 1)], (8, 8, 1.0)),
    ],
)
def test_placement_fills_in_what_is_left_open(overrides, nodes, expected):
    placement = place(load_config(None, overrides), [Node(*node) for node in nodes])
    assert (placement.workers, placement.threads, placement.gpus) == expected


@pytest.mark.parametrize(
    ("overrides", "nodes"),
    [
        ([], []),
        (["workers=4"], [(0, 0)]),
        (["threads_per_worker=4"], [(2, 0)]),
        (["model.device=cuda", "workers=4"], [(8, 0)]),
        (["cluster.gpus_per_worker=1", "threads_per_worker=4"], [(8, 0)]),
    ],
)
def test_where_no_node_tells_how_large_it_is_the_command_has_to(overrides, nodes):
    with pytest.raises(UsageError, match="expected --workers and --cpus-per-worker"):
        place(load_config(None, overrides), [Node(*node) for node in nodes])


@pytest.mark.parametrize(
    ("overrides", "images", "node", "size"),
    [
        (["workers=8"], 200, (64, 8), 4),  # 50 shards
        ([], 200, (64, 8), 4),
        ([], 200, (16, 0), 4),  # eight workers of two CPUs
        (["workers=0"], 200, (16, 0), 25),
        ([], 1, (2, 0), 4),
        ([], 1000, (64, 8), 16),
        (["model.device=cpu"], 1000, (8, 8), 32),
        ([], 10**6, (64, 8), 256),
        ([], 10**6, (64, 0), 64),
        ([], 2000, None, 8),  # a cluster: 32 workers are assumed
        (["workers=8"], 2000, None, 32),
        ([], 10**6, None, 256),
        (["model.device=cpu"], 10**6, None, 64),
    ],
)
def test_a_shard_is_so_small_that_all_workers_have_some(overrides, images, node, size):
    nodes = None if node is None else [Node(*node)]
    assert fitting_shard_size(load_config(None, overrides), images, nodes) == size


@pytest.fixture
def job(tmp_path, tiny_settings, local_ray):
    config = load_config(None, [*tiny_settings, "workers=2"])
    record = make_record()
    write_run(tmp_path / "corpus", record)
    return Job(tmp_path / "corpus", config, record.digest, threads=1)


def test_a_node_that_does_not_see_the_corpus_ends_the_run(job, photos):
    (job.out / "run.json").unlink()
    with pytest.raises(UsageError, match="every node has to see the same --out"):
        dispatch(job, tasks_of(photos, 1))


def test_a_node_with_another_maskmill_ends_the_run(job, photos):
    with pytest.raises(
        UsageError, match=r"expected maskmill 0\.0\.9, which started the run, got .*/maskmill\)"
    ):
        dispatch(replace(job, version="0.0.9"), tasks_of(photos, 1))


FRAMES = "The actor died because of an error raised in its creation task, ray::X.__init__()\n  File x\n"


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        ("", "WorkerLost", "no reason given"),
        ("gone", "WorkerLost", "it could not load maskmill: gone"),
        (f"{FRAMES}MemoryError", "WorkerLost", "MemoryError"),
        (f"{FRAMES}OSError: [Errno 116] Stale file handle", "WorkerLost", "Stale file handle"),
        (f"{FRAMES}numpy._core._exceptions._ArrayMemoryError: no", "WorkerLost", "ArrayMemoryError"),
        (f"{FRAMES}RuntimeError: can't start new thread", "WorkerLost", "new thread"),
        (f"{FRAMES}ImportError: x.so: Cannot allocate memory", "WorkerLost", "Cannot allocate memory"),
        (
            f"{FRAMES}ModuleNotFoundError: No module named 'maskmill'",
            "UsageError",
            "No module named 'maskmill'",
        ),
        (f"{FRAMES}ImportError: first\n\nsecond: see https://host/x", "UsageError", "ImportError: first: is"),
        (f"{FRAMES}AttributeError: no 'ShardWorker'", "UsageError", "or of another version"),
    ],
)
def test_a_worker_that_could_not_be_loaded(raised, kind, said):
    from maskmill.pipelines.workers.ray_actors import not_loaded

    error = not_loaded(raised)
    assert type(error).__name__ == kind
    assert said in str(error)
    assert "\n" not in str(error)


def tasks_of(photos, shards):
    """Shards of two images."""
    paths = sorted(photos.rglob("*.png"))
    images = [
        PlannedImage(image_id(str(path)), str(path), str(path), row // 2, row)
        for row, path in enumerate(paths[: 2 * shards])
    ]
    return [ShardTask(shard, tuple(images[2 * shard : 2 * shard + 2])) for shard in range(shards)]


def dispatch(job, tasks, worker=None, workers=2):
    from maskmill.pipelines.workers.dispatcher import Dispatcher
    from maskmill.pipelines.workers.ray_actors import RayActors, ShardWorker

    actors = RayActors(job, Placement(workers, 1, 0.0), worker or ShardWorker)
    return outcomes_of(Dispatcher(job, range(len(tasks)), tasks.__getitem__, actors, workers))


def quick_worker():
    """A worker whose network finds nothing: a death costs a process, not the loading of torch.

    Made in a function, like the workers that misbehave, so that it travels to its process by value.
    """
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class FindsNothing:
        def prepare(self, image_HW3):
            return image_HW3

        def generate_batch(self, images):
            from maskmill.engine.records import DROP_REASONS, GeneratedMasks

            return [GeneratedMasks([], 0, dict.fromkeys(DROP_REASONS, 0), {}) for _ in images]

    class Quick(ShardWorker):
        def load(self):
            self._generator = FindsNothing()

    return Quick


def statuses(job, shard):
    return pq.read_table(shard_path(job.out, shard))["status"].to_pylist()


@pytest.mark.parametrize(
    ("given", "visible"),
    [((), None), ((), "0"), (("0",), None), (("0",), ""), (("0",), "1"), (("0", "1"), "1,0")],
)
def test_a_process_that_sees_other_gpus_than_its_own_is_refused(given, visible):
    with pytest.raises(UsageError, match=r"^gpu-7: a worker was given .*CUDA_VISIBLE_DEVICES"):
        check_sees_its_gpus("gpu-7", given, visible)


@pytest.mark.parametrize(("given", "visible"), [((), ""), (("0",), "0"), (("2", "3"), "2,3")])
def test_a_process_that_sees_its_own_gpus_is_well(given, visible):
    check_sees_its_gpus("gpu-7", given, visible)
    assert visible.split(",") == list(given or [""])


def test_a_worker_that_sees_a_gpu_it_was_not_given_ends_the_run(job, photos):
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Greedy(ShardWorker):
        def __init__(self, job, gpus):
            super().__init__(job, gpus)
            os.environ["CUDA_VISIBLE_DEVICES"] = "7"

    with pytest.raises(UsageError, match=r"was given no GPU, and sees 7 \(CUDA_VISIBLE_DEVICES\)"):
        dispatch(job, tasks_of(photos, 1), Greedy, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "expected"), [(1, ["0", "1"]), (0.5, ["0", "0", "1", "1"])])
def test_workers_are_pinned_to_logical_gpus(share, expected):
    """In a process of its own: Ray tells them apart, and each sees its own alone."""
    script = f"""
import json, ray
from maskmill.pipelines.workers.ray_actors import RayActors
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.workers.placement import Placement, check_sees_its_gpus
from maskmill.pipelines.workers.tasks import Job
ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
from maskmill.pipelines.workers.ray_actors import ShardWorker
import os
class Told(ShardWorker):
    def stats(self):
        place = self._place()
        check_sees_its_gpus(place.host, place.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return list(place.gpus)
actors = RayActors(Job("/nowhere", load_config(None, []), ""), Placement({len(expected)}, 1, {share}), Told)
workers = [actors.start() for _ in range({len(expected)})]
print(json.dumps(sorted(sum((actors.answer(actors.call(worker, "stats")) for worker in workers), []))))
"""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == expected, done.stderr


def test_a_bug_ends_the_run_with_the_workers_traceback(job, photos):
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Buggy(ShardWorker):
        def load(self):
            return {}["a bug in the worker"]

    with pytest.raises(KeyError) as caught:
        dispatch(job, tasks_of(photos, 1), Buggy)
    assert 'return {}["a bug in the worker"]' in str(caught.value)


def test_wrong_use_found_by_a_worker_stays_wrong_use(job, photos):
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Misled(ShardWorker):
        def load(self):
            raise ConfigError("no such weights on this node")

    with pytest.raises(ConfigError, match=r"^no such weights on this node$"):
        dispatch(job, tasks_of(photos, 1), Misled)


def test_workers_that_die_while_starting_end_the_run_as_incomplete(job, photos):
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Stillborn(ShardWorker):
        def load(self):
            os._exit(1)

    with pytest.raises(IncompleteRun, match="3 workers in a row died while starting"):
        dispatch(job, tasks_of(photos, 1), Stillborn, workers=1)


def test_workers_without_memory_for_the_weights_end_the_run_as_incomplete(job, photos):
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Cramped(ShardWorker):
        def load(self):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # torch's own words

    with pytest.raises(IncompleteRun, match=r"died while starting; the last: .*can't allocate memory"):
        dispatch(job, tasks_of(photos, 1), Cramped, workers=1)


def test_a_cpu_worker_sees_no_gpu(job, photos):
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Seeing(ShardWorker):
        def load(self):
            super().load()
            assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

    (receipt,) = dispatch(job, tasks_of(photos, 1), Seeing)
    assert receipt.committed


def test_a_worker_keeps_to_its_threads_and_to_its_part_of_the_memory(job, photos):
    from maskmill.pipelines.workers import memory
    from maskmill.pipelines.workers.ray_actors import ShardWorker

    class Counting(ShardWorker):
        def load(self):
            import pyarrow
            import torch

            super().load()
            counts = torch.get_num_threads(), torch.get_num_interop_threads(), pyarrow.cpu_count()
            assert counts == (1, 1, 1)
            assert self._job.neighbours == 3

    (receipt,) = dispatch(replace(job, neighbours=3), tasks_of(photos, 1), Counting)
    assert receipt.committed

    class Cramped(ShardWorker):
        def load(self):
            memory.memory_of_machine = lambda: (2**30, 2**30)
            super().load()

    with pytest.raises(UsageError, match=r"3 workers on this machine: .* there is 0\.33 GiB for each"):
        dispatch(replace(job, neighbours=3), tasks_of(photos, 1), Cramped)


def test_an_image_that_kills_its_workers_is_a_row_and_its_neighbours_survive(job, photos):
    tasks = tasks_of(photos, 3)
    deadly = tasks[1].images[0]

    class Mortal(quick_worker()):
        def run(self, task):
            if deadly.image_id in {image.image_id for image in task.images} - task.deadly:
                os._exit(11)
            return super().run(task)

    outcomes = dispatch(job, tasks, Mortal)
    assert sorted(outcome.shard for outcome in outcomes) == [0, 1, 2]
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes)
    assert [statuses(job, shard) for shard in range(3)] == [
        ["empty"] * 2,
        ["rejected", "empty"],
        ["empty"] * 2,
    ]
    row = pq.read_table(shard_path(job.out, 1)).to_pylist()[0]
    assert (row["image_id"], row["error"]["class"]) == (deadly.image_id, "WorkerDied")


@pytest.mark.slow
def test_an_error_of_cuda_ends_its_worker_and_not_the_run(job, photos):
    tasks = tasks_of(photos, 2)
    deadly = tasks[1].images[0]

    class Faulty(quick_worker()):
        def run(self, task):
            def fail(_images):
                raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")

            if deadly.image_id in {image.image_id for image in task.images} - task.deadly:
                self._generator.generate_batch = fail
            return super().run(task)

    outcomes = dispatch(job, tasks, Faulty)
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes)
    assert [statuses(job, shard) for shard in range(2)] == [["empty"] * 2, ["rejected", "empty"]]


def test_a_worker_that_hangs_is_replaced(job, photos, tiny_settings, tmp_path):
    once = tmp_path / "hung-once"

    class Hanging(quick_worker()):
        def run(self, task):
            try:
                once.touch(exist_ok=False)
            except FileExistsError:
                return super().run(task)
            time.sleep(600)
            raise AssertionError("it was to be killed")

    config = load_config(None, [*tiny_settings, "cluster.stall_seconds=5"])
    impatient = Job(job.out, config, job.run_digest, threads=1)
    outcomes = dispatch(impatient, tasks_of(photos, 1), Hanging, workers=1)
    assert [type(outcome) for outcome in outcomes] == [ShardReceipt]
    assert committed_shards(job.out) == {0}


def test_workers_that_die_at_once_again_and_again_end_the_run(job, photos, tiny_settings):
    class Doomed(quick_worker()):
        def run(self, _task):
            os._exit(11)

    config = load_config(None, [*tiny_settings, "breaker.worker_deaths=2"])
    with pytest.raises(IncompleteRun, match="2 workers in a row died on their images, and none finished"):
        dispatch(replace(job, config=config), tasks_of(photos, 2), Doomed, workers=1)
    assert committed_shards(job.out) == set()


def test_refused_images_are_run_again_on_ray_too(job, photos, tmp_path):
    (task,) = tasks_of(photos, 1)
    spoilt = replace(task.images[1], uri=str(tmp_path / "not-there.png"))
    assert [outcome.committed for outcome in dispatch(job, [replace(task, images=(task.images[0], spoilt))])]
    kept, refused = pq.read_table(shard_path(job.out, 0)).to_pylist()
    assert refused["error"]["class"] == "Missing"
    again = replace(task, images=(task.images[1],), replaces=shard_sha256(job.out, 0))
    dispatch(job, [again], quick_worker())
    after = pq.read_table(shard_path(job.out, 0)).to_pylist()
    assert after[0] == kept
    assert (after[1]["image_id"], after[1]["status"]) == (refused["image_id"], "empty")


def interrupted(job, tasks, worker, begun):
    """Run until an interruption that comes when the file `begun` is there; the seconds from then on."""
    from maskmill.pipelines.workers.dispatcher import Dispatcher
    from maskmill.pipelines.workers.ray_actors import RayActors

    actors = RayActors(job, Placement(1, 1, 0.0), worker)
    sent = []

    def interrupt(_progress):
        if begun.exists() and not sent:
            sent.append(time.monotonic())
            signal.raise_signal(signal.SIGTERM)
        return True

    with pytest.raises(KeyboardInterrupt), orderly():
        outcomes_of(Dispatcher(job, range(len(tasks)), tasks.__getitem__, actors, 1), interrupt)
    return time.monotonic() - sent[0]


def test_an_interruption_lets_the_shards_in_hand_finish_and_starts_no_other(job, photos, tmp_path):
    begun = tmp_path / "begun"

    class Slow(quick_worker()):
        def run(self, task):
            begun.touch()
            time.sleep(2)
            return super().run(task)

    interrupted(job, tasks_of(photos, 5), Slow, begun)
    assert committed_shards(job.out) == {0, 1}


def test_an_interruption_waits_no_longer_than_the_grace(job, photos, tiny_settings, tmp_path):
    begun = tmp_path / "begun"

    class Hanging(quick_worker()):
        def run(self, _task):
            begun.touch()
            time.sleep(600)

    config = load_config(None, [*tiny_settings, "cluster.grace_seconds=0.5"])
    assert interrupted(replace(job, config=config), tasks_of(photos, 2), Hanging, begun) < 30
    assert committed_shards(job.out) == set()

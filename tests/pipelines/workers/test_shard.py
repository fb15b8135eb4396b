"""`run_shard`: what is a rejected row, tried again, given up, a bug; then the rows that it makes."""

import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from maskmill.engine.records import DROP_REASONS, GeneratedMasks
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.errors import ConfigError, UsageError
from maskmill.pipelines.format.ids import image_id
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.records import PlannedImage, ShardTask
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.storage import retries
from maskmill.pipelines.storage.retries import retrying
from maskmill.pipelines.workers import shard as worker
from maskmill.pipelines.workers.loading import make_generator, resolve_device
from maskmill.pipelines.workers.shard import run_shard
from maskmill.pipelines.workers.tasks import Job, ShardFailure, ShardReceipt


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def job(tmp_path, tiny_settings):
    return Job(tmp_path / "corpus", load_config(None, tiny_settings), "f" * 64, threads=1)


@pytest.fixture(scope="module")
def generator(tmp_path_factory, tiny_settings):
    return make_generator(
        Job(tmp_path_factory.mktemp("unused"), load_config(None, tiny_settings), "", threads=1)
    )


def planned(paths, shard=0):
    return tuple(
        PlannedImage(image_id(path.name), path.name, str(path), shard, row) for row, path in enumerate(paths)
    )


def rows_of(job, shard=0):
    return pq.read_table(shard_path(job.out, shard)).to_pylist()


class Counting:
    """A generator that finds nothing, and says how often it was asked."""

    def __init__(self):
        self.sizes = []

    def prepare(self, image_HW3):
        return image_HW3

    def generate_batch(self, images):
        self.sizes.append(len(images))
        return [GeneratedMasks([], 0, dict.fromkeys(DROP_REASONS, 0), {"encode": 1.0}) for _ in images]


def test_a_shard_without_images_commits_an_empty_file(job):
    receipt = run_shard(ShardTask(0, ()), Counting(), job)
    assert receipt.committed
    assert rows_of(job) == []


def test_bad_images_are_rows_and_stop_nothing(job, generator, photos, tmp_path):
    good = photos / "coffee" / "0.png"
    paths = [
        tmp_path / name for name in ("a-empty.jpg", "b-text.jpg", "c-cut.png", "d-gone.png", "e-good.png")
    ]
    paths[0].write_bytes(b"")
    paths[1].write_text("not an image")
    paths[2].write_bytes(good.read_bytes()[:3000])
    shutil.copy(good, paths[4])
    receipt = run_shard(ShardTask(0, planned(paths)), generator, job)
    rows = rows_of(job)
    assert [row["key"] for row in rows] == [path.name for path in paths]
    assert [row["status"] for row in rows] == ["rejected"] * 4 + ["ok"]
    classes = [row["error"]["class"] for row in rows[:4]]
    assert classes == ["EmptyFile", "NotAnImage", "Truncated", "Missing"]
    assert dict(receipt.tally.rejects) == dict.fromkeys(classes, 1)
    assert dict(receipt.tally.statuses) == {"rejected": 4, "ok": 1}


def test_a_limit_on_pixels_is_the_configurations(job, generator, photos, tiny_settings):
    small = Job(job.out, load_config(None, [*tiny_settings, "input.max_pixels=100"]), "", threads=1)
    run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"])), generator, small)
    (row,) = rows_of(job)
    assert row["error"]["class"] == "TooLarge"


def test_a_deadly_image_is_rejected_without_being_read(job, generator, photos):
    images = planned([photos / "coffee" / "0.png", photos / "coffee" / "1.png"])
    gone = PlannedImage(images[1].image_id, images[1].key, "/nowhere/at/all.png", 0, 1)
    run_shard(ShardTask(0, (images[0], gone), deadly=frozenset({gone.image_id})), generator, job)
    rows = rows_of(job)
    assert [row["status"] for row in rows] == ["ok", "rejected"]
    assert rows[1]["error"]["class"] == "WorkerDied"


def test_storage_that_keeps_failing_gives_the_shard_up_and_leaves_nothing(job, photos):
    job.out.mkdir()
    (job.out / "shards").write_text("a file where the folder should be")
    outcome = run_shard(ShardTask(3, planned([photos / "coffee" / "0.png"])), Counting(), job)
    assert isinstance(outcome, ShardFailure)
    assert outcome.shard == 3
    assert "Error: " in outcome.reason
    assert [path.name for path in job.out.iterdir()] == ["shards"]


def test_a_folder_of_inputs_that_is_gone_is_infrastructure_not_a_thousand_rejected_rows(job, tmp_path):
    outcome = run_shard(ShardTask(0, planned([tmp_path / "unmounted" / "a.png"])), Counting(), job)
    assert isinstance(outcome, ShardFailure)
    assert not shard_path(job.out, 0).exists()


OUT_OF_MEMORY = [
    MemoryError("cannot allocate"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("failures", [1, 2])
def test_memory_that_runs_out_is_tried_once_more_and_then_gives_the_shard_up(job, photos, error, failures):
    class Hungry(Counting):
        def generate_batch(self, images):
            self.sizes.append(0)
            if len(self.sizes) <= failures:
                raise error
            return super().generate_batch(images)

    outcome = run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"])), Hungry(), job)
    if failures == 1:
        assert outcome.committed
        assert outcome.tally.images == 1
    else:
        assert outcome == ShardFailure(0, " ".join(f"{type(error).__name__}: {error}".split()))
        assert not shard_path(job.out, 0).exists()


@pytest.mark.parametrize("bug", [IndexError("1"), RuntimeError("shapes do not match")])
def test_a_bug_travels_up(job, photos, bug):
    class Buggy(Counting):
        def generate_batch(self, _images):
            raise bug

    with pytest.raises(type(bug)):
        run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"])), Buggy(), job)
    assert not shard_path(job.out, 0).exists()


@pytest.mark.parametrize(("failures", "answers"), [(0, True), (3, True), (4, False)])
def test_retrying_tries_four_times(failures, answers):
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) <= failures:
            raise OSError("again")
        return "done"

    if answers:
        assert retrying(flaky) == "done"
    else:
        with pytest.raises(OSError, match="again"):
            retrying(flaky)
    assert len(calls) == min(failures + 1, retries.ATTEMPTS)


def test_pauses_double_and_are_drawn_anew_each_time(monkeypatch):
    def fail():
        raise OSError("again")

    pauses = []
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    for _ in range(2):
        with pytest.raises(OSError, match="again"):
            retrying(fail)
    assert len(pauses) == 6
    for pause, middle in zip(pauses, (1, 2, 4, 1, 2, 4), strict=True):
        assert middle / 2 <= pause <= middle * 1.5
    assert pauses[:3] != pauses[3:]


def test_a_finished_shard_is_committed_with_more_patience_than_an_image_is_read(job, photos, monkeypatch):
    calls = []
    commit = worker.commit_table

    def flaky(*arguments):
        calls.append(1)
        if len(calls) < retries.COMMIT_ATTEMPTS:
            raise OSError("the storage is away")
        return commit(*arguments)

    monkeypatch.setattr(worker, "commit_table", flaky)
    assert run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"])), Counting(), job).committed
    assert len(calls) == retries.COMMIT_ATTEMPTS > retries.ATTEMPTS


def test_retrying_leaves_other_errors_alone():
    calls = []

    def wrong():
        calls.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        retrying(wrong)
    assert len(calls) == 1


def test_the_second_to_commit_leaves_the_first_ones_file(job, photos):
    task = ShardTask(0, planned([photos / "coffee" / "0.png"]))
    assert run_shard(task, Counting(), job).committed
    before = shard_path(job.out, 0).read_bytes()
    again = run_shard(task, Counting(), job)
    assert isinstance(again, ShardReceipt)
    assert not again.committed
    assert shard_path(job.out, 0).read_bytes() == before


def test_a_probe_commits_nothing(job, photos):
    receipt = run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"]), probe=True), Counting(), job)
    assert receipt.tally.images == 1
    assert not job.out.exists()


def test_rows_are_in_plan_order_and_agree_with_the_receipt(job, generator, photos):
    paths = sorted(photos.rglob("*.png"))
    seen = []
    receipt = run_shard(
        ShardTask(7, planned(paths, 7)), generator, job, lambda tally: seen.append(tally.images)
    )
    rows = rows_of(job, 7)
    assert [row["uri"] for row in rows] == [str(path) for path in paths]
    assert seen == list(range(1, len(paths) + 1))
    assert receipt.tally.masks == sum(len(row["annotations"]) for row in rows) > 0
    assert receipt.tally.candidates == sum(row["candidates"] for row in rows)
    for row in rows:
        assert row["candidates"] == len(row["annotations"]) + sum(row["drops"].values())


def test_the_footer_has_the_stages_of_the_shard(job, generator, photos):
    run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"])), generator, job)
    footer = pq.read_metadata(shard_path(job.out, 0)).metadata
    seconds = json.loads(footer[b"maskmill.seconds"])
    assert {"read", "decode", "wait", "encode", "prompt", "nms", "rle", "table"} <= set(seconds)
    assert min(seconds.values()) >= 0


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_encode_batch_images_go_through_the_network_together(job, photos, tiny_settings, batch, sizes):
    settings = load_config(None, [*tiny_settings, f"generator.encode_batch={batch}"])
    counting = Counting()
    paths = sorted(photos.rglob("*.png"))[:5]
    run_shard(ShardTask(0, planned(paths)), counting, Job(job.out, settings, "", threads=1))
    assert counting.sizes == sizes


def test_on_a_gpu_two_batches_are_worked_on_side_by_side(job, photos, monkeypatch):
    # Two, no more, each in a thread; and rows keep the plan's order although the first batch takes longer.
    both, running, most = threading.Barrier(2, timeout=10), set(), []

    class Waiting(Counting):
        def generate_batch(self, images):
            running.add(threading.get_ident())
            most.append(len(running))
            if both.wait() == 0:
                time.sleep(0.05)
            running.discard(threading.get_ident())
            return super().generate_batch(images)

    monkeypatch.setattr(worker, "batches_at_once", lambda _: 2)
    paths = sorted(photos.rglob("*.png"))[:6]
    run_shard(ShardTask(0, planned(paths)), Waiting(), job)
    assert [row["uri"] for row in rows_of(job)] == [str(path) for path in paths]
    assert max(most) == 2


def test_the_threads_that_decode_prepare_the_images_too(job, photos, generator, monkeypatch):
    threads, given = [], []

    class Watched:
        def prepare(self, image_HW3):
            threads.append(threading.current_thread().name)
            return generator.prepare(image_HW3)

        def generate_batch(self, images):
            given.extend(images)
            return generator.generate_batch(images)

    paths = sorted(photos.rglob("*.png"))[:3]
    receipt = run_shard(ShardTask(0, planned(paths)), Watched(), job)
    assert {name.partition("_")[0] for name in threads} == {"decode"}
    assert len(given) == 3
    assert receipt.tally.seconds["resize"] >= sum(image.seconds for image in given) > 0
    prepared = rows_of(job)
    monkeypatch.setattr(Watched, "prepare", lambda _self, image_HW3: image_HW3)
    again = Job(job.out.with_name("again"), job.config, "", threads=1)
    run_shard(ShardTask(0, planned(paths)), Watched(), again)
    assert rows_of(again) == prepared


def test_how_many_batches_are_worked_on_side_by_side(monkeypatch):
    model = load_config(None, ["model.device=auto"]).model
    for found, expected in ((False, 1), (True, 2)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert worker.batches_at_once(model) == expected


def test_no_more_images_are_decoded_than_are_asked_for_ahead(job, photos, tiny_settings, monkeypatch):
    settings = load_config(None, [*tiny_settings, "cluster.images_ahead=2"])
    read = []
    monkeypatch.setattr(
        worker, "read_input", lambda uri: read.append(uri) or (photos / "coffee" / "0.png").read_bytes()
    )

    class Watching(Counting):
        def generate_batch(self, images):
            done = len(self.sizes)
            assert len(read) <= done + 1 + 2 + 1, "the one in use, two ahead, and the one being handed over"
            return super().generate_batch(images)

    run_shard(ShardTask(0, planned(sorted(photos.rglob("*.png")))), Watching(), Job(job.out, settings, ""))
    assert len(read) == 12


def test_images_are_embedded_where_asked(job, photos, tiny_settings):
    settings = load_config(None, [*tiny_settings, "embed_images=true"])
    path = photos / "coffee" / "0.png"
    run_shard(ShardTask(0, planned([path])), Counting(), Job(job.out, settings, ""))
    (row,) = rows_of(job)
    assert row["image"]["bytes"] == path.read_bytes()


def test_tallies_add_up():
    total = Tally()
    one = Tally()
    one.statuses["ok"] += 2
    one.drops["nms"] += 3
    one.masks = 4
    one.add_seconds({"encode": 0.5})
    for _ in range(2):
        total.add(one)
    assert (total.images, total.drops["nms"], total.masks, total.seconds["encode"]) == (4, 6, 8, 1.0)


def test_weights_that_are_not_there_are_wrong_use(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.pth"):
        make_generator(Job(tmp_path, load_config(None, [f"model.checkpoint={tmp_path}/gone.pth"]), ""))


def test_other_weights_than_the_runs_are_wrong_use(job, tiny_weights, tmp_path, tiny_settings):
    wanted = hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    make_generator(replace(job, weights_sha256=wanted))
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_weights.read_bytes())
    config = load_config(None, [*tiny_settings, f"model.checkpoint={other}"])
    make_generator(replace(job, config=config, weights_sha256=wanted))
    other.write_bytes(tiny_weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UsageError, match=f"expected the run's weights of nano, with sha256 {wanted}, got "):
        make_generator(replace(job, config=config, weights_sha256=wanted))


def test_a_gpu_that_is_not_there_is_wrong_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU"):
        resolve_device("cuda")
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_gpu_that_is_not_there_leaves_no_corpus(monkeypatch, capsys, photos, tmp_path, workers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = tmp_path / "corpus"
    assert main(["generate", str(photos), "-o", str(out), "--device", "cuda", "--workers", workers]) == 2
    assert capsys.readouterr().err == (
        "maskmill: model.device: expected cpu or auto, got cuda, and torch finds no GPU\n"
    )
    assert not out.exists()


@pytest.mark.parametrize("failures", [0, 3, 4])
def test_reads_that_are_tried_again_are_counted_whether_or_not_they_help(job, photos, monkeypatch, failures):
    def read(uri):
        tried.append(uri)
        if uri == str(paths[1]) and tried.count(uri) <= failures:
            raise OSError("again")
        return paths[0].read_bytes()

    tried, paths = [], [photos / "coffee" / f"{number}.png" for number in range(2)]
    monkeypatch.setattr(worker, "read_input", read)
    outcome = run_shard(ShardTask(0, planned(paths)), Counting(), job)
    if failures == 4:
        assert outcome == ShardFailure(0, "OSError: again")
        assert outcome.retries == Counter(read=3)
    else:
        assert outcome.tally.retries == Counter(read=failures)


def test_commits_that_are_tried_again_are_counted_and_who_did_it_is_told(job, photos, monkeypatch):
    def commit(*arguments):
        tried.append(arguments)
        if len(tried) < 3:
            raise OSError("again")
        return True

    tried = []
    monkeypatch.setattr(worker, "commit_table", commit)
    receipt = run_shard(ShardTask(0, planned([photos / "coffee" / "0.png"])), Counting(), job)
    assert receipt.tally.retries == Counter(read=0, write=2)
    assert receipt.worker == f"{socket.gethostname()}:{os.getpid()}"
    assert receipt.seconds >= receipt.tally.seconds["write"] > 0

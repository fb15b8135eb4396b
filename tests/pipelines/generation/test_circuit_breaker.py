"""The circuit breaker: how many refusals are too many, what it says, and how to go on."""

import shutil
from collections import Counter

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import BreakerConfig
from maskmill.pipelines.errors import IncompleteRun
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.generation.circuit_breaker import check_unwritten, too_many_rejected
from maskmill.pipelines.storage import retries
from maskmill.pipelines.workers import shard as worker
from maskmill.pipelines.workers.tasks import ShardFailure
from tests.support.commands import words


def tally(ok, **refused):
    counts = Counter(ok=ok, rejected=sum(refused.values()))
    examples = {name: f"{name}.png (why)" for name in refused}
    return Tally(statuses=counts, rejects=Counter(refused), examples=examples)


@pytest.mark.parametrize(
    ("done", "limits"),
    [
        (Tally(), {}),
        (tally(0, Corrupt=99), {}),  # too few to tell
        (tally(50, Corrupt=50), {}),  # half is not most
        (tally(0, Corrupt=10**6), {"rejected_share": 1}),
        (tally(1, Corrupt=9), {"rejected_share": 0.9, "min_images": 10}),
    ],
)
def test_a_run_goes_on(done, limits):
    assert too_many_rejected(done, BreakerConfig(**limits)) is None


@pytest.mark.parametrize(
    ("done", "limits"),
    [
        (tally(0, Corrupt=100), {}),
        (tally(49, Corrupt=51), {}),
        (tally(49, Corrupt=25, Missing=26), {}),
        (tally(9, Corrupt=1), {"rejected_share": 0, "min_images": 10}),
    ],
)
def test_a_run_stops(done, limits):
    assert str(too_many_rejected(done, BreakerConfig(**limits))).startswith("stopped: ")


def test_it_says_which_classes_how_often_one_image_of_each_and_what_to_do():
    done = tally(0, Missing=90, Corrupt=7, EmptyFile=6, TooLarge=5, Truncated=1)
    told = str(too_many_rejected(done, BreakerConfig()))
    assert "this run rejected 109 of 109 images: 90 Missing, such as Missing.png (why); 7" in told
    assert "5 TooLarge, such as TooLarge.png (why); and 1 more classes. Fix" in told
    assert "--retry-rejects Missing" in told
    assert "--set breaker.rejected_share=1" in told


UNWRITTEN, UNREAD = ShardFailure(7, "the disk is full", output=True), ShardFailure(8, "the mount is gone")


@pytest.mark.parametrize(
    ("failures", "workers", "stops"),
    [
        ([], 1, False),
        ([UNWRITTEN] * 2, 1, False),
        ([UNWRITTEN] * 3, 1, True),
        ([UNWRITTEN] * 3, 0, True),  # workers that have all died
        ([UNWRITTEN] * 5, 2, False),
        ([UNWRITTEN] * 6, 2, True),
        ([UNREAD] * 99, 1, False),  # the next inputs may lie elsewhere
        ([UNWRITTEN, UNREAD, UNWRITTEN], 1, False),
        ([UNREAD, *[UNWRITTEN] * 3], 1, True),
    ],
)
def test_shards_that_cannot_be_written_stop_a_run_by_and_by(failures, workers, stops):
    if not stops:
        check_unwritten(failures, workers, BreakerConfig())
        return
    with pytest.raises(IncompleteRun, match=r"for the last \d shards; shard 7: the disk is full: fix this"):
        check_unwritten(failures, workers, BreakerConfig())


def test_a_storage_that_takes_nothing_ends_the_run_before_all_is_computed(
    photos, tiny_settings, tmp_path, monkeypatch, capsys
):
    def fail(_out, shard, *_rest):
        tried.append(shard)
        raise OSError("the disk is full")

    tried = []
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(worker, "commit_table", fail)
    assert main(words(photos, tmp_path / "corpus", tiny_settings, "--workers", "0")) == 4
    said = capsys.readouterr().err
    assert "the corpus's storage failed for the last 3 shards; shard 2: OSError: the disk is full" in said
    assert sorted(set(tried)) == [0, 1, 2], "of six"


def test_tallies_keep_the_first_example():
    total = Tally()
    for why in ("first", "second"):
        total.add(Tally(examples={"Corrupt": why}))
    assert total.examples == {"Corrupt": "first"}


def test_a_run_of_refused_images_stops_with_4_goes_on_when_asked_again_and_ends_when_told(
    photos, tiny_settings, tmp_path, capsys
):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number in range(11):
        (collection / f"{number:02}.png").write_text("not an image")
    shutil.copy(photos / "coffee" / "0.png", collection / "99.png")
    typed = words(collection, out, [*tiny_settings, "breaker.min_images=4"], "--workers", "0")
    done = []
    for _ in range(2):
        assert main(typed) == 4
        said = capsys.readouterr().err
        assert "this run rejected 4 of 4 images: 4 NotAnImage, such as 0" in said
        done.append(len(committed_shards(out)))
    assert 0 < done[0] < done[1] < 6, "the rows that are there are not counted again"
    assert main([*typed, "--set", "breaker.rejected_share=1"]) == 0
    assert main(["verify", str(out)]) == 0


def test_a_run_whose_last_shard_makes_the_refused_too_many_is_done(tiny_settings, tmp_path):
    """There is nothing left that stopping could save."""
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number in range(4):
        (collection / f"{number}.png").write_text("not an image")
    typed = words(collection, out, [*tiny_settings, "breaker.min_images=4"], "--workers", "0")
    assert main(typed) == 5
    assert main(["verify", str(out)]) == 0


def test_a_shard_far_larger_than_what_is_judged_is_committed_before_the_run_is_stopped(
    tiny_settings, tmp_path, capsys
):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number in range(16):
        (collection / f"{number:02}.png").write_text("not an image")
    typed = words(collection, out, [*tiny_settings, "breaker.min_images=2", "shard_size=8"], "--workers", "0")
    assert main(typed) == 4
    assert "stopped: this run rejected 8 of 8 images" in capsys.readouterr().err
    assert committed_shards(out) == {0}, "and the second was not begun"

"""How `benchmarks/bench_overhead.py` reads a corpus's times: worked out by hand."""

import os

import pytest

from benchmarks.bench_overhead import all_quiet, middle, time_commits
from maskmill.pipelines.format.layout import shard_path
from tests.support.corpora import make_corpus, make_photos

SECOND = 1_000_000_000


@pytest.fixture
def corpus(tmp_path):
    """Twelve images in four shards, committed at seconds 100, 101, 112 and 113."""
    out = make_corpus(make_photos(tmp_path / "photos", 12), tmp_path / "corpus")
    for shard, second in enumerate((100, 101, 112, 113)):
        os.utime(shard_path(out, shard), ns=(second * SECOND, second * SECOND))
    return out


@pytest.mark.parametrize(
    ("in_hand", "seconds", "images"),
    [
        (1, 13 / 9, 9),  # one shard after the other: the first one's commit starts the clock
        (2, 12 / 6, 6),  # two by turns: the clock starts when both are there
    ],
)
def test_the_clock_starts_with_the_first_shards_in_hand(corpus, in_hand, seconds, images):
    timed = time_commits(corpus, 3, in_hand)
    assert timed["seconds"] == pytest.approx(seconds)
    assert timed["images"] == images


def test_stages_are_an_images_share_of_what_the_footers_say(corpus):
    assert time_commits(corpus, 3, 1)["stages"] == {"decode": pytest.approx(4 * 0.25 / 12)}


def test_the_middle_run_counts():
    runs = [{"seconds": seconds} for seconds in (3.0, 1.0, 2.0)]
    assert middle(runs) is runs[2]
    assert middle(runs[:2]) is runs[1]  # of two the faster one: a run, not a mean of runs


@pytest.mark.parametrize(
    ("told", "quiet"), [([None], None), ([True], True), ([True, False], False), ([False, None], None)]
)
def test_one_busy_run_makes_all_doubtful(told, quiet):
    assert all_quiet([{"quiet": one} for one in told]) is quiet

"""A finished corpus, damaged hundreds of times: all of it is found. An unfinished one: what can be, is.

And what was found once stays found: no rerun closes a damaged corpus with new checksums.
"""

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import CorpusError
from maskmill.pipelines.format import manifest
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.verification.corpus import UNFINISHED, verify
from maskmill.pipelines.writing import close
from tests.support.corpora import fill_shard, make_corpus, make_photos, open_corpus
from tests.support.damage import KINDS, PLAN, edit_score, masks, rewrite

SEEDS = 7
SHARD_0, SHARD_1 = "shards/shard-000000.parquet", "shards/shard-000001.parquet"
damage_score = masks(edit_score)
"""Sound Parquet, a possible value: only a checksum can tell."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("damage") / "photos", 12)


@pytest.fixture(scope="module")
def sound(photos) -> Path:
    return make_corpus(photos, photos.with_name("corpus"))


@pytest.fixture
def corpus(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "corpus"))


@pytest.fixture
def more(tmp_path) -> Path:
    """Two inputs that the corpus does not have."""
    folder = make_photos(tmp_path / "more", 2)
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"new-{path.name}")
    return folder


def finish(run) -> None:
    """What a run does with a corpus that is open: the shards that are left, then `corpus.json`."""
    for shard in run.todo():
        fill_shard(run, shard)
    close.finish_corpus(run.out, run.plan.shards)


def damaged(
    corpus: Path, folder: Path, kinds: Iterable[str], seeds: Iterable[int]
) -> dict[str, list[tuple[int, bool]]]:
    """Kind → seed, and whether the damage was found with the right name, for each copy of the corpus."""
    before = set(verify(corpus).problems)
    results: dict[str, list[tuple[int, bool]]] = {}
    for kind in kinds:
        for seed in seeds:
            copy = Path(shutil.copytree(corpus, folder / "copy"))
            name = KINDS[kind].damage(copy, random.Random(f"{kind} {seed}")).rpartition("/")[2]
            problems = set(verify(copy, workers=1).problems) - before
            results.setdefault(kind, []).append((seed, any(name in problem for problem in problems)))
            shutil.rmtree(copy)
    return results


def show(title: str, results: dict[str, list[tuple[int, bool]]]) -> None:
    print(f"\n{title}")
    for kind, outcomes in results.items():
        print(f"  {kind:32} {sum(found for _, found in outcomes):4} of {len(outcomes)}")


def missed(results: dict[str, list[tuple[int, bool]]]) -> list[tuple[str, int]]:
    return [(kind, seed) for kind, outcomes in results.items() for seed, found in outcomes if not found]


def test_all_damage_of_a_finished_corpus_is_found(sound, tmp_path):
    assert verify(sound).ok
    results = damaged(sound, tmp_path, KINDS, range(SEEDS))
    show("damage found in a finished corpus", results)
    assert sum(map(len, results.values())) >= 200
    assert missed(results) == []


@pytest.mark.slow
def test_all_damage_of_a_finished_corpus_is_found_at_length(sound, tmp_path):
    results = damaged(sound, tmp_path, KINDS, range(1000, 1100))
    show("damage found in a finished corpus", results)
    assert missed(results) == []


def test_what_is_found_in_an_unfinished_corpus_and_what_cannot_be(corpus, tmp_path):
    (corpus / "corpus.json").unlink()
    assert verify(corpus).problems == [f"corpus.json: {UNFINISHED}"]
    results = damaged(corpus, tmp_path, (k for k, kind in KINDS.items() if kind.alone is not None), range(4))
    show("damage found in an unfinished corpus", results)
    always = {kind for kind, outcomes in results.items() if all(found for _, found in outcomes)}
    never = {kind for kind, outcomes in results.items() if not any(found for _, found in outcomes)}
    assert always == {name for name, kind in KINDS.items() if kind.alone is True}
    assert never == {name for name, kind in KINDS.items() if kind.alone is False}


def test_a_corpus_that_is_opened_again_keeps_its_checksums(more, corpus, tmp_path):
    """In the middle of --extend: what was closed before is held against what was recorded then."""
    open_corpus(more, corpus, "extend")
    left = [problem.partition(":")[0] for problem in verify(corpus).problems]
    assert left == ["shards/shard-000004.parquet", "corpus.json"]
    hidden = [name for name, kind in KINDS.items() if kind.alone is False]
    assert missed(damaged(corpus, tmp_path, hidden, [0])) == []


# What a rerun does with damage


def test_growing_a_damaged_corpus_does_not_close_it(more, corpus):
    name = damage_score(corpus, random.Random(1))
    run = open_corpus(more, corpus, "extend")
    for _ in range(2):  # and not by asking again
        with pytest.raises(CorpusError, match=rf"{name} is damaged: it is not what was recorded.*remove it"):
            finish(run)
        assert not (corpus / "corpus.json").exists()
        run = open_corpus(more, corpus, "extend")
        assert run.todo() == []
    assert f"{name}: its bytes or its sha256 are not those in corpus.before.json" in verify(corpus).problems

    (corpus / name).unlink()  # as the error says
    finish(open_corpus(more, corpus, "extend"))
    assert verify(corpus).ok
    assert not (corpus / "corpus.before.json").exists()


def test_making_a_lost_shard_anew_does_not_close_a_damaged_corpus(photos, corpus):
    damage_score(corpus, random.Random(1))
    names = {path.name for path in (corpus / "shards").iterdir()}
    lost = sorted(names - {damage_score(corpus, random.Random(1)).rpartition("/")[2]})[0]
    (corpus / "shards" / lost).unlink()
    with pytest.raises(CorpusError, match="is damaged"):
        finish(open_corpus(photos, corpus))
    assert (corpus / "shards" / lost).exists()


def test_damage_done_after_the_corpus_was_opened_again_does_not_close_either(more, corpus):
    """A run that was killed half-way: what it had recorded is not forgotten in between."""
    open_corpus(more, corpus, "extend")
    damage_score(corpus, random.Random(2))
    with pytest.raises(CorpusError, match="is damaged"):
        finish(open_corpus(more, corpus, "extend"))


def test_a_shard_that_will_be_changed_is_held_against_its_record_first(corpus):
    """Its other rows are copied: were it struck from the record unseen, damage would be copied with them."""
    summary = (corpus / "corpus.json").read_bytes()
    manifest.reopen(corpus, [1])
    kept = manifest.recorded(corpus)
    assert set(kept) == {entry["path"] for entry in json.loads(summary)["files"]} - {SHARD_1}
    (corpus / "corpus.before.json").unlink()

    (corpus / "corpus.json").write_bytes(summary)
    rewrite(corpus / SHARD_1, lambda rows: rows[0]["annotations"][0].update(predicted_iou=0.5))
    with pytest.raises(CorpusError, match=f"{SHARD_1} is damaged"):
        manifest.reopen(corpus, [1])
    assert (corpus / "corpus.json").read_bytes() == summary
    assert not (corpus / "corpus.before.json").exists()


def test_finishing_over_a_closed_corpus_is_refused_where_a_file_differs(corpus):
    before = (corpus / "corpus.json").read_bytes()
    damage_score(corpus, random.Random(3))
    with pytest.raises(CorpusError, match="is damaged"):
        close.finish_corpus(corpus, range(4))
    assert (corpus / "corpus.json").read_bytes() == before


def other_version(path):
    path.write_bytes(path.read_bytes().replace(b'"numpy": "', b'"numpy": "9'))


@pytest.mark.parametrize("mode", ["resume", "extend"])
@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("run.json", other_version, "damaged"),
        (PLAN, lambda path: rewrite(path, lambda rows: rows[0].update(uri="/elsewhere")), "damaged"),
        (PLAN, lambda path: path.unlink(), "missing"),
        ("corpus.json", lambda path: path.write_bytes(path.read_bytes()[:-1]), "corpus.json: damaged"),
        ("corpus.json", lambda path: path.write_bytes(b""), "corpus.json: cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused_before_any_work(photos, more, corpus, mode, name, damage, says):
    shard_path(corpus, 3).unlink()  # there is something to do
    damage(corpus / name)
    before = {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    with pytest.raises(CorpusError, match=says):
        open_corpus(more if mode == "extend" else photos, corpus, mode)
    assert {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()} == before


def test_killed_while_it_was_opened_or_closed(photos, corpus):
    """Both summaries are there after a kill between two steps: `corpus.json` is the one that counts."""
    summary = (corpus / "corpus.json").read_bytes()
    (corpus / "corpus.before.json").write_bytes(summary)
    assert [problem.partition(":")[0] for problem in verify(corpus).problems] == ["corpus.before.json"]
    assert open_corpus(photos, corpus).todo() == []
    assert not (corpus / "corpus.before.json").exists()
    assert (corpus / "corpus.json").read_bytes() == summary


def test_starting_anew_forgets_what_was_recorded(photos, corpus):
    damage_score(corpus, random.Random(4))
    shard_path(corpus, 3).unlink()
    open_corpus(photos, corpus)
    assert (corpus / "corpus.before.json").exists()
    finish(open_corpus(photos, corpus, "overwrite"))
    assert verify(corpus).ok


def test_the_command_refuses_in_one_line(photos, tmp_path, tiny_settings, capsys):
    """`maskmill generate` as it is typed, with a network: damage is not closed over, removal is the cure."""
    out = tmp_path / "corpus"
    words = ["generate", str(photos), "--out", str(out), "--workers", "0"]
    words += [word for setting in tiny_settings for word in ("--set", setting)]
    assert main(words) == 0
    rewrite(out / SHARD_0, lambda rows: rows[0]["annotations"][0].update(predicted_iou=0.5))
    shard_path(out, 5).unlink()
    capsys.readouterr()
    for _ in range(2):
        assert main(words) == 2
        assert f"{SHARD_0} is damaged: it is not what was recorded" in capsys.readouterr().err
        assert main(["verify", str(out)]) == 3
        assert f"{SHARD_0}: its bytes or its sha256" in capsys.readouterr().out
    (out / SHARD_0).unlink()
    assert main(words) == 0
    assert main(["verify", str(out)]) == 0

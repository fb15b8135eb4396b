"""The plan: what is refused first, then that it is a pure function, survives kills, grows and starts anew."""

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from maskmill.pipelines.errors import CorpusError, UsageError
from maskmill.pipelines.format import plan as plan_module
from maskmill.pipelines.format import run_record
from maskmill.pipelines.format.ids import image_id, refuse_collisions
from maskmill.pipelines.format.layout import part_path
from maskmill.pipelines.format.plan import make_plan, read_plan
from maskmill.pipelines.format.schema import PLAN_SCHEMA
from maskmill.pipelines.inputs.listing import INPUT_SCHEMA
from maskmill.pipelines.storage import atomic
from maskmill.pipelines.verification.corpus import verify
from maskmill.pipelines.writing import close
from maskmill.pipelines.writing.open import open_run
from tests.support.corpora import SHARD_SIZE, fill_shard, make_corpus, make_photos, make_record, open_corpus


def items(*keys, folder="/photos"):
    return inputs_of((key, f"{folder}/{key}") for key in keys)


def inputs_of(pairs):
    return pa.Table.from_pylist([{"key": key, "uri": uri} for key, uri in pairs], schema=INPUT_SCHEMA)


def opened(out, inputs, mode="resume", size=SHARD_SIZE, **changes):
    return open_run(out, inputs, make_record(**changes), size, mode)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# The plan itself


def test_nothing_to_plan():
    assert make_plan(items(), 3).num_rows == 0


@pytest.mark.parametrize("size", [0, -1])
def test_a_shard_holds_something(size):
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(items("a"), size)


def test_one_key_twice():
    with pytest.raises(UsageError, match="the input 'a' twice"):
        make_plan(items("b", "a", "a"), 3)


def test_two_keys_with_one_id():
    """No two keys with one id are known, so that the ids are made up."""
    with pytest.raises(UsageError, match="the input 'c' and 'b' have the same image_id; rename one"):
        refuse_collisions(np.array([3, 1, 2, 1]), ["a", "c", "d", "b"])


def test_a_plan_by_hand():
    table = make_plan(items("c", "a", "b/x", "B", "ä"), 2)
    assert table.schema.equals(PLAN_SCHEMA)
    assert table["key"].to_pylist() == ["B", "a", "b/x", "c", "ä"]
    assert table["shard"].to_pylist() == [0, 0, 1, 1, 2]
    assert table["uri"].to_pylist()[2] == "/photos/b/x"
    assert table["image_id"].to_pylist() == [image_id(key) for key in table["key"].to_pylist()]


def test_the_plan_is_a_pure_function_of_the_set_of_inputs():
    names = [f"{number}.jpg" for number in range(50)]
    expected = make_plan(items(*names), 7)
    for seed in range(5):
        random.Random(seed).shuffle(names)
        assert make_plan(items(*names), 7).equals(expected)


def test_a_plan_is_read_back(tmp_path):
    run = opened(tmp_path, items("a", "b", "c", "d"))
    plan = read_plan(tmp_path)
    assert len(plan) == 4
    assert plan.shards == range(2)
    assert [(image.key, image.row, image.shard) for image in plan.images(1)] == [("d", 3, 1)]
    assert plan.images(0) == run.plan.images(0)
    assert plan.images(2) == []


@pytest.mark.parametrize("group_bytes", [1, 150, 1000, 1 << 20])
def test_shards_are_found_in_whatever_row_groups_they_lie(tmp_path, monkeypatch, group_bytes):
    """Shards of 3 in two parts, over row groups of one row, of a few and of all."""
    monkeypatch.setattr(plan_module, "GROUP_BYTES", group_bytes)
    names = [f"{number:03}" for number in range(40)]
    opened(tmp_path, items(*names[:25]))
    run = opened(tmp_path, items(*names), "extend")
    expected = [names[at : min(at + 3, 25)] for at in range(0, 25, 3)]
    expected += [names[at : at + 3] for at in range(25, 40, 3)]
    assert [[image.key for image in run.plan.images(shard)] for shard in run.plan.shards] == expected
    assert [image.row for shard in run.plan.shards for image in run.plan.images(shard)] == list(range(40))
    assert run.plan.size([0, 8, 13]) == 3 + 1 + 3
    assert run.plan.column("key").to_pylist() == names


# Opening a run


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", "shards/shard-000000.parquet", "plan/part-000000.parquet"]
)
@pytest.mark.parametrize("mode", ["resume", "extend", "overwrite"])
def test_a_folder_with_something_else_in_it(tmp_path, name, mode):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CorpusError, match="neither empty nor a corpus of this format"):
        opened(tmp_path, items("a"), mode)
    assert content(tmp_path) == {name: b"mine"}


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "corpus").write_text("mine")
    with pytest.raises(CorpusError, match="expected a folder"):
        opened(tmp_path / "corpus", items("a"), "overwrite")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda said: said[:-20],
        lambda said: said.replace(b'"format_version": 1', b'"format_version": 2'),
        lambda said: said.replace(b"maskmill-corpus", b"other"),
        lambda said: said.replace(b'"nano"', b'"vit_b"'),
        lambda said: said.replace(b'"software"', b'"hardware"'),
    ],
)
def test_a_run_json_that_is_damaged_or_foreign(tmp_path, damage):
    opened(tmp_path, items("a"))
    (tmp_path / "run.json").write_bytes(damage((tmp_path / "run.json").read_bytes()))
    before = content(tmp_path)
    for mode in ("resume", "overwrite"):
        with pytest.raises(CorpusError, match=r"run\.json"):
            opened(tmp_path, items("a"), mode)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"config_digest": "f" * 64, "config": {"generator": {"points_per_side": 16}}},
            r"generator.points_per_side was 32, now 16",
        ),
        ({"config_digest": "f" * 64}, "the configuration's digest differs"),
        ({"weights_sha256": "b" * 64}, "the weights' sha256 was aaaaaaaaaaaa…, now bbbbbbbbbbbb…"),
        ({"model_name": "vit_b"}, "the model was nano, now vit_b"),
    ],
)
@pytest.mark.parametrize("mode", ["resume", "extend"])
def test_another_run_is_refused(tmp_path, changes, says, mode):
    opened(tmp_path, items("a", "b"))
    before = content(tmp_path)
    with pytest.raises(CorpusError, match=says) as caught:
        opened(tmp_path, items("a", "b"), mode, **changes)
    assert "--overwrite" in str(caught.value)
    assert "another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (items("a", "b", "c"), "c is new: add the new inputs with --extend, start anew with --overwrite"),
        (items("a"), "b is no longer there: start anew with --overwrite"),
        (items("c", "d"), r"c \(and 1 more\) is new; a \(and 1 more\) is no longer there"),
        (
            items("a", "b", folder="/elsewhere"),
            r"lay at /photos and lie at /elsewhere now, and there is no row",
        ),
    ],
)
def test_other_inputs_are_refused(tmp_path, inputs, says):
    opened(tmp_path, items("a", "b"))
    before = content(tmp_path)
    with pytest.raises(CorpusError, match=says):
        opened(tmp_path, inputs)
    assert content(tmp_path) == before


def test_the_same_run_again_changes_nothing(tmp_path):
    opened(tmp_path / "corpus", items("a", "b"))
    before = content(tmp_path)
    config = make_record().config | {"workers": 2}
    again = opened(tmp_path / "corpus", items("b", "a"), config=config, software={})
    assert content(tmp_path) == before
    assert again.record == make_record()
    assert again.todo() == [0]


def test_what_is_left_to_do(tmp_path):
    run = open_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    assert run.todo() == [0, 1, 2]
    fill_shard(run, 1)
    assert run.todo() == [0, 2]


# Killed


def test_leftovers_of_a_killed_process_are_swept_away(tmp_path):
    for folder in (tmp_path, tmp_path / "plan", tmp_path / "shards"):
        folder.mkdir(exist_ok=True)
        (folder / ".maskmill-anything-0f.tmp").write_bytes(b"half")
    opened(tmp_path, items("a"))
    assert sorted(content(tmp_path)) == ["plan/part-000000.parquet", "run.json"]


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from maskmill.pipelines.writing.close import finish_corpus
    from tests.support.corpora import fill_shard, open_corpus

    photos, mode, moments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    steps = 0

    def counted(call):
        def step(*args, **kwargs):
            global steps
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return step

    for kill_at in map(int, moments):
        if not os.fork():
            os.fsync, os.link = counted(os.fsync), counted(os.link)
            Path.unlink, Path.replace = counted(Path.unlink), counted(Path.replace)
            run = open_corpus(photos, photos.with_name(f"corpus{kill_at}"), mode)
            for shard in run.todo():
                fill_shard(run, shard)
            finish_corpus(run.out, run.plan.shards)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
)


@pytest.mark.parametrize(
    ("mode", "moments"), [("resume", (1, 2, 3, 5, 6, 8, 11, 17)), ("overwrite", (2, 5, 7, 9, 10, 11, 12, 15))]
)
def test_killed_at_any_moment_the_same_command_finishes(tmp_path, mode, moments):
    """SIGKILL just before one of the calls that touch the disk; then the same command, to its end."""
    photos = make_photos(tmp_path / "photos")
    expected = content(make_corpus(photos, tmp_path / "expected"))
    if mode == "overwrite":
        for moment in moments:
            make_corpus(photos, tmp_path / f"corpus{moment}", config_digest="f" * 64)
    command = [sys.executable, "-c", KILLED, str(photos), mode, *map(str, moments)]
    killed = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True
    )
    assert killed.stdout.split() == ["-9"] * len(moments), killed.stderr
    for moment in moments:
        out = tmp_path / f"corpus{moment}"
        kept = content(out) if mode == "resume" else {}
        run = open_corpus(photos, out, mode)
        for shard in run.todo():
            fill_shard(run, shard)
        close.finish_corpus(out, run.plan.shards)
        assert verify(out).ok
        assert content(out) == expected
        assert all(expected[name] == data for name, data in kept.items() if name.startswith("shards/shard"))


@pytest.mark.parametrize("differs", ["configuration", "inputs"])
def test_a_shard_of_another_run_does_not_close_the_corpus(differs, tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    mine = make_corpus(photos, tmp_path / "mine")
    if differs == "configuration":
        other = make_corpus(photos, tmp_path / "other", config_digest="d" * 64)
    else:  # as many, of the same configuration: what a late worker of an overwritten run leaves
        (photos / "3.png").rename(photos / "4.png")
        other = make_corpus(photos, tmp_path / "other")
    for name in ("corpus.json", "shards/shard-000001.parquet"):
        (mine / name).unlink()
    (other / "shards/shard-000001.parquet").rename(mine / "shards/shard-000001.parquet")
    with pytest.raises(CorpusError, match=r"shard-000001\.parquet: made by another run; remove it"):
        close.finish_corpus(mine, range(2))
    assert not (mine / "corpus.json").exists()


# Growing


def test_extending(tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    out = make_corpus(photos, tmp_path / "corpus")
    before = content(out)
    make_photos(photos, 9)  # 0 to 3 are as they were
    with pytest.raises(CorpusError, match="add the new inputs with --extend"):
        open_corpus(photos, out)
    assert content(out) == before

    run = open_corpus(photos, out, "extend")
    assert not (out / "corpus.json").exists()
    assert (run.plan.parts, len(run.plan), run.plan.shards) == (2, 9, range(4))
    assert run.todo() == [2, 3]
    assert [(image.key, image.row) for image in run.plan.images(2)] == [
        ("4.png", 4),
        ("5.png", 5),
        ("6.png", 6),
    ]
    planned = pa.concat_tables(run.plan.tables())
    for mode in ("extend", "resume"):
        again = open_corpus(photos, out, mode)
        assert pa.concat_tables(again.plan.tables()).equals(planned)
    for shard in run.todo():
        fill_shard(run, shard)
    close.finish_corpus(out, run.plan.shards)
    assert verify(out).ok
    after = content(out)
    assert all(after[name] == before[name] for name in before if name != "corpus.json")


def test_extending_by_the_new_inputs_alone(tmp_path):
    opened(tmp_path, items("b", "c"))
    run = opened(tmp_path, items("a"), "extend")
    assert [image.key for shard in run.plan.shards for image in run.plan.images(shard)] == ["b", "c", "a"]
    assert run.plan.images(1)[0].row == 2


def test_extending_a_folder_that_is_new_or_by_nothing(tmp_path):
    assert opened(tmp_path, items("a"), "extend").plan.parts == 1
    assert opened(tmp_path, items("a"), "extend").plan.parts == 1


def test_extending_by_what_is_planned_under_another_key(tmp_path):
    opened(tmp_path, items("a.jpg"))
    with pytest.raises(
        CorpusError, match=r"/photos/a.jpg is already planned under another key than 'photos/a.jpg'"
    ):
        opened(tmp_path, inputs_of([("photos/a.jpg", "/photos/a.jpg")]), "extend")


def test_a_part_that_is_missing(tmp_path):
    opened(tmp_path, items("a"))
    opened(tmp_path, items("b"), "extend")
    opened(tmp_path, items("c"), "extend")
    part_path(tmp_path, 1).unlink()
    with pytest.raises(CorpusError, match="a part of the plan is missing"):
        opened(tmp_path, items("a", "b", "c"))


# Starting anew


def test_overwriting_takes_only_what_belongs_to_the_corpus(tmp_path):
    photos = make_photos(tmp_path / "photos")
    out = make_corpus(photos, tmp_path / "corpus")
    for name in ("notes.txt", "shards/mine.parquet", "plan/notes.txt"):
        (out / name).write_text("mine")
    run = open_corpus(photos, out, "overwrite", config_digest="f" * 64)
    assert sorted(content(out)) == [
        "notes.txt",
        "plan/notes.txt",
        "plan/part-000000.parquet",
        "run.json",
        "shards/mine.parquet",
    ]
    assert run.record.config_digest == "f" * 64
    assert run.todo() == [0, 1, 2]


def test_overwriting_what_is_not_there(tmp_path):
    assert opened(tmp_path / "corpus", items("a"), "overwrite").todo() == [0]


# run.json and corpus.json


def test_run_json(tmp_path):
    opened(tmp_path, items("a"))
    said = json.loads((tmp_path / "run.json").read_text())
    assert said["format"] == "maskmill-corpus"
    assert said["format_version"] == 1
    assert said["model"] == {"name": "nano", "weights_sha256": "a" * 64}
    assert said["config"]["generator"] == {"points_per_side": 32}
    assert said["software"]["pyarrow"]
    assert "bbox" in said["conventions"]
    assert run_record.read_run(tmp_path) == make_record()


def test_the_run_digest_says_what_decides_the_rows():
    digest = make_record().digest
    assert len(digest) == 64
    assert make_record(config=make_record().config | {"workers": 2}, software={}).digest == digest
    for changes in ({"config_digest": "f"}, {"model_name": "vit_b"}, {"weights_sha256": "b"}):
        assert make_record(**changes).digest != digest


def test_corpus_json(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    said = json.loads((out / "corpus.json").read_text())
    assert said["totals"] == {
        "images": 7, "ok": 5, "empty": 1, "rejected": 1, "rejects": {"NotAnImage": 1},
        "masks": 9, "candidates": 51,
        "drops": {
            "predicted_iou": 24, "stability": 0, "crop_edge": 0, "empty": 0, "too_large": 0, "nms": 18,
            "crop_nms": 0, "clean_up": 0,
        },
        "shards": 3,
    }  # fmt: skip
    assert [entry["path"] for entry in said["files"]] == [
        "run.json", "plan/part-000000.parquet", *(f"shards/shard-00000{shard}.parquet" for shard in range(3)),
    ]  # fmt: skip
    # The seal by coreutils and the json module: everything but itself, sorted, without blanks.
    import hashlib

    seal = said.pop("sha256")
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == seal
    assert hashlib.sha256((out / "run.json").read_bytes()).hexdigest() == said["files"][0]["sha256"]


def test_finishing_twice_gives_the_same_bytes(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    before = content(out)
    close.finish_corpus(out, range(3))
    assert content(out) == before


def test_a_corpus_is_not_finished_while_a_shard_is_missing_or_unreadable(tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    atomic.remove(out / "corpus.json", out / "shards" / "shard-000001.parquet")
    with pytest.raises(CorpusError, match="missing 1 of 3 shards, the first is 1"):
        close.finish_corpus(out, range(3))
    (out / "shards" / "shard-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"shard-000001.parquet: cannot be read"):
        close.finish_corpus(out, range(3))
    assert not (out / "corpus.json").exists()


def test_a_shard_that_was_removed_by_hand_is_done_again(tmp_path):
    photos = make_photos(tmp_path / "photos")
    out = make_corpus(photos, tmp_path / "corpus")
    atomic.remove(out / "shards" / "shard-000001.parquet")
    run = open_corpus(photos, out)
    assert run.todo() == [1]
    assert not (out / "corpus.json").exists()

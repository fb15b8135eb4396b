"""`maskmill resume CORPUS`: what it refuses, that it needs no more words, and what the last line says."""

import json
import os
import shlex
import shutil
from dataclasses import replace

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.format import run_record
from maskmill.pipelines.format.layout import part_path, shard_path
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.generation import generate
from maskmill.pipelines.workers import local_crew
from maskmill.pipelines.workers import shard as worker
from tests.support.commands import words
from tests.support.releases import release


@pytest.fixture(scope="module")
def made(photos, tiny_settings, tiny_weights, tmp_path_factory):
    """A finished corpus of four images, one of them rejected, in two shards; its weights beside it."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(photos / "coffee", folder / "photos")
    (folder / "photos" / "bad.png").write_text("not an image")
    shutil.copy(tiny_weights, folder / "tiny.safetensors")
    settings = [*tiny_settings, f"model.checkpoint={folder / 'tiny.safetensors'}"]
    assert main(words(folder / "photos", folder / "corpus", settings, "--workers", "0")) == 0
    return folder


@pytest.fixture
def stopped(made, tmp_path):
    """A copy of it without its second shard."""
    out = tmp_path / "stopped"
    shutil.copytree(made / "corpus", out)
    shard_path(out, 1).unlink()
    return out


def refused(typed, capsys):
    """What `resume` says and does not do."""
    assert main(["resume", *map(str, typed)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_is_no_corpus(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    for out in (tmp_path, tmp_path / "nothing"):
        assert "not a corpus: it has no run.json" in refused([out], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_corpus_without_a_plan(stopped, capsys):
    part_path(stopped, 0).unlink()
    said = refused([stopped], capsys)
    assert "there is no plan yet; to go on, type its maskmill generate command again" in said


def test_a_corpus_that_was_imported(tmp_path, capsys):
    assert main(["import", str(release(tmp_path / "sa", range(4))), "--out", str(tmp_path / "corpus")]) == 0
    shard_path(tmp_path / "corpus", 0).unlink()
    capsys.readouterr()
    assert "was imported; to go on, type its maskmill import command again" in refused(
        [tmp_path / "corpus"], capsys
    )
    assert main(["status", str(tmp_path / "corpus"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resume"] is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "generator.points_per_side=5",
            "generator.points_per_side was 3, now 5: expected options that decide no row",
        ),
        ("shard_size=3", "shard_size was 2, now 3"),
        ("shard_size=auto", "shard_size was 2, now 'auto'"),
        ("model.name=vit_b", "model.name was 'nano', now 'vit_b'"),
        ("worker=3", "unknown key worker, did you mean workers?"),
        ("workers", "expected key=value"),
    ],
)
def test_values_that_decide_rows_are_not_changed(stopped, change, expected, capsys):
    assert expected in refused([stopped, "--set", change], capsys)
    assert committed_shards(stopped) == {0}


def test_ray_for_a_run_without_it(stopped, capsys):
    assert "give --workers N with --ray" in refused([stopped, "--ray", "auto"], capsys)


def test_weights_that_are_gone_or_other_ones_are_named_again(made, stopped, tiny_weights, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_weights.read_bytes()[:-1] + b"\x7f")
    hint = "--set model.checkpoint=FILE names the file that the run began with"
    said = refused([stopped, "--set", f"model.checkpoint={other}"], capsys)
    assert "the weights' sha256 was " in said
    assert hint in said
    away = (made / "tiny.safetensors").rename(made / "away.safetensors")
    try:
        said = refused([stopped], capsys)
        assert "the run's weights are not here: " in said
        assert hint in said
        relative = os.path.relpath(away)
        assert main(["resume", str(stopped), "--set", f"model.checkpoint={relative}"]) == 0
    finally:
        away.rename(made / "tiny.safetensors")


def test_it_needs_no_more_words_and_lists_no_input(made, stopped, monkeypatch, capsys):
    monkeypatch.delattr(generate, "list_inputs")
    before = (stopped / "run.json").read_bytes()
    assert main(["resume", str(stopped)]) == 0
    assert "1 of 2 shards there already (2 images)" in capsys.readouterr().out
    assert main(["verify", str(stopped)]) == 0
    assert (stopped / "run.json").read_bytes() == before
    capsys.readouterr()
    assert main(["resume", str(stopped)]) == 0
    assert capsys.readouterr().out == f"{stopped}: complete, nothing to do\n"


def test_a_run_json_that_lacks_what_came_later_means_the_neutral_value(stopped):
    """As one of before `compile` and the breaker: neither decides rows, so that the digest is the same."""
    record = run_record.read_run(stopped)
    config = {name: value for name, value in record.config.items() if name != "breaker"}
    config["model"] = {name: value for name, value in config["model"].items() if name != "compile"}
    run_record.replace_run(stopped, replace(record, config=config))
    for name in ("corpus.json", "corpus.before.json"):
        (stopped / name).unlink(missing_ok=True)
    assert main(["resume", str(stopped)]) == 0
    assert main(["verify", str(stopped)]) == 0


def test_rejected_images_are_run_again(photos, stopped, made, capsys):
    text = (made / "photos" / "bad.png").read_text()
    shutil.copy(photos / "rocket" / "0.png", made / "photos" / "bad.png")
    try:
        assert main(["resume", str(stopped), "--retry-rejects", "NotAnImage"]) == 0
    finally:
        (made / "photos" / "bad.png").write_text(text)
    capsys.readouterr()
    assert main(["rejects", str(stopped)]) == 0
    assert capsys.readouterr().out == f"{stopped}: no image was rejected\n"


def test_with_workers_it_takes_their_options_and_goes_by_ray(stopped, local_ray, capfd):
    assert main(["resume", str(stopped), "--workers", "1", "--cpus-per-worker", "1"]) == 0
    assert main(["verify", str(stopped)]) == 0


def interrupted(typed, monkeypatch, capsys, at):
    """The last line of a command that is interrupted where it begins its shard number `at`."""
    begun, shard_steps = [], local_crew.shard_steps

    def interrupt(task, *rest):
        begun.append(task)
        if len(begun) > at:
            raise KeyboardInterrupt
        return shard_steps(task, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(local_crew, "shard_steps", interrupt)
        assert main(typed) == 130
    return capsys.readouterr().err.splitlines()[-1].removeprefix("maskmill: interrupted; ")


def test_the_last_line_says_what_is_there_and_what_to_type(
    made, tiny_settings, tmp_path, monkeypatch, capsys
):
    out, log = tmp_path / "my corpus", tmp_path / "log.jsonl"
    typed = words(made / "photos", out, tiny_settings, "--workers", "0")

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:  # before there is a plan
        broken.setattr(generate, "list_inputs", interrupt)
        assert main(typed) == 130
    said = capsys.readouterr().err
    assert said == (
        f"maskmill: interrupted; nothing was committed yet, go on with: {shlex.join(['maskmill', *typed])}\n"
    )
    resume = f"maskmill resume {shlex.quote(str(out))}"
    said = interrupted(typed, monkeypatch, capsys, 0)
    assert said == f"nothing was committed yet, go on with: {resume}"
    more = [*typed, "--log-json", str(log), "--set", "breaker.rejected_share=1"]
    said = interrupted(more, monkeypatch, capsys, 1)
    changed = f"{resume} --log-json {log} --set breaker.rejected_share=1.0"
    assert said == f"committed shards stay, go on with: {changed}"
    said = interrupted(shlex.split(changed)[1:], monkeypatch, capsys, 0)
    assert said == f"committed shards stay, go on with: {changed}"
    assert main(shlex.split(changed)[1:]) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[-1]["outcome"] == "complete"
    assert len({event["run"] for event in events} - {None}) == 1
    assert main(["verify", str(out)]) == 0


def test_a_corpus_of_rejects_alone_ends_with_5_every_time(tiny_settings, tmp_path, capsys):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number in range(7):
        (collection / f"{number}.png").write_text("not an image")
    typed = words(collection, out, tiny_settings, "--workers", "0")
    assert main(typed) == 5
    shown = capsys.readouterr()
    assert f"none of its 7 images could be used; maskmill rejects {out} lists why" in shown.err
    lines = [line for line in shown.out.splitlines() if line.startswith("rejected: ")]
    assert [line.split(": ")[1:3] for line in lines] == [[f"{n}.png", "NotAnImage"] for n in range(5)]
    assert shown.out.endswith(f"\nand 2 more: maskmill rejects {out} lists them all\n")
    assert main(typed) == 5
    assert main(["resume", str(out)]) == 5
    assert main(["verify", str(out)]) == 0


def test_a_shard_that_is_left_undone_is_4_though_all_others_are_rejects(tiny_settings, tmp_path, monkeypatch):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number in range(4):
        (collection / f"{number}.png").write_text("not an image")
    typed = words(collection, out, tiny_settings, "--workers", "0")
    commit = worker.commit_table

    def fail(folder, shard, *rest):
        if shard == 1:
            raise OSError("the disk is full")
        return commit(folder, shard, *rest)

    monkeypatch.setattr(worker.retries, "FIRST_PAUSE_SECONDS", 0.001)
    with monkeypatch.context() as broken:
        broken.setattr(worker, "commit_table", fail)
        assert main(typed) == 4
    assert main(typed) == 5

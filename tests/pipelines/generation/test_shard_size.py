"""`shard_size: auto`: decided when a corpus is planned, recorded, and kept by whatever goes on with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from maskmill.pipelines.cli import main
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.plan import read_plan
from maskmill.pipelines.generation import generate
from maskmill.pipelines.workers.placement import Node

KEPT = Path(__file__).parents[2] / "kept"


def recorded(out):
    return json.loads((out / "run.json").read_text())["config"]["shard_size"]


@pytest.fixture
def unsized(tiny_settings):
    """Settings that leave the size of a shard open."""
    return [word for one in tiny_settings if "shard_size" not in one for word in ("--set", one)]


def test_what_would_run_says_that_it_is_decided_later(capsys):
    assert main(["generate", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "shard_size: auto  # decided when the corpus is planned" in printed
    assert yaml.safe_load(printed)["shard_size"] == "auto"


def test_two_hundred_images_are_work_for_eight_workers(tmp_path, tiny_weights, monkeypatch):
    """Planned as for eight GPUs, of which this machine has none; nothing is run."""

    def planned(*_arguments):
        raise KeyboardInterrupt

    photos, out = tmp_path / "photos", tmp_path / "corpus"
    photos.mkdir()
    for number in range(200):
        (photos / f"{number}.png").touch()
    monkeypatch.setattr(generate, "this_machine", lambda _: Node(64, 8))
    monkeypatch.setattr(generate, "_do", planned)
    typed = ["generate", str(photos), "--out", str(out), "--set", f"model.checkpoint={tiny_weights}"]
    assert main(typed) == 130
    sizes = read_plan(out).sizes(read_plan(out).shards)
    assert len(sizes) >= 2 * 8, "two in the hands of each"
    assert sizes.sum() == 200
    assert np.unique(sizes).tolist() == [recorded(out)] == [4]
    before = (out / "run.json").read_bytes()
    assert main([*typed, "--workers", "1"]) == 130, "one worker would have had shards of 25"
    assert (out / "run.json").read_bytes() == before


def test_a_plan_stays_with_more_inputs_and_rejects_that_are_run_again(photos, unsized, tmp_path, capsys):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    shutil.copytree(photos, collection)
    (collection / "bad.png").write_text("not an image")
    typed = ["generate", str(collection), "--out", str(out), "--workers", "0", *unsized]
    assert main([*typed, "--set", "shard_size=5"]) == 0
    before = (out / "run.json").read_bytes()
    assert main(typed) == 0, "auto means what is recorded"
    shard_path(out, 1).unlink()
    assert main([*typed, "--retry-rejects", "NotAnImage"]) == 0
    shutil.copy(photos / "coffee" / "0.png", collection / "new.png")
    assert main([*typed, "--extend"]) == 0
    assert (out / "run.json").read_bytes() == before
    assert read_plan(out).sizes(read_plan(out).shards).tolist() == [5, 5, 3, 1]
    assert main(["verify", str(out)]) == 0
    capsys.readouterr()
    assert main([*typed, "--set", "shard_size=6"]) == 2
    assert "shard_size was 5, now 6" in capsys.readouterr().err


def test_starting_anew_decides_anew(photos, unsized, tmp_path):
    out = tmp_path / "corpus"
    typed = ["generate", str(photos / "coffee"), "--out", str(out), "--workers", "0", *unsized]
    assert main([*typed, "--set", "shard_size=1"]) == 0
    assert recorded(out) == 1
    assert main([*typed, "--overwrite"]) == 0
    assert recorded(out) == 4


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="its uris go by Linux's /proc")
def test_a_corpus_that_was_made_before_goes_on(tmp_path, monkeypatch):
    work = Path(shutil.copytree(KEPT, tmp_path / "work"))
    monkeypatch.chdir(work)
    command = (KEPT / "README.md").read_text().split("```\nmaskmill ")[1].partition("```")[0].split()
    at = command.index("shard_size=3")
    command = command[: at - 1] + command[at + 1 :]
    shard_path(work / "corpus", 1).unlink()
    assert main(command) == 0
    assert main(["verify", "corpus"]) == 0
    assert recorded(work / "corpus") == 3

"""The run, end to end and seen through what it leaves: wrong use first, then resuming, then the kill."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.plan import read_plan
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.generation import generate
from maskmill.pipelines.storage import atomic, retries
from maskmill.pipelines.storage.lease import held
from maskmill.pipelines.workers import local_crew
from maskmill.pipelines.writing import open as opening
from tests.support.commands import start, wait_for_a_shard, words


def rows_of(out):
    shards = sorted(committed_shards(out))
    return {shard: pq.read_table(shard_path(out, shard)).to_pylist() for shard in shards}


def state_of(out):
    """Bytes and time of change of every committed shard."""
    paths = [shard_path(out, shard) for shard in sorted(committed_shards(out))]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="module")
def corpus(photos, tiny_settings, tmp_path_factory):
    """A finished corpus, made in this process without Ray."""
    out = tmp_path_factory.mktemp("generated") / "corpus"
    assert main(words(photos, out, tiny_settings, "--workers", "0")) == 0
    return out


def test_an_input_that_is_not_there_leaves_nothing_behind(tmp_path, tiny_settings, capsys):
    out = tmp_path / "corpus"
    assert main(words(tmp_path / "nothing", out, tiny_settings, "--workers", "0")) == 2
    assert "nothing: there is no such file or folder" in capsys.readouterr().err
    assert not out.exists()


def test_weights_that_are_not_there_leave_nothing_behind(photos, tmp_path, capsys):
    out = tmp_path / "corpus"
    assert main(words(photos, out, [f"model.checkpoint={tmp_path}/gone.pth"], "--workers", "0")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("call", "number", "expected", "code"),
    [
        ("fsync", errno.ENOSPC, "No space left on device", 2),
        ("link", errno.EPERM, "the file system has no hard links", 2),
        ("link", errno.EOPNOTSUPP, "the file system has no hard links", 2),
        ("replace", errno.ENOSPC, "No space left on device", 4),  # corpus.json, when all the work is done
    ],
)
def test_storage_that_fails_is_one_line_that_names_the_folder(
    photos, tiny_settings, tmp_path, monkeypatch, capsys, call, number, expected, code
):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(Path if call == "replace" else os, call, fail)
    out = tmp_path / "corpus"
    typed = words(photos / "coffee", out, [*tiny_settings, "shard_size=3"], "--workers", "0")
    assert main(typed) == code
    assert capsys.readouterr().err.endswith(f"maskmill: {out}: cannot be written: {expected}\n")


def test_a_folder_of_something_else_is_left_as_it_is(photos, tiny_settings, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(words(photos, tmp_path, tiny_settings, "--workers", "0", "--overwrite")) == 2
    assert "neither empty nor a corpus" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_brackets_in_names_are_no_markup(photos, tiny_settings, tmp_path, capsys):
    collection, out = tmp_path / "[/red]", tmp_path / "a[/b] [bold]"
    collection.mkdir(parents=True)
    (collection / "[x].png").write_bytes((photos / "coffee" / "0.png").read_bytes())
    for _ in range(2):
        assert main(words(collection, out, tiny_settings, "--workers", "0")) == 0
    assert f"{out}: complete, nothing to do" in capsys.readouterr().out


def test_a_corpus_that_was_begun_differently_is_refused_and_left_alone(corpus, photos, tiny_settings, capsys):
    before = state_of(corpus)
    settings = [*tiny_settings, "generator.points_per_side=2", "model.device=cpu"]
    assert main(words(photos, corpus, settings, "--workers", "1")) == 2
    said = capsys.readouterr().err
    assert "begun differently: generator.points_per_side was 3, now 2: run with" in said, "nothing harmless"
    assert state_of(corpus) == before


def test_extending_with_another_configuration_and_other_weights_is_refused(
    corpus, photos, tiny_settings, tiny_weights, tmp_path, capsys
):
    before = state_of(corpus)
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_weights.read_bytes()[:-1] + b"\x7f")
    settings = [*tiny_settings, "generator.pred_iou_thresh=0.5", f"model.checkpoint={other}"]
    assert main(words(photos, corpus, settings, "--workers", "0", "--extend")) == 2
    said = capsys.readouterr().err
    assert "the weights' sha256 was " in said
    assert "generator.pred_iou_thresh was 0.0, now 0.5: run with what it was begun with" in said
    assert state_of(corpus) == before


def test_overwriting_starts_anew_with_what_is_asked_for_now(photos, tiny_settings, tmp_path):
    out = tmp_path / "corpus"
    assert main(words(photos / "coffee", out, tiny_settings, "--workers", "0")) == 0
    settings = [*tiny_settings, "generator.points_per_side=2"]
    assert main(words(photos / "rocket", out, settings, "--workers", "0", "--overwrite")) == 0
    assert [Path(row["uri"]).parent.name for row in Corpus(out)] == ["rocket"] * 3
    assert max(len(row["annotations"]) for row in Corpus(out)) <= 2 * 2 * 3, "three masks a point"
    assert main(["verify", str(out)]) == 0


def test_an_interruption_before_overwriting_has_begun_says_overwrite_again(
    photos, tiny_settings, tmp_path, monkeypatch, capsys
):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    out = tmp_path / "corpus"
    typed = words(photos / "coffee", out, tiny_settings, "--workers", "0", "--overwrite")
    assert main(typed) == 0
    before = state_of(out)
    for owner, name in ((generate, "list_inputs"), (opening, "_clear_corpus"), (local_crew, "shard_steps")):
        capsys.readouterr()
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, interrupt)
            assert main(typed) == 130
        said = capsys.readouterr().err
        begun = name == "shard_steps"
        again = ["resume", str(out)] if begun else typed
        stays = "nothing was committed yet" if begun else "the old corpus was not removed yet"
        assert said == f"maskmill: interrupted; {stays}, go on with: {shlex.join(['maskmill', *again])}\n"
        assert state_of(out) == ({} if begun else before)


def test_another_run_at_work_is_no_reason_to_leave_out_overwrite(photos, tiny_settings, tmp_path, capsys):
    out = tmp_path / "corpus"
    with held(out, print):
        assert main(words(photos, out, tiny_settings, "--workers", "0", "--overwrite")) == 4
    assert "go on with" not in capsys.readouterr().err


@pytest.mark.parametrize(("failures", "code"), [(3, 0), (99, 4)])
def test_a_plan_that_the_storage_does_not_give_is_tried_again_and_then_ends_the_run_as_incomplete(
    photos, tiny_settings, tmp_path, monkeypatch, capsys, failures, code
):
    calls, read = [], pq.ParquetFile.read_row_group

    def fail(file, group, columns=None, **options):
        if columns is None:  # the images of a shard; opening the plan reads some columns only
            calls.append(1)
            if len(calls) <= failures:
                raise OSError(errno.EIO, "Input/output error")
        return read(file, group, columns, **options)

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    out = tmp_path / "corpus"
    typed = words(photos / "coffee", out, tiny_settings, "--workers", "0")
    with monkeypatch.context() as broken:
        broken.setattr(pq.ParquetFile, "read_row_group", fail)
        assert main(typed) == code
    said = capsys.readouterr().err
    assert ("2 of 2 shards left undone" in said and "Input/output error" in said) == (code == 4)
    assert main(typed) == 0


@pytest.fixture
def begun(photos, tiny_settings, tmp_path):
    """A corpus with one of its two shards, and what is typed to go on."""
    typed = words(photos / "coffee", tmp_path / "corpus", tiny_settings, "--workers", "0")
    assert main(typed) == 0
    shard_path(tmp_path / "corpus", 1).unlink()
    return typed


@pytest.mark.parametrize(
    ("number", "failures", "code"),
    [
        (errno.EIO, 3, 0),
        (errno.EIO, 99, 4),
        (errno.ENOSPC, 99, 4),
        (errno.EACCES, 99, 2),
        (errno.EROFS, 99, 2),
    ],
)
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Path, "read_bytes"),
        (atomic, "create"),
        (pq.ParquetFile, "read_row_group"),
        (opening, "committed_shards"),
    ],
    ids=["run.json", "lease", "plan", "shards"],
)
def test_a_storage_that_fails_while_a_corpus_is_opened_again(
    begun, monkeypatch, capsys, owner, name, number, failures, code
):
    """It is tried again, then the run is incomplete; that the corpus is another user's is wrong use."""
    calls, really = [], getattr(owner, name)

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) <= failures:
            raise OSError(number, os.strerror(number))
        return really(*arguments, **options)

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, fail)
        assert main(begun) == code
    said = capsys.readouterr().err
    assert said.count("\n") == (code != 0)
    assert (os.strerror(number) in said) == (code != 0)
    assert main(begun) == 0


def test_a_place_that_fails_before_anything_is_there_is_not_waited_for(
    photos, tiny_settings, tmp_path, monkeypatch
):
    def fail(*_arguments):
        calls.append(1)
        raise OSError(errno.EIO, "Input/output error")

    calls = []
    monkeypatch.setattr(atomic, "create", fail)
    assert main(words(photos / "coffee", tmp_path / "corpus", tiny_settings, "--workers", "0")) == 2
    assert len(calls) == 1


def test_inputs_that_are_new_need_extend_and_get_shards_of_their_own(photos, tiny_settings, tmp_path, capsys):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    collection.mkdir()
    for number in range(3):
        (collection / f"{number}.png").write_bytes((photos / "coffee" / f"{number}.png").read_bytes())
    assert main(words(collection, out, tiny_settings, "--workers", "0")) == 0
    before = state_of(out)
    (collection / "a-bad-one.png").write_bytes(b"not an image")
    assert main(words(collection, out, tiny_settings, "--workers", "0")) == 2
    assert "--extend" in capsys.readouterr().err
    assert main(words(collection, out, tiny_settings, "--workers", "0", "--extend")) == 0
    assert state_of(out).items() >= before.items()
    assert [row["status"] for row in rows_of(out)[2]] == ["rejected"]
    assert main(["verify", str(out)]) == 0


def test_every_planned_image_is_one_row_and_the_corpus_verifies(corpus):
    plan = read_plan(corpus)
    keys = [row["key"] for rows in rows_of(corpus).values() for row in rows]
    assert keys == plan.column("key").to_pylist()
    assert len(keys) == 12
    assert sum(len(row["annotations"]) for row in Corpus(corpus)) > 12
    assert main(["verify", str(corpus)]) == 0


def test_the_same_command_again_has_nothing_to_do(corpus, photos, tiny_settings, capsys):
    before = state_of(corpus)
    assert main(words(photos, corpus, tiny_settings, "--workers", "0")) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert state_of(corpus) == before


def test_thresholds_that_are_left_open_are_the_weights_own(photos, tiny_weights, tmp_path, capsys):
    """They are recorded: a run that names them goes on with a corpus of one that left them open."""
    out = tmp_path / "corpus"
    options = [f"model.checkpoint={tiny_weights}", "generator.points_per_side=2", "threads_per_worker=1"]
    assert main(words(photos / "coffee", out, options, "--workers", "0", "--quiet")) == 0
    shown = capsys.readouterr()
    assert shown.out == "", "a quiet run has nothing but this to say"
    said = " ".join(shown.err.split())
    generator = json.loads((out / "run.json").read_text())["config"]["generator"]
    assert (generator["pred_iou_thresh"], generator["stability_score_thresh"]) == (0.88, 0.95)
    assert (
        "3 of 3 images without a mask: in these none has a predicted IoU above 0.88 and a stability" in said
    )
    assert (
        "score of at least 0.95; try lower thresholds (--pred-iou-thresh, --stability-score-thresh)" in said
    )
    named = ["generator.pred_iou_thresh=0.88", "generator.stability_score_thresh=0.95"]
    assert main(words(photos / "coffee", out, [*options, *named], "--workers", "0")) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    one = ["generator.pred_iou_thresh=0.5"]
    assert main(words(photos / "coffee", out, [*options, *one], "--workers", "0")) == 2
    assert "generator.pred_iou_thresh was 0.88, now 0.5" in capsys.readouterr().err


def test_ray_and_this_process_make_equal_rows(corpus, photos, tiny_settings, tmp_path, local_ray, capfd):
    out = tmp_path / "corpus"
    assert main(words(photos, out, tiny_settings, "--workers", "2")) == 0
    assert rows_of(out) == rows_of(corpus)
    shown = capfd.readouterr()
    assert "images/s" in shown.out
    assert "\x1b" not in shown.out + shown.err, "not a terminal: no escape codes"


HEAD = """
import sys
from ray.cluster_utils import Cluster
options = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=options)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster_elsewhere(tmp_path):
    """The address of a Ray that another process started in another folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=elsewhere,
        env=env,
    ) as head:
        yield next(line.strip() for line in head.stdout if re.match(r"[\d.]+:\d+$", line))
        assert head.poll() is None, "a cluster that was there before the run is there after it"
        head.stdin.close()


def test_a_running_cluster_is_used_by_its_address_with_paths_relative_to_this_folder(
    corpus, photos, tiny_weights, tiny_settings, tmp_path, cluster_elsewhere
):
    here = tmp_path / "here"
    here.mkdir()
    (here / "tiny.safetensors").write_bytes(tiny_weights.read_bytes())
    settings = [*tiny_settings, "model.checkpoint=tiny.safetensors"]
    typed = words(os.path.relpath(photos, here), "corpus", settings, "--ray", cluster_elsewhere)
    done = start(typed, cwd=here, RAY_AUTH_MODE="disabled")
    said, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert "corpus is complete. " in said
    assert rows_of(here / "corpus") == rows_of(corpus)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_shard_that_fails_is_left_undone_and_the_others_are_not(photos, tiny_settings, tmp_path, capsys):
    collection, out = tmp_path / "photos", tmp_path / "corpus"
    for name in ("a", "b"):
        (collection / name).mkdir(parents=True)
        for number in range(2):
            (collection / name / f"{number}.png").write_bytes(
                (photos / "coffee" / f"{number}.png").read_bytes()
            )
    listed = tmp_path / "all.txt"
    listed.write_text("\n".join(f"photos/{name}/{number}.png" for name in "ab" for number in range(2)))
    (collection / "b").rename(collection / "unmounted")
    assert main(words(listed, out, tiny_settings, "--workers", "0", "--overwrite")) == 4
    said = capsys.readouterr().err
    assert "1 of 2 shards left undone" in said
    # --overwrite again would remove what is there
    assert said.endswith(f"committed shards stay, go on with: maskmill resume {out}\n")
    assert committed_shards(out) == {0}
    assert not (out / "corpus.json").exists()
    (collection / "unmounted").rename(collection / "b")
    assert main(words(listed, out, tiny_settings, "--workers", "0")) == 0
    assert "1 of 2 shards there already (2 images)" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0


@pytest.fixture
def slow(tiny_settings):
    """Settings that leave time to interfere: one image a shard, many points."""
    return [*tiny_settings, "shard_size=1", "generator.points_per_side=6"]


def test_a_run_without_ray_does_not_load_it_and_sigterm_says_how_to_resume(photos, slow, tmp_path):
    out = tmp_path / "corpus"
    arguments = words(photos, out, slow, "--workers", "0", "--overwrite")
    process = start(arguments)
    wait_for_a_shard(process, out, 2)  # it has heard of the first by then
    assert "/ray/" not in open(f"/proc/{process.pid}/maps").read()  # noqa: SIM115, PTH123
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith(f"; committed shards stay, go on with: maskmill resume {out}\n")
    assert "Traceback" not in errors
    assert 0 < len(committed_shards(out)) < 12


def test_kill_9_of_the_process_group_then_the_same_command(photos, slow, tmp_path):
    out = tmp_path / "corpus"
    arguments = words(photos, out, slow, "--workers", "1")
    process = start(arguments)
    wait_for_a_shard(process, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    time.sleep(2)  # the workers, which are not in the group, end with their driver
    before = state_of(out)
    assert 0 < len(before) < 12
    assert not (out / "corpus.json").exists()

    again = start(arguments)
    said, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert f"{len(before)} of 12 shards there already" in said
    assert state_of(out).items() >= before.items()
    assert not [path for path in (out / "shards").iterdir() if atomic.is_temporary(path.name)]
    assert main(["verify", str(out)]) == 0

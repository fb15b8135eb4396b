"""`ray job submit` on a cluster of one machine: a run joins it, outlives its driver, stops in good order, and
asks for the token.
"""

import os
import shutil
import signal
import subprocess
import sys
import uuid

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.config.loading import to_yaml
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.shards import committed_shards
from tests.support.heads import SECONDS, name_of, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head():
    with started(RAY_AUTH_MODE="disabled") as head:
        yield head


@pytest.fixture
def collection(photos, tmp_path):
    """The twelve photographs ten times over, under other names: a run long enough to be interrupted."""
    folder = tmp_path / "photos"
    for copy in range(10):
        shutil.copytree(photos, folder / str(copy))
    return folder


@pytest.fixture
def work(tmp_path, tiny_settings):
    """A small working directory: a configuration, and nothing else."""
    folder = tmp_path / "job"
    folder.mkdir()
    overrides = [*tiny_settings, "generator.points_per_side=8", "workers=2"]
    (folder / "run.yaml").write_text(to_yaml(load_config(None, overrides)))
    return folder


def submit(head, name, work, collection, out, *more, wait=True):
    """Submit `maskmill generate` from a small working directory, whose configuration it finds by its name."""
    words = [sys.executable, "-m", "maskmill", "generate", str(collection), "--out", str(out)]
    options = ["--submission-id", name, "--working-dir", str(work), *([] if wait else ["--no-wait"])]
    return head.job("submit", *options, "--", *words, "--config", "run.yaml", *more)


def driver(head, out):
    """The run's own process: not the shell that may have started it, nor Ray's supervisor."""
    found = [p for p in head.processes("-m maskmill generate", str(out)) if "sh" not in name_of(p)]
    return found[0] if found else None


def test_a_job_joins_the_cluster_and_a_second_one_goes_on_when_its_driver_is_killed(
    head, collection, work, tmp_path
):
    out = tmp_path / "corpus"
    done = submit(head, "killed", work, collection, out, "--ray", "auto", wait=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head.wait_for(lambda: committed_shards(out), "a shard")
    assert len(head.processes("gcs_server")) == 1, "the run started a Ray of its own"
    victim = driver(head, out)
    os.kill(victim, signal.SIGKILL)
    head.wait_for(lambda: "Job 'killed' failed" in head.status("killed"), "the job to have failed")
    head.wait_for(lambda: not head.processes("ray::ShardWorker"), "the workers to have ended with it")
    kept = {shard: shard_path(out, shard).stat().st_ino for shard in committed_shards(out)}
    assert 0 < len(kept) < 60
    assert not (out / "corpus.json").exists()

    done = submit(head, "again", work, collection, out)  # RAY_ADDRESS, which Ray sets, says where
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(kept)} of 60 shards there already" in done.stdout
    assert "Job 'again' succeeded" in head.status("again")
    assert {shard: shard_path(out, shard).stat().st_ino for shard in kept} == kept
    expected = sorted(f"{path.relative_to(collection)}" for path in collection.rglob("*.png"))
    assert sorted(row["key"] for row in Corpus(out)) == expected
    assert main(["verify", str(out)]) == 0


def test_a_job_that_is_stopped_ends_in_good_order_and_says_how_to_go_on(head, collection, work, tmp_path):
    out = tmp_path / "corpus"
    assert submit(head, "stopped", work, collection, out, wait=False).returncode == 0
    head.wait_for(lambda: committed_shards(out), "a shard")
    head.job("stop", "stopped")
    assert "Job 'stopped' was stopped" in head.status("stopped")
    log = head.job("logs", "stopped").stdout
    assert "interrupted: shards in hand may finish" in log
    assert "committed shards stay, go on with: maskmill resume" in log
    assert 0 < len(committed_shards(out)) < 60
    assert not (out / "lease.json").exists()


def test_who_does_not_know_the_token_is_told_so(collection, work, tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    with started(**token) as head:
        refused = head.job("list", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
        assert refused.returncode != 0
        assert "Missing authentication token" in refused.stdout + refused.stderr
        wrong = head.job("list", RAY_AUTH_TOKEN=uuid.uuid4().hex)
        assert wrong.returncode != 0
        assert "Invalid authentication token" in wrong.stdout + wrong.stderr
        typed = ["generate", str(collection), "--out", str(tmp_path / "other"), "--ray", head.address]
        command = [sys.executable, "-m", "maskmill", *typed, "--config", str(work / "run.yaml")]
        for mode in (
            {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
            {"RAY_AUTH_TOKEN": uuid.uuid4().hex},
        ):
            environment = {**head.environment, **mode}
            joined = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
            assert joined.returncode == 2, joined.stderr
            assert "something answers there: check that RAY_AUTH_MODE, token" in joined.stderr
        done = submit(head, "known", work, collection, tmp_path / "corpus")
        assert done.returncode == 0, done.stdout + done.stderr
        assert main(["verify", str(tmp_path / "corpus")]) == 0

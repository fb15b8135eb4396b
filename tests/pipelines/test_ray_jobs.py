"""`ray job submit` on a cluster of one machine: a run joins it, outlives its driver, stops in good order, and
asks for the token.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.config import load_config
from pipelines.corpus import Corpus
from pipelines.settings import to_yaml
from pipelines.shards import committed_shards, shard_path

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).with_name("ray"))
MARK = "MASKMILL_TEST_CLUSTER"  # in the environment of all that belongs to a cluster of these tests
SECONDS = 300


def free_ports(count):
    """Ports that nobody has, outside of those of Ray's workers."""
    sockets = [socket.socket() for _ in range(count + 40)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return [port for port in ports if port not in range(10002, 20000)][:count]


class Head:
    """A cluster of this machine alone, as `ray start --head` makes it."""

    def __init__(self, **environment):
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="mm", dir="/tmp"))  # sockets below it: a short path
        names = ["port", "dashboard-port", "ray-client-server-port", "object-manager-port"]
        names += ["node-manager-port", "runtime-env-agent-port", "dashboard-agent-grpc-port"]
        names += ["dashboard-agent-listen-port", "metrics-export-port"]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.address = f"127.0.0.1:{ports['port']}"
        self.dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "HOME": str(self.folder),  # where a token would be looked for
            MARK: self.mark,
            **environment,
        }
        self.environment.pop("RAY_ADDRESS", None)
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += [f"--temp-dir={self.folder}", "--num-cpus=2", "--object-store-memory=100000000"]
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
        done = self.ray("start", "--head", *options)
        assert done.returncode == 0, done.stdout + done.stderr

    def ray(self, *words, **environment):
        """A command of Ray's, as from this cluster's shell."""
        return subprocess.run(
            [RAY, *words],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def job(self, *words, **environment):
        return self.ray("job", words[0], f"--address={self.dashboard}", *words[1:], **environment)

    def processes(self, *containing):
        """Ids of this cluster's processes whose command line contains these words."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and f"{MARK}={self.mark}".encode() in (
                    folder / "environ"
                ).read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if all(word in line for word in containing):
                        found.append(int(folder.name))
            except OSError:  # gone meanwhile, or another user's
                continue
        return found

    def status(self, job):
        return self.job("status", job).stdout

    def wait_for(self, condition, what):
        until = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < until, f"{what}: not within {SECONDS} s"
            time.sleep(0.2)

    def end(self):
        """End what was started here, and nothing else: `ray stop` would end every Ray of the machine."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes():
                if process != os.getpid():
                    try:
                        os.kill(process, number)
                    except ProcessLookupError:
                        continue
            until = time.monotonic() + 10
            while self.processes() and time.monotonic() < until:
                time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def started(**environment):
    head = Head(**environment)
    try:
        yield head
    finally:
        head.end()


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
    words = [sys.executable, "-m", "pipelines.cli", "generate", str(collection), "--out", str(out)]
    options = ["--submission-id", name, "--working-dir", str(work), *([] if wait else ["--no-wait"])]
    return head.job("submit", *options, "--", *words, "--config", "run.yaml", *more)


def driver(head, out):
    """The run's own process: not the shell that may have started it, nor Ray's supervisor."""
    found = [p for p in head.processes("pipelines.cli", "generate", str(out)) if "sh" not in name_of(p)]
    return found[0] if found else None


def name_of(process):
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return "sh"


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
    assert f"{len(kept)} of 60 shards are there" in done.stdout
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
    assert "committed shards stay, go on with: maskmill generate" in log
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
        command = [sys.executable, "-m", "pipelines.cli", *typed, "--config", str(work / "run.yaml")]
        for mode in (
            {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
            {"RAY_AUTH_TOKEN": uuid.uuid4().hex},
        ):
            environment = {**head.environment, **mode}
            joined = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
            assert joined.returncode == 2, joined.stderr
            assert "something answers there: are RAY_AUTH_MODE, the token" in joined.stderr
        done = submit(head, "known", work, collection, tmp_path / "corpus")
        assert done.returncode == 0, done.stdout + done.stderr
        assert main(["verify", str(tmp_path / "corpus")]) == 0

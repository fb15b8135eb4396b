"""A Ray of the run's own: closed to other processes, and one line where it does not start."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from maskmill.pipelines.cli import main
from tests.support import heads
from tests.support.commands import words

# The owner's environment says what a user's may: no token is asked for.
OWNER = """
import json, os, sys
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.workers.cluster.connect import connect
import ray
before = {name: value for name, value in os.environ.items() if "AUTH" in name}
with connect(load_config(None, ["workers=1", "threads_per_worker=1"]), None):
    @ray.remote(num_cpus=0)
    class Actor:
        def token(self):
            return os.environ["RAY_AUTH_TOKEN"]
    actor = Actor.remote()
    said = {"address": ray.get_runtime_context().gcs_address, "token": ray.get(actor.token.remote())}
    print(json.dumps(said), flush=True)
    sys.stdin.readline()
print(json.dumps({name: value for name, value in os.environ.items() if "AUTH" in name} == before), flush=True)
"""
JOINS_AFTER = """
import sys
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.workers.cluster.connect import connect
for address in (None, sys.argv[1], None):
    with connect(load_config(None, ["workers=1", "threads_per_worker=1"]), address) as placement:
        print(placement.workers, flush=True)
"""
CLIENT = """
import os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=0)
def pid():
    return os.getpid()
print("ran in", ray.get(pid.remote(), timeout=60))
"""


@pytest.fixture(scope="module")
def owner(tmp_path_factory):
    """A process that holds a Ray, and what it says of it; its home and temporary folders are empty before."""
    home, tmp = tmp_path_factory.mktemp("home"), Path(tempfile.mkdtemp(prefix="own-", dir="/tmp"))
    environment = {"RAY_AUTH_MODE": "disabled", "HOME": str(home), "TMPDIR": str(tmp)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, json.loads(process.stdout.readline()), home, tmp
    process.stdin.close()
    assert json.loads(process.stdout.readline()) is True, "the environment is as it was"
    assert process.wait(timeout=60) == 0
    assert not [*tmp.iterdir()], "its folder goes with it"
    shutil.rmtree(tmp)


def family(process):
    """The process and all that it started."""
    import ray  # noqa: F401  (brings psutil)
    from psutil import Process

    owner = Process(process.pid)
    return [owner, *owner.children(recursive=True)]


@pytest.mark.slow
@pytest.mark.parametrize("known", ["nothing", "another token", "its token"])
def test_who_does_not_know_the_token_runs_nothing(owner, known):
    _process, said, _home, _tmp = owner
    token = {"another token": secrets.token_hex(32), "its token": said["token"]}.get(known)
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    on_loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray takes 127.0.0.1 for the outer address
    client = [sys.executable, "-c", CLIENT, said["address"]]
    done = subprocess.run(
        client, env=os.environ | on_loopback | mode, capture_output=True, text=True, timeout=200
    )
    if known == "its token":
        assert "ran in" in done.stdout, done.stderr
    else:
        assert done.returncode != 0
        assert "ran in" not in done.stdout
        assert "Unauthenticated" in done.stderr, done.stderr


@pytest.mark.slow
def test_the_token_is_written_nowhere(owner):
    process, said, home, tmp = owner
    (folder,) = tmp.iterdir()
    assert folder.stat().st_mode & 0o077 == 0, "only its user reaches the sockets"
    assert (folder / "r").is_dir()
    assert not [*home.rglob("*")], "Ray keeps tokens of its own in ~/.ray"
    for path in [path for path in tmp.rglob("*") if path.is_file()]:
        assert said["token"].encode() not in path.read_bytes(), path
    processes = family(process)
    assert any("raylet" in one.name() for one in processes)
    for one in processes:
        assert said["token"] not in " ".join(one.cmdline())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's table of sockets")
def test_it_listens_on_loopback_alone_and_starts_no_more_than_it_needs(owner):
    processes = family(owner[0])
    listening = {
        socket.laddr.ip
        for one in processes
        for socket in one.net_connections("inet")
        if socket.status == "LISTEN"
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert len(listening) == 2
    started = " ".join(" ".join(one.cmdline()[:4]) for one in processes)
    assert not {name for name in ("dashboard.py", "monitor.py", "log_monitor.py") if name in started}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a process cannot be held")
def test_what_the_raylet_has_no_time_to_end_is_ended():
    patch = """
from ray._private.node import Node
end = Node.kill_all_processes
def end_at_once(node, **options):
    node.all_processes["raylet"][0].process.kill()
    end(node, **options)
Node.kill_all_processes = end_at_once
"""
    process = subprocess.Popen(
        [sys.executable, "-c", patch + OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    started = family(process)[1:]
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    left = [one.cmdline() for one in started if one.is_running() and one.status() != "zombie"]
    assert not left


@pytest.mark.slow
def test_a_cluster_with_a_token_of_its_own_is_joined_after_and_before(tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with heads.started(**token) as head:
        run = [sys.executable, "-c", JOINS_AFTER, head.address]
        done = subprocess.run(run, env=os.environ | token, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["1", "1", "1"], done.stderr


@contextmanager
def limited_threads(most):
    """A control group of at most so many threads, for the processes that are put there."""
    top = next((p for p in map(Path, ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")) if p.is_dir()), None)
    group = (top or Path("/nowhere")) / f"maskmill-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(most))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def command(photos, tmp_path, settings):
    typed = words(photos, tmp_path / "corpus", settings, "--workers", "1")
    return [sys.executable, "-m", "maskmill", *typed]


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **options)
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("0/")]


@pytest.mark.slow
def test_too_few_threads_are_one_line(photos, tiny_settings, tmp_path):
    with limited_threads(90) as group:
        typed = command(photos, tmp_path, tiny_settings)
        inside = ["sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "sh", *typed]
        code, (line,) = run(inside)
    assert code == 4
    assert line.startswith("maskmill: Ray did not start on this machine (--workers 0 runs without it): ")
    assert "expected " in line
    assert "threads that may be started" in line


def test_too_little_address_space_is_one_line(photos, tiny_settings, tmp_path):
    inside = ["sh", "-c", 'ulimit -v 3000000 && exec "$@"', "sh", *command(photos, tmp_path, tiny_settings)]
    code, (line,) = run(inside)
    assert code == 4
    assert "expected 3.8 GiB of address space, got 2.9: raise ulimit -v" in line


READ_ONLY = (
    "mount --bind /tmp /tmp && mount -o remount,ro,bind /tmp && mount -t tmpfs -o ro none /dev/shm && "
    'exec "$@"'
)


def test_nowhere_to_write_is_one_line(photos, tiny_settings):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mounts can be made here")
    away = Path(tempfile.mkdtemp(dir="/var/tmp"))  # the corpus can be written
    typed = command(photos, away, tiny_settings)
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    environment |= {"RAY_TMPDIR": "/tmp", "TMPDIR": f"/nowhere/{'long' * 20}"}
    try:
        code, (line,) = run(["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *typed], env=environment)
    finally:
        shutil.rmtree(away)
    assert code == 2
    assert "Ray needs a folder that can be written" in line
    assert "/tmp: Read-only file system; /nowhere/" in line
    assert "its path is too long; /dev/shm: Read-only file system): set RAY_TMPDIR" in line


@pytest.mark.parametrize("kept", [None, "theirs"])
def test_what_ray_raises_is_one_line_and_the_environment_comes_back(
    kept, photos, tiny_settings, tmp_path, monkeypatch, capsys
):
    from maskmill.pipelines.workers.cluster import connect, own_ray

    seen = {}

    def init(**options):
        seen.update(options, token=os.environ["RAY_AUTH_TOKEN"], mode=os.environ["RAY_AUTH_MODE"])
        raise Exception("the \x1b[31mport\x1b[0m\nis taken")

    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(own_ray.ray, "init", init)
    monkeypatch.setattr(own_ray.ray, "shutdown", lambda: None)
    monkeypatch.setattr(own_ray, "_read_again", lambda: None)  # the tests' Ray keeps its token
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if kept:
        monkeypatch.setenv("RAY_AUTH_TOKEN", kept)
    before = dict(os.environ)
    assert main(words(photos, tmp_path / "corpus", tiny_settings, "--workers", "1")) == 4
    folder = Path(seen["_temp_dir"]).parent
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "maskmill: Ray did not start on this machine (--workers 0 runs without it): the port is taken; "
        f"Ray's logs are in {folder}"
    )
    assert dict(os.environ) == before
    assert (seen["mode"], len(seen["token"])) == ("token", 64)
    assert seen["token"] != kept
    folder.rmdir()


@pytest.mark.slow
def test_a_tmpdir_too_long_for_sockets_is_passed_over(photos, tiny_settings, tmp_path):
    far = tmp_path / ("x" * 90)
    far.mkdir()
    typed = command(photos, tmp_path, tiny_settings)
    code, lines = run(typed, env=os.environ | {"TMPDIR": str(far), "RAY_TMPDIR": ""})
    assert code == 0, lines
    assert main(["verify", str(tmp_path / "corpus")]) == 0

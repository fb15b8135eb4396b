"""A cluster of this machine alone, as `ray start --head` makes it, and the end of all that belongs to it."""

import json
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


def name_of(process):
    """What the kernel calls it; `sh` where it is gone."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return "sh"


class Head:
    """The cluster; `autoscaling` is what Ray's autoscaler reads, but for the head's address."""

    def __init__(self, *, num_cpus=2, autoscaling=None, **environment):
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
        options += [f"--temp-dir={self.folder}", f"--num-cpus={num_cpus}", "--object-store-memory=100000000"]
        options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
        if autoscaling:
            provider = {**autoscaling["provider"], "gcs_address": self.address}
            path = self.folder / "autoscaling.json"
            path.write_text(json.dumps({**autoscaling, "provider": provider}))
            options.append(f"--autoscaling-config={path}")
        done = self.ray("start", "--head", *options)
        if done.returncode != 0:
            self.end()
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

    def nodes(self):
        """How many nodes live: each has one raylet."""
        return sum(name_of(process) == "raylet" for process in self.processes("raylet"))

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
def started(**options):
    """A head with these options, ended after the block with all it started."""
    head = Head(**options)
    try:
        yield head
    finally:
        head.end()

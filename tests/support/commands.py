"""The command as it is typed, and as a process that can be signalled."""

import os
import signal
import subprocess
import sys
import time

from maskmill.pipelines.format.shards import committed_shards


def words(photos, out, settings, *more):
    """`maskmill generate` as it is typed, after the program's name."""
    typed = ["generate", str(photos), "--out", str(out), *more]
    for setting in settings:
        typed += ["--set", setting]
    return typed


def start(arguments, cwd=None, **environment):
    """The command as from a shell, which leaves SIGINT alone, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "maskmill", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def wait_for_a_shard(process, out, count=1):
    """Until `count` are committed; the process must not end before."""
    while len(committed_shards(out)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)

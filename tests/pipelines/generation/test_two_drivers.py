"""Two runs on one corpus at once, with nothing that keeps them apart: rows are single all the same."""

import os
import subprocess
import sys

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.plan import read_plan

WITHOUT_LEASE = """
import contextlib, sys
from maskmill.pipelines.cli import main
from maskmill.pipelines.writing import session
class Unheld:
    is_lost = False
    def check(self): pass
session.held = lambda out, say, is_there: contextlib.nullcontext(Unheld())
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_without_the_lease_the_first_commit_of_each_shard_wins(photos, tiny_settings, tmp_path):
    out = tmp_path / "corpus"
    typed = ["generate", str(photos), "--out", str(out), "--workers", "0"]
    for setting in [*tiny_settings, "shard_size=1"]:
        typed += ["--set", setting]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WITHOUT_LEASE, *typed]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    # One may sweep away what the other is writing: that one is told to run the same command again.
    assert {process.returncode for process in both} <= {0, 4}, errors
    assert main(typed) == 0
    assert [row["key"] for row in Corpus(out)] == read_plan(out).column("key").to_pylist()
    assert main(["verify", str(out)]) == 0

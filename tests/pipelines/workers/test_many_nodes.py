"""A run on several nodes of one machine, with logical GPUs: one node is lost, and one joins."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from ray.cluster_utils import Cluster

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.shards import committed_shards

pytestmark = pytest.mark.slow

SECONDS = 300

NANO = ["--config", "nano", "--set", "generator.points_per_side=6", "--set", "shard_size=2"]


@pytest.fixture
def collection(photos, tmp_path):
    """The twelve photographs six times over, under other names."""
    folder = tmp_path / "photos"
    for copy in range(6):
        shutil.copytree(photos, folder / str(copy))
    return folder


def generate(collection, out, address, *options, **environment):
    """`maskmill generate` with the bundled network, a logical GPU to a worker."""
    words = [
        "generate",
        str(collection),
        "--out",
        str(out),
        "--ray",
        address,
        *NANO,
        "--gpus-per-worker",
        "1",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "maskmill", *words, "--cpus-per-worker", "1", *options],
        env={
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process):
    until = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, f"not within {SECONDS} s"
        time.sleep(0.1)


def files_of(out, shards):
    return {shard: shard_path(out, shard).stat().st_ino for shard in shards}


def check_complete(out, collection):
    """Each input is one row, none for its worker's sake, and all is as it says."""
    rows = list(Corpus(out).rows())
    expected = sorted(f"{path.relative_to(collection)}" for path in collection.rglob("*.png"))
    assert sorted(row["key"] for row in rows) == expected
    assert not [row["key"] for row in rows if row["status"] == "rejected"]
    assert main(["verify", str(out)]) == 0


def test_a_node_that_is_lost_and_one_that_joins(collection, tmp_path):
    out, log = tmp_path / "corpus", tmp_path / "log.jsonl"
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        lost, _stays = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        options = ["--workers", "1:3", "--log-json", str(log)]
        process = generate(collection, out, cluster.address, *options)
        wait_for(lambda: len(committed_shards(out)) >= 3, process)
        cluster.add_node(num_cpus=1, num_gpus=1)
        kept = files_of(out, committed_shards(out))
        cluster.remove_node(lost, allow_graceful=False)
        said = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == 0, said
    finally:
        cluster.shutdown()
    assert files_of(out, kept) == kept
    check_complete(out, collection)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    told = [event["event"] for event in events]
    assert "worker_lost" in told
    assert told.count("worker_ready") >= 3, "the node that joined had a worker"
    assert told.count("shard_committed") == 36

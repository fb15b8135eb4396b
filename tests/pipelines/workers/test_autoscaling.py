"""Growth and shrinking with Ray's own autoscaler, whose nodes are processes of this machine: 0 → 2 → 0."""

import json
import subprocess
import sys
import time

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from tests.support.heads import started

pytestmark = pytest.mark.slow

SECONDS = 300
LOGICAL_GPU = {
    "resources": {"CPU": 2, "GPU": 1},
    "min_workers": 0,
    "max_workers": 2,
    "node_config": {},
}
NOTHING_TO_SET_UP = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
AUTOSCALING = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 8.0,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True,
        "use_node_id_as_ip": True,  # all nodes have one address here: by it none is told idle, and none goes
    },
    "auth": {"ssh_user": "nobody"},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": LOGICAL_GPU,
    },
    **{name: [] for name in NOTHING_TO_SET_UP},
}


@pytest.fixture
def head():
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with started(num_cpus=0, autoscaling=AUTOSCALING, **environment) as head:
        yield head


def test_nodes_come_for_a_run_and_go_after_it(head, photos, tmp_path):
    out, log = tmp_path / "corpus", tmp_path / "log.jsonl"
    assert head.nodes() == 1, "nothing but the head"
    words = ["generate", str(photos), "--out", str(out), "--ray", head.address, "--config", "nano"]
    words += ["--set", "generator.points_per_side=8", "--set", "shard_size=1", "--log-json", str(log)]
    words += ["--workers", "2:2", "--gpus-per-worker", "1", "--cpus-per-worker", "2"]
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "maskmill", *words],
            env=head.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            most, until = 1, time.monotonic() + SECONDS
            while run.poll() is None and time.monotonic() < until:
                most = max(most, head.nodes())
                time.sleep(0.2)
        finally:
            run.kill()
    assert run.wait() == 0, said.read_text()
    assert most == 3, "the head, and a node for each worker"
    head.wait_for(lambda: head.nodes() == 1, "the nodes to have gone")

    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert sorted(row["key"] for row in Corpus(out).rows()) == expected
    assert main(["verify", str(out)]) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    ready = [event for event in events if event["event"] == "worker_ready"]
    assert len({event["node"] for event in ready}) == 2
    assert not [event for event in events if event["event"] == "worker_lost"]

"""`cluster.yaml`, as Ray's own launcher reads it; offline."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def config():
    return yaml.safe_load(CLUSTER.read_text())


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_worker", 3), ("provider", {"region": "us-west-2"}), ("setup_commands", "pip install ray")],
)
def test_rays_validator_refuses_a_spoilt_file(config, key, value):
    with pytest.raises(Exception, match=r".+"):  # jsonschema's or Ray's own, by version
        validate_config(prepare_config(config | {key: value}))


def test_rays_validator_accepts_it(config):
    validate_config(prepare_config(config))


def test_nothing_is_left_to_rays_defaults_which_install_a_nightly(config):
    prepared = prepare_config(config)
    commands = [
        command
        for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")
        for command in prepared[name]
    ]
    commands += prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    assert not [command for command in commands if "ray-wheels" in command or "anaconda" in command]
    assert all("~/venv/bin/ray" in command for command in prepared["head_start_ray_commands"])
    assert all("~/venv/bin/ray" in command for command in prepared["worker_start_ray_commands"])


def test_the_head_has_no_gpu_and_the_workers_are_spot(config):
    types = config["available_node_types"]
    assert "GPU" not in types[config["head_node_type"]]["resources"]
    workers = [value for name, value in types.items() if name != config["head_node_type"]]
    assert workers
    for worker in workers:
        assert worker["resources"]["GPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"

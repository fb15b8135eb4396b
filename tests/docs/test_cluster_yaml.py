"""`cluster.yaml` and its twin for Google Cloud, by Ray's own launcher, and what that passes over."""

import re
import shlex
import subprocess
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

import maskmill
from maskmill.model.checkpoints.zoo import CHECKPOINTS
from tests.support.command_lines import check_maskmill, commands_in

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "cluster.yaml", ROOT / "examples" / "cluster-gcp.yaml"]
WORKER_PORTS = range(10002, 20000)
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def config(path):
    return yaml.safe_load(path.read_text())


def start_command(config, name):
    """The line that starts Ray, and its options as Ray's own parser reads them."""
    [line] = [line for line in config[name] if "ray start" in line]
    words = shlex.split(line[line.index("ray start") :])[2:]
    return line, start.make_context("start", words).params


def environment(line):
    """What a start command exports."""
    words = shlex.split(re.search(r"export ([^;]+);", line)[1])
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_worker", 3),
        ("provider", {"region": "us-west-2"}),
        ("setup_commands", "pip install ray"),
        ("head_node_type", "haed"),
    ],
)
def test_rays_validator_refuses_a_spoilt_file(config, key, value):
    with pytest.raises(Exception, match=r".+"):  # jsonschema's or Ray's own, by version
        validate_config(prepare_config(config | {key: value}))


def test_rays_validator_accepts_it(config):
    validate_config(prepare_config(config))


def test_nothing_is_left_to_rays_defaults_which_install_a_nightly(config):
    prepared = prepare_config(config)
    setup = [
        command
        for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")
        for command in prepared[name]
    ]
    starts = [command for name in STARTS for command in prepared[name]]
    assert not [c for c in setup + starts if re.search("ray-wheels|anaconda|dev0|nightly|latest", c)]
    assert all("~/venv/bin/ray" in command for command in starts)
    assert set(re.findall(r"ray==([\d.]+)", " ".join(setup))) == {"2.60.0"}


def test_every_shell_command_is_one(config):
    names = ("setup_commands", "head_setup_commands", "worker_setup_commands", *STARTS)
    for command in [command for name in names for command in config[name]]:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert not checked.stderr, command


def test_the_head_runs_no_shard_and_the_workers_are_spot_from_none_to_the_most(config):
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert types
    for worker in types.values():
        assert worker["resources"]["GPU"] >= 1
        assert worker["resources"]["CPU"] >= 1
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= config["max_workers"]
        node = worker["node_config"]
        if config["provider"]["type"] == "aws":
            assert node["InstanceMarketOptions"]["MarketType"] == "spot"
            assert node["ImageId"], "Ray's default has no driver that torch would take"
        else:
            assert node["scheduling"]["provisioningModel"] == "SPOT"
            assert node["scheduling"]["onHostMaintenance"] == "TERMINATE", "a GPU cannot be moved"
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["idle_timeout_minutes"] > 0


def test_a_node_on_aws_is_asked_for_in_words_that_ec2_has():
    ec2 = botocore.session.get_session().get_service_model("ec2")
    shape = ec2.operation_model("RunInstances").input_shape

    def complaints(node):
        return ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node}, shape).generate_report()

    types = yaml.safe_load(FILES[0].read_text())["available_node_types"]
    for node_type in types.values():
        assert complaints(node_type["node_config"]) == ""
    assert "MarketKind" in complaints({"InstanceMarketOptions": {"MarketKind": "spot"}})


@pytest.mark.parametrize("name", STARTS)
def test_ray_is_started_with_options_that_it_has_and_ports_that_are_not_the_workers(config, name):
    _, options = start_command(config, name)
    assert options["head"] == (name == STARTS[0])
    assert (options["min_worker_port"], options["max_worker_port"]) == (WORKER_PORTS[0], WORKER_PORTS[-1])
    named = {
        option: value
        for option, value in options.items()
        if option.endswith("_port") and value and "worker" not in option
    }
    wanted = {"object_manager", "node_manager", "runtime_env_agent", "dashboard_agent_grpc"}
    wanted |= {"dashboard_agent_listen", "metrics_export"}
    assert {f"{part}_port" for part in wanted} <= set(named), "else Ray draws one"
    ports = [int(port) for port in [*named.values(), options["port"] or 6379]]
    assert not set(ports) & set(WORKER_PORTS)
    assert len(set(ports)) == len(ports)


def test_every_node_is_told_the_same_mode_of_authentication_and_where_the_weights_are(config):
    told = [environment(start_command(config, name)[0]) for name in STARTS]
    [profile] = [command for command in config["setup_commands"] if "~/.profile" in command]
    [weights] = [command for command in config["setup_commands"] if "models get" in command]
    assert {each["RAY_AUTH_MODE"] for each in told} == {"disabled"}
    assert "RAY_AUTH_MODE=disabled" in profile
    for each in told:
        assert f"MASKMILL_CACHE={each['MASKMILL_CACHE']} " in weights
        assert f"MASKMILL_CACHE={each['MASKMILL_CACHE']} " in profile
    assert weights.split("models get ")[1].split()[0] in CHECKPOINTS


def test_a_job_that_is_stopped_has_more_than_the_grace_to_end_in_good_order(config):
    grace = check_maskmill(["generate", "photos", "--out", "corpus"]).cluster.grace_seconds
    assert int(environment(start_command(config, STARTS[0])[0])["RAY_JOB_STOP_WAIT_TIME_S"]) > grace


def test_the_wheel_that_is_mounted_is_of_this_version(config, path):
    version = maskmill.__version__
    assert config["file_mounts"] == {"~/maskmill": f"dist/{version}"}
    made = f"pip wheel --no-deps --wheel-dir dist/{version} . && cp constraints.txt dist/{version}/"
    for where in (path, ROOT / "docs" / "cluster.md", ROOT / "examples" / "Dockerfile"):
        assert made in where.read_text(encoding="utf-8")


def test_the_command_at_its_top_fits_the_nodes(config, path):
    [run] = [words for words in commands_in(path.read_text(), "maskmill") if words[0] == "generate"]
    settings = check_maskmill(run)
    [worker] = [t for name, t in config["available_node_types"].items() if name != config["head_node_type"]]
    assert settings.threads_per_worker == worker["resources"]["CPU"]
    assert int(run[run.index("--workers") + 1]) == worker["max_workers"]
    assert settings.cluster.gpus_per_worker == worker["resources"]["GPU"]
    assert settings.model.device == "cuda"

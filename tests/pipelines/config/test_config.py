"""Configuration: what is refused first, then what is read, shipped, printed and hashed."""

import json
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from maskmill.model.config import MODELS
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.loading import to_yaml
from maskmill.pipelines.config.run import ModelConfig, RunConfig, decides_rows, digest, digest_of, load_config
from maskmill.pipelines.config.shipped import find_config
from maskmill.pipelines.errors import ConfigError
from maskmill.pipelines.storage.json_files import canonical, sha256_hex

SHIPPED = ("nano", "mobile_sam", "sam_vit_h", "sa1b")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("points_per_side", "expected key=value"),
        ("=3", "expected key=value"),
        ("generator..x=3", "expected key=value"),
        (
            "generator.point_per_side=16",
            "unknown key generator.point_per_side, did you mean generator.points_per_side?",
        ),
        ("points_per_side=16", "unknown key points_per_side, did you mean generator.points_per_side?"),
        ("max_pixels=16", "did you mean input.max_pixels?"),
        ("shardsize=16", "did you mean shard_size?"),
        ("model.precison=bf16", "did you mean model.precision?"),
        ("model.zzz=1", "unknown key model.zzz; known here: name, checkpoint, precision, device"),
        ("shard_size.x=16", "shard_size: expected auto, or a whole number from 1 to 100000, got {"),
        ("shard_size=0", "shard_size: expected auto, or a whole number from 1 to 100000, got 0"),
        ("shard_size=100001", "got 100001"),
        ("shard_size=many", "shard_size: expected auto, or a whole number from 1 to 100000, got 'many'"),
        (
            "model=vit_h",
            "model: expected a section with name, checkpoint, precision, device, compile, got 'vit_h'",
        ),
        (
            "model.name=vit_x",
            "model.name: should be 'nano', 'vit_b', 'vit_l', 'vit_h' or 'vit_t', got 'vit_x'",
        ),
        ("generator.pred_iou_thresh=1.5", "generator.pred_iou_thresh: should be less than or equal to 1"),
        ("generator.pred_iou_thresh=.nan", "generator.pred_iou_thresh: "),
        ("cluster.stall_seconds=.inf", "cluster.stall_seconds: should be a finite number"),
        ("generator.stability_score_offset=.inf", "generator.stability_score_offset: should be a finite"),
        ("workers=[1", "not valid YAML"),
        ("model.checkpoint=2020-13-45", "not a value: ValueError: month must be in 1..12; quote what"),
        ('shard_size=!!int "x"', "not a value: ValueError: invalid literal for int()"),
        ('embed_images=!!bool "x"', "not a value: KeyError: 'x'"),
        ('model.name=!!timestamp "x"', "not a value: AttributeError: "),
        (f"workers={'[' * 999}", "not a value: RecursionError: "),
        (
            "workers=!!python/object/apply:os.getpid []",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.getpid'",
        ),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--set" in str(caught.value)


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="shard_size is a value, it has no key 'x'"):
        load_config(None, ["shard_size=3", "shard_size.x=4"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n- 2\n", "expected keys and values, got list"),
        ("model: {name: nano\n", "not valid YAML at line"),
        ("model:\n  name: !env NAME\n", "at line 2: the tag '!env' is not allowed, only plain values are"),
        ("a: !!python/name:os.system\n", "is not allowed"),
        ("shard_size: 4\nshard_size: 8\n", "at line 2: the key 'shard_size' is given twice"),
        ("generator:\n  points: 3\n", "unknown key generator.points"),
        ("model: nano\n", "model: expected a section"),
        ("\0", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(tmp_path, text, expected):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path)


def test_a_name_that_is_not_shipped_lists_those_that_are():
    with pytest.raises(ConfigError, match=r"nanoo: .*mobile_sam.*nano.*sam_vit_h"):
        load_config("nanoo")


def test_no_file_means_defaults_and_an_empty_file_too(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert load_config(None) == RunConfig() == load_config(empty)


def test_a_later_override_wins_and_a_file_loses_to_both(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("shard_size: 4\ngenerator: {points_per_side: 8}\n")
    config = load_config(path, ["shard_size=5", "generator.crop_n_layers=1", "shard_size=6"])
    assert (config.shard_size, config.generator.points_per_side, config.generator.crop_n_layers) == (6, 8, 1)


def test_values_are_read_as_yaml():
    config = load_config(
        None, ["workers=null", "model.checkpoint=a=b.pt", "input.extensions=[.jpg]", "embed_images=yes"]
    )
    assert config.workers is None
    assert config.model.checkpoint == "a=b.pt"
    assert config.input.extensions == (".jpg",)
    assert config.embed_images is True


def test_the_keys_that_scripts_rely_on():
    config = load_config(
        None,
        [
            "shard_size=3",
            "workers=0",
            "model.name=vit_b",
            "model.checkpoint=x.pth",
            "model.precision=bf16",
            "generator.points_per_side=4",
            "generator.pred_iou_thresh=0.5",
            "generator.stability_score_thresh=0.5",
            "generator.crop_n_layers=1",
            "generator.min_mask_region_area=100",
            "input.max_pixels=1000",
        ],
    )
    assert config.model.model_dump() == {
        "name": "vit_b",
        "checkpoint": "x.pth",
        "precision": "bf16",
        "device": "auto",
        "compile": False,
    }


def test_it_is_frozen():
    with pytest.raises(ValidationError):
        RunConfig().shard_size = 3


def _fields(kind, prefix=""):
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_every_field_is_described():
    assert [name for name, field in _fields(RunConfig) if not field.description] == []


def test_every_model_can_be_named():
    assert set(get_args(ModelConfig.model_fields["name"].annotation)) == set(MODELS)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load_from_anywhere_and_open_with_their_command(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_config(name)
    head = find_config(name).read_text().split("\nmodel:")[0]
    assert f"maskmill generate photos/ --out corpus/ --config {name}" in head
    assert "Cost: " in head
    assert "Result: " in head


def test_a_file_of_that_name_in_this_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano.yaml").write_text("shard_size: 77\n")
    assert load_config("nano.yaml").shard_size == 77
    assert load_config("nano").shard_size != 77


@pytest.mark.parametrize("name", [None, *SHIPPED])
def test_what_is_printed_reads_back_as_the_same_configuration(tmp_path, name):
    config = load_config(name, ["model.checkpoint='odd: name.pth'", "workers=null"])
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    assert list(yaml.safe_load(path.read_text())) == list(RunConfig.model_fields)


@pytest.mark.parametrize(
    "override",
    [
        "workers=3",
        "threads_per_worker=3",
        "model.checkpoint=x.pth",  # the weights' sha256 stands for it
        "model.device=cpu",
        "generator.points_per_batch=64",
        "generator.encode_batch=4",
        "cluster.images_ahead=3",
        "input.extensions=[.jpg]",
    ],
)
def test_the_digest_overlooks_what_decides_no_row(override):
    assert digest(load_config(None, [override])) == digest(RunConfig())
    assert not decides_rows(override.partition("=")[0])


@pytest.mark.parametrize(
    "override",
    [
        "model.name=vit_b",
        "model.precision=bf16",
        "shard_size=3",
        "embed_images=true",
        "input.max_pixels=5",
        *(
            f"generator.{name}=0.5"
            for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
        ),
        "generator.min_mask_region_area=3",
        "generator.max_mask_area_fraction=0.5",
    ],
)
def test_the_digest_tells_apart_what_does(override):
    assert digest(load_config(None, [override])) != digest(RunConfig())
    assert decides_rows(override.partition("=")[0])


@pytest.mark.parametrize("overrides", [[], ["model.device=cpu", "workers=3", "generator.crop_n_layers=1"]])
def test_the_digest_can_be_computed_from_what_is_recorded(overrides):
    config = load_config(None, overrides)
    values = config.model_dump(mode="json")
    left_out = {name for name in dict(flat(values)) if not decides_rows(name)}
    assert digest_of(json.loads(json.dumps(values))) == digest(config)
    assert left_out >= {"model.device", "workers", "cluster.grace_seconds", "generator.points_per_batch"}
    for name in left_out:
        section, _, rest = name.partition(".")
        del (values[section] if rest else values)[rest or section]
    assert sha256_hex(canonical({name: value for name, value in values.items() if value != {}})) == digest(
        config
    )


def flat(values, prefix=""):
    for name, value in values.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def test_the_digest_is_that_of_the_values_not_of_the_objects():
    assert len(digest(RunConfig())) == 64
    assert digest(RunConfig()) == digest(RunConfig.model_validate(RunConfig().model_dump(mode="json")))


@pytest.mark.parametrize(
    ("settings", "pred_iou", "stability"),
    [
        ([], "0.58  # recommended for nano", "0.8  # recommended for nano"),
        (["generator.pred_iou_thresh=0.5"], "0.5", "0.8  # recommended for nano"),
        (
            ["model.name=vit_h", "generator.stability_score_thresh=0.9"],
            "0.88  # recommended for vit_h, whose weights are not here",
            "0.9",
        ),
    ],
)
def test_print_config_says_which_thresholds_are_the_models(
    settings, pred_iou, stability, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path))
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["generate", "--print-config", *words]) == 0
    printed = capsys.readouterr().out
    assert f"  pred_iou_thresh: {pred_iou}\n" in printed
    assert f"  stability_score_thresh: {stability}\n" in printed
    (tmp_path / "printed.yaml").write_text(printed)
    thresholds = load_config(tmp_path / "printed.yaml").generator
    assert (thresholds.pred_iou_thresh, thresholds.stability_score_thresh) == (
        float(pred_iou.split()[0]),
        float(stability.split()[0]),
    )

"""The commands of docs/training.md and of the shipped recipes: they parse, and what they set can be set."""

from pathlib import Path

import pytest

from maskmill.pipelines.config.loading import load_settings
from maskmill.pipelines.training.config import TrainConfig
from maskmill.pipelines.training.pretrain import PretrainConfig
from tests.support.command_lines import commands_in, parse

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "docs" / "training.md",
    ROOT / "examples" / "loop.sh",
    *sorted(ROOT.glob("configs/*train*.yaml")),
]
KINDS = {"train": TrainConfig, "pretrain": PretrainConfig}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_mean_something(path):
    commands = [words for words in commands_in(path.read_text(), "maskmill") if words]
    assert commands, "there are some"
    for words in commands:
        command, values = parse(words)
        assert command.name != "maskmill", words
        if command.name in KINDS:
            overrides = [value.replace("$out", "out") for value in values["set_"] or ()]
            load_settings(KINDS[command.name], values["config"], overrides)


def test_the_papers_recipe_is_the_papers():
    recipe = load_settings(TrainConfig, "train_sam")
    assert (recipe.prompts, recipe.clicks, recipe.refine, recipe.box_share) == ("interaction", 8, True, 0.5)
    assert (recipe.drop_path, recipe.layer_decay, recipe.largest_mask) == (0.6, 0.6, 0.9)
    assert (recipe.optimizer, recipe.focal_weight, recipe.iou_weight) == ("adamw", 20, 1)
    assert recipe.learning_rate_at(249) == recipe.learning_rate_at(119_999) == pytest.approx(8e-4)
    assert recipe.learning_rate_at(120_000) == pytest.approx(8e-5)
    assert recipe.learning_rate_at(179_999) == pytest.approx(8e-6)

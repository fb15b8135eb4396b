"""The presets for the public weights, from a photograph to a verified corpus, with noise in their place."""

import json

import numpy as np
import pytest
from PIL import Image

from maskmill.model.checkpoints.loading import save_sam
from maskmill.pipelines.bench.random_weights import random_sam
from maskmill.pipelines.cli import main
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.corpus.reader import Corpus

pytestmark = pytest.mark.slow

SIDE_PROMPTS = 32 * 32


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """Soft blobs, a little larger than a crop of the second layer is at its least."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    folder = tmp_path_factory.mktemp("photographs")
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "blobs.png")
    return folder


@pytest.mark.parametrize(
    ("preset", "network", "prompts"),
    [
        ("mobile_sam", "vit_t", SIDE_PROMPTS),
        ("sam_vit_h", "vit_h", SIDE_PROMPTS),
        # 21 encodes: of ViT-H, which the line above runs, they would take this machine's CPU half an hour.
        ("sa1b", "vit_b", SIDE_PROMPTS + 4 * 16 * 16 + 16 * 8 * 8),
    ],
)
def test_a_preset_runs_from_photograph_to_verified_corpus(
    photograph, tmp_path, capsys, preset, network, prompts
):
    pixels_HW3 = np.asarray(Image.open(photograph / "blobs.png"))
    weights, out = tmp_path / "noise.safetensors", tmp_path / "corpus"
    save_sam(random_sam(network, pixels_HW3), weights)
    # Noise is seldom sure: at the presets' own thresholds nothing would be left to clean up and to write.
    settings = [
        f"model.name={network}",
        f"model.checkpoint={weights}",
        "model.device=cpu",
        "generator.pred_iou_thresh=0.6",
        "generator.stability_score_thresh=0.5",
    ]
    words = ["generate", str(photograph), "--out", str(out), "--config", preset, "--workers", "0"]
    for setting in settings:
        words += ["--set", setting]
    assert main(words) == 0
    assert main(["verify", str(out)]) == 0

    (row,) = Corpus(out)
    assert row["status"] == "ok"
    assert row["candidates"] == 3 * prompts
    assert row["candidates"] == len(row["annotations"]) + sum(row["drops"].values())
    shipped, ran = load_config(preset, []), json.loads((out / "run.json").read_text())["config"]
    kept = shipped.generator.model_dump(mode="json").items() - {
        ("pred_iou_thresh", shipped.generator.pred_iou_thresh),
        ("stability_score_thresh", shipped.generator.stability_score_thresh),
    }
    assert kept <= ran["generator"].items()
    area = row["width"] * row["height"]
    if shipped.generator.drop_small_masks:
        assert all(100 <= mask["area"] < 0.95 * area for mask in row["annotations"])

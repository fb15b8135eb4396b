"""Every shipped way of generating gives the same run-length codes on a pretended GPU as on the CPU, in fp32.

With trained weights as the CPU's own backend gives them. Masks of noise have edges all over the image, where
one pixel in ten thousand lies so close to the threshold that the order of a sum decides: those are held
against the device's backend on the CPU, which sums in the same order.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import yaml
from PIL import Image

from maskmill.engine import MaskGenerator
from maskmill.engine.backends.device import OnDevice
from maskmill.model import MODELS, load_sam
from maskmill.model.kernels import cells
from maskmill.pipelines.bench.random_weights import random_sam
from maskmill.pipelines.config.run import load_config
from tests.support.pretend_cuda import PretendCuda

pytestmark = pytest.mark.usefixtures("device_guard", "one_thread")
CONFIGS = Path(__file__).parents[3] / "configs"
FEW_POINTS = {"points_per_side": 4}
NANO = FEW_POINTS | {"pred_iou_thresh": 0.35, "stability_score_thresh": 0.5}
NOISE = FEW_POINTS | {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.3}
# All masks of noise are alike.
NOISE |= {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
QUICK = {"nano": ["sam_vit_h"], "vit_t": ["mobile_sam", "nano", "sam_vit_h"]}
"""Of each network, presets that take no seconds."""


def presets():
    """Shipped configurations that generate."""
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    return sorted(name for name, values in files.items() if isinstance(values["model"], dict))


def of_each_preset(model):
    """A test's parameter; the presets that take long are slow tests."""
    return pytest.mark.parametrize(
        "preset",
        [pytest.param(name, marks=() if name in QUICK[model] else pytest.mark.slow) for name in presets()],
    )


def images(config):
    """Two photographs, or one where it is cut into crops."""
    coffee = np.asarray(Image.fromarray(skimage.data.coffee()).resize((300, 200)))
    return [coffee] if config.crop_n_layers else [coffee, coffee[:150]]


def pretended(sam, config):
    with PretendCuda() as cuda:
        generator = MaskGenerator(sam.to("cuda"), config)
        assert isinstance(generator.way, OnDevice)
        results = generator.generate_batch(images(config))
    assert cuda.counts.by_stage()["paint"]["launches"] > 0
    return results


def check_same(expected, got, *, least):
    for one, other in zip(expected, got, strict=True):
        assert len(one.masks) >= least
        assert one.candidates == other.candidates
        assert one.drops == other.drops
        assert [mask.segmentation for mask in one.masks] == [mask.segmentation for mask in other.masks]
        assert [mask.bbox for mask in one.masks] == [mask.bbox for mask in other.masks]


def test_there_are_presets():
    assert {"mobile_sam", "nano", "sa1b", "sam_vit_h"} <= set(presets())


@of_each_preset("nano")
def test_trained_weights(preset):
    config = load_config(preset).generator.model_copy(update=NANO)
    expected = MaskGenerator(load_sam("nano"), config).generate_batch(images(config))
    check_same(expected, pretended(load_sam("nano"), config), least=10)


@of_each_preset("vit_t")
def test_weights_of_noise_in_another_encoder(preset, monkeypatch):
    monkeypatch.setattr(cells, "suits", lambda *_tensors: False)
    monkeypatch.setitem(MODELS, "vit_t", replace(MODELS["vit_t"], img_size=128))
    config = load_config(preset).generator.model_copy(update=NOISE)
    sam = random_sam("vit_t", images(config)[0])
    expected = MaskGenerator(sam, config, OnDevice(sam, config)).generate_batch(images(config))
    check_same(expected, pretended(sam, config), least=20)

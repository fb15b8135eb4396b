"""Every shipped way of generating gives the same run-length codes on a pretended GPU as on the CPU.

Trained weights are held to it in fp32. Masks of noise have edges all over the image, where one pixel in a
million lies so close to the threshold that the order of a sum decides: there fp64 settles it, and of fp32 the
same masks are asked, but for such pixels.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from PIL import Image

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.engine.backends.device import DeviceBackend
from maskmill.engine.codes import single
from maskmill.model import MODELS, load_sam
from maskmill.pipelines.bench.random_weights import random_sam
from maskmill.pipelines.config.run import load_config
from tests.support.pretend_cuda import PretendCuda
from tests.support.tiny import tiny

pytestmark = pytest.mark.usefixtures("device_guard", "one_thread")
CONFIGS = Path(__file__).parents[3] / "configs"
FEW_POINTS = {"points_per_side": 4}
NANO = FEW_POINTS | {"pred_iou_thresh": 0.35, "stability_score_thresh": 0.5}
NOISE = FEW_POINTS | {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.3}
# All masks of noise are alike.
NOISE |= {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}


def presets():
    """Shipped configurations that generate."""
    files = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    return sorted(name for name, values in files.items() if isinstance(values["model"], dict))


def of_each_preset(*quick):
    """A test's parameter; presets that take more than a second are slow tests."""
    return pytest.mark.parametrize(
        "preset",
        [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in presets()],
    )


def images(config):
    """Two photographs, or one where it is cut into crops."""
    coffee = np.asarray(Image.fromarray(skimage.data.coffee()).resize((300, 200)))
    return [coffee] if config.crop_n_layers else [coffee, coffee[:150]]


def pretended(sam, config):
    with PretendCuda() as cuda:
        generator = MaskGenerator(sam.to("cuda"), config)
        assert isinstance(generator.backend, DeviceBackend)
        results = generator.generate_batch(images(config))
    assert cuda.counts.by_stage()["paint"]["launches"] > 0
    return results


def check_same(expected, got, *, least, tipping=0.0):
    """The same masks; of their pixels that share may be on the other side of the threshold."""
    for ours, theirs in zip(got, expected, strict=True):
        assert len(ours.masks) >= least
        assert ours.candidates == theirs.candidates
        assert ours.drops == theirs.drops
        for one, other in zip(ours.masks, theirs.masks, strict=True):
            assert one.point_coords == other.point_coords
            if tipping:
                differ = single.decode(one.segmentation) ^ single.decode(other.segmentation)
                assert differ.mean() <= tipping
            else:
                assert one.segmentation == other.segmentation
                assert (one.area, one.bbox) == (other.area, other.bbox)


def test_there_are_presets():
    assert {"mobile_sam", "nano", "sa1b", "sam_vit_h"} <= set(presets())


@of_each_preset("sam_vit_h")
def test_trained_weights(preset):
    config = load_config(preset).generator.model_copy(update=NANO)
    expected = MaskGenerator(load_sam("nano"), config).generate_batch(images(config))
    check_same(expected, pretended(load_sam("nano"), config), least=10)


def test_crops_and_clean_up_of_a_small_network():
    crops = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 30}
    config = GeneratorConfig(**NOISE | crops | {"pred_iou_thresh": 0, "encode_batch": 3})
    expected = MaskGenerator(tiny(), config).generate_batch(images(config))
    check_same(expected, pretended(tiny(), config), least=20)


@pytest.fixture
def noise(monkeypatch):
    """MobileSAM's network for small squares, its weights drawn with a fixed seed."""
    monkeypatch.setitem(MODELS, "vit_t", replace(MODELS["vit_t"], img_size=128))
    return random_sam("vit_t", np.array(skimage.data.coffee()))


@of_each_preset("sam_vit_h")
def test_weights_of_noise_in_fp64(noise, preset):
    config = load_config(preset).generator.model_copy(update=NOISE)
    noise.to(torch.float64)
    expected = MaskGenerator(noise, config).generate_batch(images(config))
    check_same(expected, pretended(noise, config), least=20)


@of_each_preset()
def test_weights_of_noise_in_fp32(noise, preset):
    config = load_config(preset).generator.model_copy(update=NOISE)
    expected = MaskGenerator(noise, config).generate_batch(images(config))
    check_same(expected, pretended(noise, config), least=20, tipping=1e-4)

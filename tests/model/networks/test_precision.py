"""A decoder in fp16, as a GPU has it beside an encoder in bf16; here the same tensors on a CPU."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from pycocotools import mask as coco

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.engine.backends.device import DeviceBackend
from maskmill.model import load_sam
from maskmill.model.kernels import cells
from maskmill.model.networks.layers import LayerNorm2d
from maskmill.model.networks.sam import Sam
from tests.support.tiny import TINY, tiny

POINTS = torch.tensor([[[[20.0, 30.0]], [[50.0, 9.0]]]])
LABELS = torch.ones(1, 2, 1, dtype=torch.int64)
EVERY = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])


@torch.inference_mode()
def answer(sam: Sam, **masks):
    """Predicted IoUs and logits of two prompts."""
    generator = torch.Generator().manual_seed(1)
    encoded = sam.encode([torch.randint(0, 256, (3, 64, 48), generator=generator)])
    decoded = sam.attend(encoded, POINTS, LABELS, **masks)
    return decoded.iou_BPM, sam.draw(decoded, *EVERY)


class OnCuda(Sam):
    device = torch.device("cuda")


PRODUCTS = torch.backends.cuda.matmul
COARSE = [
    (torch.backends.cudnn, "allow_tf32"),
    (PRODUCTS, "allow_tf32"),
    (PRODUCTS, "allow_fp16_reduced_precision_reduction"),
    (PRODUCTS, "allow_bf16_reduced_precision_reduction"),
]


@pytest.fixture
def _coarse_products():
    before = [getattr(*one) for one in COARSE]
    for owner, name in COARSE:
        setattr(owner, name, True)
    yield
    for (owner, name), was in zip(COARSE, before, strict=True):
        setattr(owner, name, was)


@pytest.mark.usefixtures("_coarse_products")
def test_on_a_gpu_products_are_in_the_precision_asked_for():
    tiny().in_precision(torch.float32)
    assert all(getattr(*one) for one in COARSE), "on a CPU nothing is set"
    tiny(OnCuda).in_precision(torch.float32)
    assert not any(getattr(*one) for one in COARSE)


@pytest.mark.parametrize(
    ("asked", "decoder"), [(torch.bfloat16, torch.float16), (torch.float32, torch.float32)]
)
def test_off_the_cpu_the_decoder_has_as_many_bits_as_the_encoder_and_finer_ones(asked, decoder):
    sam = Sam(TINY).to("meta").in_precision(asked)
    assert {parameter.dtype for parameter in sam.image_encoder.parameters()} == {asked}
    assert sam.prompt_encoder.dtype == decoder
    assert {parameter.dtype for parameter in sam.mask_decoder.transformer.parameters()} == {decoder}


def test_on_the_cpu_the_decoder_stays_in_fp32():
    sam = Sam(TINY).in_precision(torch.bfloat16)
    assert {parameter.dtype for parameter in sam.mask_decoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("masks", [{}, {"masks_BP1HW": torch.linspace(-9, 9, 512).reshape(1, 2, 1, 16, 16)}])
def test_positions_and_scores_stay_in_fp32(masks):
    expected_iou, expected_logits = answer(tiny(), **masks)
    sam = tiny()
    gaussian = sam.prompt_encoder.pe_layer.gaussian.clone()
    iou, logits = answer(sam.decode_in(torch.float16), **masks)
    assert torch.equal(sam.prompt_encoder.pe_layer.gaussian, gaussian)
    assert iou.dtype == torch.float32
    assert logits.dtype == torch.float16
    assert torch.allclose(iou, expected_iou, atol=2e-3)
    assert (logits - expected_logits).abs().max() < 0.01 * expected_logits.abs().max()
    assert not torch.equal(iou, iou.half().float())  # more than eleven bits


@torch.no_grad()
def test_no_sum_of_squares_is_out_of_range():
    """Cells of ±100 have squares that fp16 cannot add up: it ends at 65,504."""
    found = []
    for dtype in (torch.float32, torch.float16):
        sam = tiny()
        sam.image_encoder.neck[-1].weight *= 100
        found.append(answer(sam.decode_in(dtype)))
    (expected_iou, expected_logits), (iou, logits) = found
    assert torch.allclose(iou, expected_iou, atol=2e-2)
    assert (logits - expected_logits).abs().max() < 0.05 * expected_logits.abs().max()


@pytest.mark.parametrize("norm", [LayerNorm2d(32).half(), torch.nn.LayerNorm(32).half()])
def test_norms_add_squares_up_in_fp32(norm):
    x = torch.linspace(-3e4, 3e4, 32)
    normalised = norm.last(x.half()) if isinstance(norm, LayerNorm2d) else norm(x.half())
    assert torch.allclose(normalised.float(), torch.nn.functional.layer_norm(x, (32,)), atol=2e-3)


@pytest.mark.slow
def test_nano_finds_the_same_masks_with_a_decoder_in_fp16(monkeypatch):
    monkeypatch.setattr(cells, "suits", lambda *_tensors: False)  # on a device nothing is compiled for a CPU
    config = GeneratorConfig(points_per_side=6, pred_iou_thresh=0.35, stability_score_thresh=0.5)
    image = np.array(Image.fromarray(skimage.data.coffee()).resize((480, 320)))
    codes = []
    for dtype in (torch.float32, torch.float16):
        sam = load_sam("nano").decode_in(dtype)
        records = MaskGenerator(sam, config, DeviceBackend(sam, config)).generate(image)
        sizes = [(list(record.segmentation.size), record.segmentation.counts.encode()) for record in records]
        codes.append([{"size": size, "counts": counts} for size, counts in sizes])
    iou = np.asarray(coco.iou(*codes, [0] * len(codes[1])))
    assert min(iou.shape) > 10
    for axis in (0, 1):
        assert (iou.max(axis) >= 0.95).mean() >= 0.97

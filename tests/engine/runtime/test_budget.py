"""How much of a GPU's memory is worked in."""

import pytest
import torch

from maskmill.engine import GeneratorConfig
from maskmill.engine.backends.device import DeviceBackend
from maskmill.engine.runtime import budget
from maskmill.model.config import MODELS
from maskmill.model.networks.sam import Sam
from tests.support.tiny import tiny

GIB = 1 << 30


@pytest.mark.parametrize(
    ("card", "weights", "encode", "expected"),
    [
        (0, 0, 0, budget.LEAST_BYTES),
        (1, 0, 0, budget.LEAST_BYTES),
        (10, 0.5, 1, 3),  # nine of it; without CUDA's half and the weights eight, four a batch
        (1000, 1, 1, 32),
    ],
)
def test_the_budget_of_a_card(card, weights, encode, expected):
    got = budget.budget_of_card(int(card * GIB), int(weights * GIB), encode * GIB)
    assert got == (expected if expected > 1000 else expected * GIB)


def test_an_encode_grows_with_its_images_and_its_numbers():
    shape = MODELS["vit_h"]
    assert budget.encoding_bytes(shape, 4, 2) == 2 * budget.encoding_bytes(shape, 1, 4)


class OnCuda(Sam):
    device = torch.device("cuda")


def test_a_generator_takes_the_budget_of_its_models_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (GIB, 20 * GIB))
    sam = tiny(OnCuda)
    assert 8 * GIB < DeviceBackend(sam, GeneratorConfig()).budget_bytes < 9 * GIB
    assert DeviceBackend(sam, GeneratorConfig(device_budget_bytes=GIB)).budget_bytes == GIB
    assert DeviceBackend(tiny(), GeneratorConfig()).budget_bytes == budget.ELSEWHERE_BYTES


def test_prompts_are_reckoned_in_the_decoders_precision():
    exact, half = (
        DeviceBackend(tiny().decode_in(dtype), GeneratorConfig()) for dtype in (torch.float, torch.half)
    )
    assert exact.score_bytes == 2 * half.score_bytes
    assert exact.draw_bytes == 2 * half.draw_bytes

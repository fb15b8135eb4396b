"""TinyViT against MobileSAM's own code (PyPI `mobilesam-mirror`), with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskmill.model.config import MODELS, SamConfig
from maskmill.model.networks.tiny_vit import TinyViT, cell_distances
from tests.support.oracles import TIMM, TORCHVISION, randomise, stubbed


@pytest.fixture(scope="module")
def oracle() -> Any:
    """MobileSAM's whole model; its image encoder is what we compare with."""
    with stubbed(TIMM | TORCHVISION):
        from mobile_sam.build_sam import build_sam_vit_t

    model = build_sam_vit_t()
    randomise(model.image_encoder)
    return model.eval()  # caches each block's bias, so it comes after the weights


def test_a_patch_size_that_tiny_vit_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="16 pixels, got patch_size 8"):
        TinyViT(SamConfig(encoder="tiny_vit", patch_size=8))


def test_distances_of_a_two_by_two_window() -> None:
    # Cells a b / c d: a–b differ by one column (1), a–c by one row (2), a–d and b–c by both (3).
    assert cell_distances(2).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


def test_the_embedding_is_the_published_one(oracle: Any) -> None:
    ours = TinyViT(MODELS["vit_t"]).eval()
    ours.load_state_dict(oracle.image_encoder.state_dict(), strict=True)
    oracle.image_encoder.load_state_dict(ours.state_dict(), strict=True)

    pixels = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = oracle.image_encoder(pixels)
        embedding = ours(pixels)

    assert embedding.shape == (1, 256, 64, 64)
    assert expected.std() > 0.1
    assert (embedding - expected).abs().max() <= 1e-4


def test_smaller_and_oblong_inputs_pass() -> None:
    encoder = TinyViT(SamConfig(encoder="tiny_vit", img_size=256)).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, 96, 64)).shape == (2, 256, 6, 4)


def test_gradients_reach_everything_but_the_unused_classifier() -> None:
    encoder = TinyViT(SamConfig(encoder="tiny_vit", img_size=64))
    randomise(encoder)
    encoder(torch.randn(2, 3, 64, 64)).square().sum().backward()
    without = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert without == {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}

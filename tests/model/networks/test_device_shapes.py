"""What a GPU's kernels are given, with tensors on "meta": shapes without numbers, and no CPU's ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskmill.model.config import MODELS, SamConfig
from maskmill.model.networks.attention import scaled_dot_product
from maskmill.model.networks.sam import Sam
from tests.support.tiny import TINY

META = torch.device("meta")
SHAPES = {"tiny": TINY, **{name: MODELS[name] for name in ("nano", "vit_t", "vit_b")}}
SHAPES["vit_h"] = replace(MODELS["vit_h"], depth=2, global_attn_indexes=(1,))  # one block of each kind


class Attentions(TorchFunctionMode):
    """Records the queries, keys and values of every attention."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, ...]] = []
        self.masks: list[Tensor | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.given.append(args[:3])
            self.masks.append((kwargs or {}).get("attn_mask"))
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def attentions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attentions:
    """Of encoding two images, asking about four points of each, and drawing two masks."""
    config: SamConfig = request.param
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _kind: False)  # does not know "meta"
    with META:
        sam = Sam(config).eval().to(torch.bfloat16)
    with torch.inference_mode(), Attentions() as attentions:
        images = sam.encode([torch.zeros(3, config.img_size, 5, device=META)] * 2)
        points, labels = torch.zeros(2, 4, 1, 2, device=META), torch.ones(2, 4, 1, device=META)
        decoded = sam.attend(images, points, labels)
        sam.draw(decoded, torch.tensor([0, 5]), torch.tensor([1, 2]))
    return attentions


def test_attention_has_four_axes_and_heads_of_a_multiple_of_eight(attentions: Attentions) -> None:
    assert len(attentions.given) >= 3  # the encoder's, and the decoder's of tokens and of tokens to the image
    assert all(mask is None or mask.dim() == 4 for mask in attentions.masks)
    for q_k_v in attentions.given:
        for x in q_k_v:
            assert x.dim() == 4, x.shape
            assert x.shape[-1] % 8 == 0, x.shape
        assert len({x.shape[-1] for x in q_k_v}) == 1  # flash attention takes one width


def test_what_is_widened_and_folded_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU that takes itself for another device.
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 4, 5, 12), (2, 3, 4, 7, 12), (2, 3, 4, 7, 9)
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    mask = torch.randn(4, 5, 7, generator=generator)
    expected = (q @ k.mT * 12**-0.5 + mask).softmax(-1) @ v
    torch.testing.assert_close(scaled_dot_product(q, k, v, mask), expected)
    monkeypatch.setattr(Tensor, "device", property(lambda _self: torch.device("cuda")))
    with Attentions() as attentions:
        torch.testing.assert_close(scaled_dot_product(q, k, v, mask), expected)
    assert [tuple(x.shape) for x in attentions.given[0]] == [(6, 4, 5, 16), (6, 4, 7, 16), (6, 4, 7, 16)]


class Products(TorchDispatchMode):
    """Remembers the most matrices of a batched product."""

    matrices = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "bmm" in func.__name__:
            self.matrices = max(self.matrices, *(len(x) for x in args[:3] if isinstance(x, Tensor)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("side", [32, 64])
def test_a_batched_product_has_fewer_matrices_than_a_grid_has_places(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four photographs, a grid of prompts each, all readings of one photograph's drawn: what memory may allow.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _kind: False)
    with META:
        sam = Sam(SHAPES["vit_h"]).eval()
    prompts = side**2
    with torch.no_grad(), Products() as products:  # not in inference mode, which hides what `@` does
        images = sam.encode_padded(torch.zeros(4, 3, 1024, 1024, device=META))
        points, labels = torch.zeros(4, prompts, 1, 2, device=META), torch.ones(4, prompts, 1, device=META)
        decoded = sam.attend(images, points, labels)
        drawn = torch.arange(3 * prompts)
        sam.draw(decoded, drawn // 3, drawn % 3 + 1)
    assert decoded.iou_BPM.shape == (4, prompts, 4)
    assert 2**15 <= products.matrices < 2**16


class Copies(TorchDispatchMode):
    """Counts what is copied from the host to the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].device.type == "cpu" and out.device.type == "meta"
        return out


def test_what_is_to_be_drawn_crosses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _kind: False)
    with META:
        sam = Sam(TINY).eval()
    with torch.no_grad():
        images = sam.encode_padded(torch.zeros(2, 3, 64, 64, device=META))
        points, labels = torch.zeros(2, 9, 1, 2, device=META), torch.ones(2, 9, 1, device=META)
        decoded = sam.attend(images, points, labels, together=3)
        with Copies() as copies:
            sam.draw(decoded, torch.arange(18), torch.ones(18, dtype=torch.int64))  # from six parts
    assert copies.count == 1

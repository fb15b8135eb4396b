"""Attention in parts against PyTorch's own, and its gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from model import attention
from model.attention import attend, fused, in_parts

SHAPES = {"one part": 2**21, "heads apart": 7 * 7, "two heads at once": 2 * 7 * 7, "rows apart": 3 * 7}


def drawn(dtype):
    """Queries, keys and values of 2×3 heads, 7 cells, 5 and 4 numbers."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, 7, width, generator=generator).to(dtype).requires_grad_() for width in (5, 5, 4)
    ]


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def _parts(request, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", request.param)


@pytest.mark.usefixtures("_parts")
def test_it_is_the_attention_that_pytorch_computes():
    q, k, v = drawn(torch.float32)
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(in_parts(q, k, v), expected)
    torch.testing.assert_close(fused(q, k, v), expected)


@pytest.mark.usefixtures("_parts")
def test_its_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(in_parts, drawn(torch.float64))


def test_in_bf16_it_goes_in_parts_stays_in_bf16_and_near():
    q, k, v = drawn(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
    assert "InParts" in out.grad_fn.next_functions[0][0].name()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), fused(q.float(), k.float(), v.float()), atol=0.03, rtol=0.03)


def test_what_it_keeps_for_the_gradient_are_no_scores():
    q, k, v = (torch.randn(1, 2, 64, 4, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        in_parts(q, k, v)
    assert sum(kept) <= q.numel() + k.numel() + v.numel()

"""Attention in parts against PyTorch's own, and its gradient against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from maskmill.model.networks import attention
from maskmill.model.networks.attention import attend, fused, in_parts
from tests.support.oracles import LargestTensor

PARTS = {"one part": 2**21, "heads apart": 7 * 9, "two heads at once": 2 * 7 * 9, "rows apart": 3 * 9}


def drawn(dtype):
    """2×3 heads: seven queries and nine keys of 5 numbers, values of 4."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 7, 5), (2, 3, 9, 5), (2, 3, 9, 4)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.fixture(params=PARTS.values(), ids=PARTS.keys())
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
    # one head: finite differences take a call for each number
    q, k, v = (x[:1, :1].detach().double().requires_grad_() for x in drawn(torch.float32))
    assert torch.autograd.gradcheck(in_parts, (q, k, v))


@pytest.mark.usefixtures("_parts")
def test_the_gradients_of_all_heads_are_pytorchs():
    found, expected = drawn(torch.float32), drawn(torch.float32)
    weight = torch.arange(4.0)
    (in_parts(*found) * weight).sum().backward()
    (F.scaled_dot_product_attention(*expected, scale=1.0) * weight).sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.usefixtures("_parts")
def test_no_more_scores_are_there_than_are_asked_for_at_once():
    q, k, v = drawn(torch.float32)
    with LargestTensor() as largest:
        in_parts(q, k, v).sum().backward()
    assert largest.elements <= max(attention.SCORES_AT_ONCE, k.numel())


def test_what_is_kept_for_the_gradient_are_no_scores():
    q, k, v = (torch.randn(1, 2, 64, 4, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        in_parts(q, k, v)
    assert sum(kept) <= q.numel() + k.numel() + v.numel()


def test_in_bf16_it_goes_in_parts_stays_in_bf16_and_near():
    q, k, v = drawn(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
    assert "InParts" in out.grad_fn.next_functions[0][0].name()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), fused(q.float(), k.float(), v.float()), atol=0.03, rtol=0.03)

"""Cells in factors against cells written out: the published exchange, literally, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskmill.model.config import MODELS, SamConfig
from maskmill.model.kernels import blocks
from maskmill.model.kernels import cells as compiled_cells
from maskmill.model.networks.factored_cells import Cells
from maskmill.model.networks.sam import Sam
from maskmill.model.networks.two_way_transformer import TwoWayBlock
from tests.support.oracles import randomise

SMALL = SamConfig(
    img_size=64,
    embed_dim=32,
    depth=1,
    num_heads=2,
    global_attn_indexes=(),
    out_chans=48,
    decoder_mlp_dim=40,
    decoder_num_heads=4,
    iou_head_hidden_dim=56,
)
BATCH, PROMPTS, TOKENS, CELLS, ROWS = 2, 3, 6, 16, 5


def written_out(block: TwoWayBlock, cells_BPLC: Tensor, positions_LC: Tensor, tokens_BPTC: Tensor) -> Tensor:
    """Cells attend to tokens (which are their own keys here), a residual, a norm: nothing shared."""
    attention = block.cross_attn_image_to_token
    return block.norm4(cells_BPLC + attention(cells_BPLC + positions_LC, tokens_BPTC, tokens_BPTC))


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_two_exchanges_and_what_is_seen_of_them(masked: bool) -> None:
    torch.manual_seed(0)
    decoder = Sam(SMALL).double().mask_decoder
    randomise(decoder)
    first, second = decoder.transformer.blocks()
    cells_BLC = torch.randn(BATCH, CELLS, 48).double()
    positions_LC = torch.randn(CELLS, 48).double()
    tokens = torch.randn(2, BATCH, PROMPTS, TOKENS, 48).double()
    mask_rows_XC = torch.randn(ROWS, 48).double()
    image = decoder.share(cells_BLC, positions_LC, mask_rows_XC).tokens

    taking = first.cross_attn_image_to_token
    keys, values = taking.tokens(tokens[0], tokens[0])
    if masked:
        weights_BPXL = torch.randn(BATCH, PROMPTS, ROWS, CELLS).double()
        cells_BPLC = cells_BLC[:, None] + weights_BPXL.mT @ mask_rows_XC
        cells = Cells.mixed(weights_BPXL, mask_rows_XC)
        looking = first.cross_attn_token_to_image
        seen = looking.to_cells(tokens[1], cells, image.first_keys, image.first_values)
        torch.testing.assert_close(seen, looking(tokens[1], cells_BPLC + positions_LC, cells_BPLC))
        cells = first.give(cells, keys, values, image.first_queries, image.first_norm)
    else:
        cells_BPLC = cells_BLC[:, None]
        untouched = Cells.untouched(values, CELLS, 48)
        by_rule = first.give(untouched, keys, values, image.first_queries, image.first_norm)
        cells = first.give(None, keys, values, image.first_queries, image.first_norm)
        for one, other in zip(vars(cells).values(), vars(by_rule).values(), strict=True):
            torch.testing.assert_close(one, other)
    expected = written_out(first, cells_BPLC, positions_LC, tokens[0])
    looking = second.cross_attn_token_to_image
    seen = looking.to_cells(tokens[1], cells, image.second_keys, image.second_values)
    torch.testing.assert_close(seen, looking(tokens[1], expected + positions_LC, expected))

    keys, values = second.cross_attn_image_to_token.tokens(tokens[1], tokens[1])
    cells = second.give(cells, keys, values, image.second_queries, image.second_norm)
    expected = written_out(second, expected, positions_LC, tokens[1])
    looking = decoder.transformer.final_attn_token_to_image
    seen = looking.to_cells(tokens[0], cells, image.final_keys, image.final_values)
    torch.testing.assert_close(seen, looking(tokens[0], expected + positions_LC, expected))


class Empties(TorchDispatchMode):
    """Lists the operations on tensors that hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(x, Tensor) and x.numel() == 0 for x in tree_leaves((args, kwargs))):
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
def test_a_device_is_asked_for_nothing_that_is_empty(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    monkeypatch.setattr(compiled_cells, "suits", lambda *_tensors: False)
    sam = Sam(SMALL).eval()
    points, labels = 64 * torch.rand(BATCH, 5, 1, 2), torch.ones(BATCH, 5, 1, dtype=torch.int64)
    masks = torch.randn(BATCH, 5, 1, 16, 16) if masked else None
    with torch.no_grad(), Empties() as empties:
        images = sam.encode_padded(torch.randn(BATCH, 3, 64, 64))
        sam.attend(images, points, labels, masks_BP1HW=masks)
    assert empties.operations == []


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_a_cell_that_what_it_takes_cancels_is_normalised_like_any_other(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, first: bool
) -> None:
    monkeypatch.setattr(compiled_cells, "suits", lambda *_tensors: compiled)
    # One head, one token: every cell takes the same row, and that is minus what all the cells are.
    torch.manual_seed(0)
    decoder = Sam(SMALL).mask_decoder
    block, _ = decoder.transformer.blocks()
    nn.init.zeros_(block.cross_attn_image_to_token.out_proj.bias)
    cell_C = 100 * torch.randn(48)
    image = decoder.share(cell_C.expand(1, CELLS, 48), torch.zeros(CELLS, 48), torch.zeros(ROWS, 48)).tokens
    heads = block.cross_attn_image_to_token.num_heads
    values_1PNTD = torch.linalg.lstsq(
        block.cross_attn_image_to_token.out_proj.weight, -cell_C[:, None]
    ).solution
    values_1PNTD = values_1PNTD.reshape(1, 1, heads, 1, -1)
    untouched = None if first else Cells.untouched(values_1PNTD, CELLS, 48)
    cells = block.give(
        untouched, torch.zeros_like(values_1PNTD), values_1PNTD, image.first_queries, image.first_norm
    )
    assert cells.share_BPL.isfinite().all()
    assert (cells.share_BPL > 0).all()


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_few_prompts_at_a_time_give_what_all_at_once_give(
    at_once: int, gradients: bool, masked: bool
) -> None:
    torch.manual_seed(0)
    sam = Sam(SMALL).eval()
    randomise(sam)
    with torch.no_grad():
        images = sam.encode_padded(torch.randn(BATCH, 3, 64, 64))
    points, labels = 64 * torch.rand(BATCH, 5, 2, 2), torch.ones(BATCH, 5, 2, dtype=torch.int64)
    masks = torch.randn(BATCH, 5, 1, 16, 16) if masked else None
    prompt_K, token_K = torch.tensor([9, 0, 4, 4, 7]), torch.tensor([0, 1, 2, 3, 1])

    def asked(together: int | None) -> tuple[int, Tensor, Tensor]:
        decoded = sam.attend(images, points, labels, masks_BP1HW=masks, together=together)
        return len(decoded.parts), decoded.iou_BPM, sam.draw(decoded, prompt_K, token_K)

    with torch.set_grad_enabled(gradients):
        parts, iou, drawn = asked(None)
        assert parts == 1
        parts, few_iou, few_drawn = asked(at_once)
        assert parts == -(-5 // at_once)
    torch.testing.assert_close(few_iou, iou)
    torch.testing.assert_close(few_drawn, drawn)


# 1,600 cells: three blocks and a rest, 25 rows to draw and 15. One head of seven tokens: an odd number.
UNEVEN = replace(SMALL, img_size=640, decoder_num_heads=1)


@pytest.mark.parametrize(
    ("points", "config"), [(1, SMALL), (4, SMALL), (2, MODELS["nano"]), (1, UNEVEN), (2, UNEVEN)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_loops_give_what_tensors_give(points: int, config: SamConfig, masked: bool) -> None:
    torch.manual_seed(0)
    sam = Sam(config).eval()
    randomise(sam)
    side = config.img_size
    with torch.no_grad():
        images = sam.encode_padded(torch.randn(BATCH, 3, side, side))
    given: dict[str, Tensor] = {
        "points_BPN2": side * torch.rand(BATCH, 3, points, 2),
        "labels_BPN": torch.ones(BATCH, 3, points, dtype=torch.int64),
    }
    if masked:
        given["masks_BP1HW"] = torch.randn(BATCH, 3, 1, side // 4, side // 4)
    prompt_K, token_K = torch.tensor([5, 0, 1, 5, 5]), torch.tensor([0, 1, 2, 3, 1])
    tensors = sam.attend(images, **given)  # which have gradients, and so are not for the loops
    assert tensors.iou_BPM.requires_grad
    masks_Khw = sam.draw(tensors, prompt_K, token_K)
    with torch.inference_mode():
        compiled = sam.attend(images, **given)
        torch.testing.assert_close(compiled.iou_BPM, tensors.iou_BPM.detach())
        scale = masks_Khw.abs().max().item()
        torch.testing.assert_close(
            sam.draw(compiled, prompt_K, token_K), masks_Khw.detach(), atol=2e-6 * scale, rtol=1e-4
        )


@torch.no_grad()
def test_tensors_that_do_not_fit_each_other_are_refused_before_the_loops() -> None:
    sam = Sam(SMALL).eval()
    one = sam.encode_padded(torch.randn(1, 3, 64, 64))
    two = 64 * torch.rand(2, 3, 1, 2), torch.ones(2, 3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="for 1 image"):
        sam.attend(one, *two)
    with pytest.raises(ValueError, match="shape"):
        compiled_cells.array_of(torch.zeros(2, 3, 4), 2, 3, 5)


@torch.no_grad()
def test_what_is_not_a_number_stays_none() -> None:
    sam = Sam(SMALL).eval()
    images = sam.encode_padded(torch.randn(1, 3, 64, 64))
    points, labels = 64 * torch.rand(1, 2, 1, 2), torch.ones(1, 2, 1, dtype=torch.int64)
    images.embedding_BCHW[0, :, 1, 2] = torch.nan
    decoded = sam.attend(sam.share(images.embedding_BCHW), points, labels)
    assert decoded.iou_BPM.isnan().all()
    assert sam.draw(decoded, torch.tensor([1]), torch.tensor([2])).isnan().all()


def test_the_loops_exponentials_and_gelu_are_the_librarys() -> None:
    x = torch.linspace(-86, 0, 20_001)
    ours = x.clone()
    blocks.exponentials(ours.numpy(), np.zeros_like(ours), len(x), np.empty(len(x), np.int32))
    torch.testing.assert_close(ours, x.exp(), rtol=5e-7, atol=0)
    x = torch.cat([torch.linspace(-8, 8, 20_001), torch.tensor([-1e30, 1e30, 0])])[None]
    ours = x.clone()
    blocks.gelu(ours.numpy(), 1, x.shape[1])
    torch.testing.assert_close(ours, nn.functional.gelu(x), rtol=1e-6, atol=2e-6)

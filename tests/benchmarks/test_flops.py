"""The counted arithmetic, held against PyTorch's own counter: the published form's, and ours."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from benchmarks.support.flops import TOKENS, decoder_flops, encoder_flops, published_decoder_flops
from maskmill.model import MODELS, Sam
from maskmill.model.kernels import cells
from maskmill.pipelines.bench.released import released_generator

# Windows that do not divide the grid (10 cells by 8), and no two widths alike.
SMALL = replace(
    MODELS["nano"],
    img_size=160,
    embed_dim=48,
    num_heads=3,
    depth=3,
    global_attn_indexes=(1,),
    out_chans=32,
    decoder_mlp_dim=80,
    decoder_num_heads=4,
    iou_head_hidden_dim=24,
)
PROMPTS = 5


def added_product(_total, a, b, **_):
    return bmm_flop(a, b)


def counted(work):
    """Operations of the work by PyTorch's count, and its result. Its counter knows no sums in place."""
    mapping = {torch.ops.aten.baddbmm_: added_product}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        result = work()
    return counter.get_total_flops(), result


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return Sam(SMALL).eval()


@pytest.fixture(scope="module")
def published(sam):
    return released_generator(SMALL, sam.state_dict()).predictor.model


@pytest.fixture(autouse=True)
def _as_tensors(monkeypatch):
    """PyTorch's counter does not see into compiled loops."""
    monkeypatch.setattr(cells, "suits", lambda *_tensors: False)


@pytest.fixture(scope="module")
def encoded(sam):
    with torch.no_grad():
        return sam.encode([torch.rand(3, 160, 160)])


def points():
    return torch.rand(1, PROMPTS, 1, 2) * 160, torch.ones(1, PROMPTS, 1, dtype=torch.int64)


def test_there_is_no_count_of_another_encoder():
    with pytest.raises(ValueError, match="tiny_vit"):
        encoder_flops(MODELS["vit_t"])


def test_the_published_encoder(published):
    count, _ = counted(lambda: published.image_encoder(torch.rand(1, 3, 160, 160)))
    assert count == encoder_flops(SMALL)


def test_the_published_decoder(published, encoded):
    flops = published_decoder_flops(SMALL)
    dense_PC11 = torch.rand(PROMPTS, 32, 1, 1).expand(-1, -1, 10, 10)
    positions = published.prompt_encoder.get_dense_pe()
    decode = published.mask_decoder.predict_masks
    count, _ = counted(
        lambda: decode(encoded.embedding_BCHW, positions, torch.rand(PROMPTS, 2, 32), dense_PC11)
    )
    assert count == flops.total(PROMPTS, PROMPTS)


def test_our_decoder_once_an_image(sam):
    rows_XC = sam.prompt_encoder.mask_rows()
    count, _ = counted(lambda: sam.mask_decoder.share(torch.rand(1, 100, 32), torch.rand(100, 32), rows_XC))
    assert count == pytest.approx(
        decoder_flops(SMALL, compiled=False).image, rel=0.01
    )  # vectors count as narrow matrices


def test_our_decoder_a_prompt(sam, encoded):
    count, _ = counted(
        lambda: sam.mask_decoder.attend(encoded.shared, torch.rand(1, PROMPTS, TOKENS - 5, 32))
    )
    assert count == PROMPTS * decoder_flops(SMALL, compiled=False).prompt


def test_our_decoder_a_prompt_drawn_however_many_of_its_masks(sam, encoded):
    with torch.no_grad():
        decoded = sam.attend(encoded, *points())
    prompt_K, token_K = torch.tensor([0, 0, 3]), torch.tensor([1, 2, 3])
    count, _ = counted(lambda: sam.draw(decoded, prompt_K, token_K))
    assert count == 2 * decoder_flops(SMALL, compiled=False).drawn


@pytest.mark.parametrize("name", ["nano", "vit_b", "vit_h"])
def test_our_form_asks_for_less_of_every_prompt(name):
    ours, published = decoder_flops(MODELS[name]), published_decoder_flops(MODELS[name])
    assert ours.prompt < published.prompt / 2

"""The image encoder through `torch.compile`: same numbers, same names, and none the worse if it fails."""

import pytest
import torch
import torch._dynamo

from maskmill.model.config import SamConfig
from maskmill.model.networks.sam import Sam

TINY = SamConfig(
    img_size=64,
    embed_dim=16,
    depth=2,
    num_heads=2,
    window_size=2,
    global_attn_indexes=(1,),
    out_chans=32,
    decoder_num_heads=4,
)


def no_compiler(graph, inputs):
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize("backend", ["eager", no_compiler, pytest.param("inductor", marks=pytest.mark.slow)])
@torch._dynamo.config.patch(suppress_errors=False)  # and set back to what it was afterwards
def test_a_compiled_encoder_gives_the_same(backend):
    torch._dynamo.reset()
    torch.manual_seed(0)
    sam = Sam(TINY).eval()
    names = list(sam.state_dict())
    images = [torch.randint(0, 256, (3, 64, 48)), torch.randint(0, 256, (3, 30, 64))]
    with torch.inference_mode():
        expected = sam.encode(images).embedding_BCHW
        sam.compile_encoder(backend)
        for count in (2, 1):
            got = sam.encode(images[:count]).embedding_BCHW
            assert torch.allclose(got, expected[:count], atol=1e-5)
    assert list(sam.state_dict()) == names

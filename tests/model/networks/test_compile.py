"""The image encoder through `torch.compile`: same numbers, same names, and none the worse if it fails."""

import logging
import re

import pytest
import torch
import torch._dynamo

from maskmill.engine.runtime.batching import in_batches
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


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()


def images(*heights):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, height, 64), generator=generator) for height in heights]


@pytest.mark.parametrize("backend", ["eager", no_compiler, pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_encoder_gives_the_same(backend):
    torch.manual_seed(0)
    sam = Sam(TINY).eval()
    names = list(sam.state_dict())
    three = images(64, 30, 48)
    with torch.inference_mode():
        expected = sam.encode(three).embedding_BCHW
        sam.compile_encoder(2, backend)
        for count in (2, 1, 3):
            got = sam.encode(three[:count]).embedding_BCHW
            assert torch.allclose(got, expected[:count], atol=1e-5)
    assert list(sam.state_dict()) == names


def test_a_short_batch_is_filled_up_and_compiled_no_second_time(caplog):
    sizes = []

    def count(graph, inputs):
        sizes.append(next(len(x) for x in inputs if x.ndim == 4 and x.shape[1:] == (3, 64, 64)))
        return graph.forward

    sam = Sam(TINY).eval()
    sam.compile_encoder(4, count)
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        for number in (4, 1, 3, 4):
            assert len(sam.encode(images(*[64] * number))) == number
    assert sizes == [4]
    (line,) = [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()]
    assert re.fullmatch(r"compiled the image encoder for batches of 4×3×64×64 in \d+\.\d s", line)


def test_why_nothing_was_compiled_is_told_once_and_no_setting_is_changed(caplog):
    sam = Sam(TINY).eval()
    sam.compile_encoder(2, no_compiler)
    for _ in range(2):
        sam.encode(images(64))
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("torch.compile failed, the image encoder runs uncompiled: ")
    assert "no compiler here" in line
    assert "\n" not in line
    assert not torch._dynamo.config.suppress_errors


def test_where_memory_runs_out_batches_shrink_as_they_do_without_a_compiler():
    """What is filled up again to a size that does not fit would never fit."""
    sizes = []

    def small(graph, inputs):
        def run(*arguments):
            sizes.append(next(len(x) for x in arguments if x.ndim == 4 and x.shape[1:] == (3, 64, 64)))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return graph.forward(*arguments)

        return run

    sam = Sam(TINY).eval()
    sam.compile_encoder(4, small)
    with torch.inference_mode():
        encoded = list(in_batches(5, 4, lambda part: sam.encode(images(*[64] * 5)[part])))
    assert sum(map(len, encoded)) == 5
    assert sizes == [4, 2, 2, 2]

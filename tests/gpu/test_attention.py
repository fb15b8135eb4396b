"""Which kernel each call of attention gets: in the published shapes none may fall back to plain products."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import attention
from maskmill.model import MODELS
from maskmill.model.networks.sam import Sam


@pytest.mark.parametrize("name", ["vit_h", "vit_b", "nano"])
def test_no_call_falls_back_to_plain_products(gpu, name):
    config = attention.two_blocks(name)
    sam = Sam(config).eval().to(gpu).in_precision(torch.bfloat16)
    rows = attention.table_of(attention.of_network(config, sam, 256), gpu)
    for row in rows:
        print(f"{name}: {row['call']}, {row['calls']} times: {row['backend']} {row['kernels']}")
    assert len(rows) >= 3
    assert not [row for row in rows if "math" in row["backend"]]


def test_the_table_names_a_backend_for_each_call(device):
    # In small shapes, so that a CPU is done in a second.
    small = replace(MODELS["nano"], img_size=128, depth=2, global_attn_indexes=(1,))
    sam = Sam(small).eval().to(device)
    rows = attention.table_of(attention.of_network(small, sam, 4), device)
    assert sum(row["calls"] for row in rows) >= 2 + 3  # of two blocks, and of the decoder
    assert all("attention" in row["backend"] for row in rows)
    assert device.type == "cpu" or all(row["kernels"] for row in rows)

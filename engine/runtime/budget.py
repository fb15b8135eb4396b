"""How much of a GPU's memory the generator may work in: `device_budget_bytes`, where it is left open.

    budget = ((1 − RESERVE) · card − CUDA − weights) / batches at once − an encode

within bounds. The card is the part of it that is this process's own, and each batch at work has a budget of
its own. More than `MOST_BYTES` would not be used: a grid of 1,024 prompts in each of four images of ViT-H is
then asked in one pass. Masks do not depend on it. The figures are estimates; none was held against a GPU yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...model.config import SamConfig
from ..config import GeneratorConfig

if TYPE_CHECKING:  # what asks for the formula alone does without torch
    from ...model.networks.sam import Sam

CUDA_BYTES = 512 << 20
"""CUDA's own, and its libraries': outside of what torch allocates."""

RESERVE = 0.1
"""Of the card, for what torch's allocator cannot use and for whoever draws the screen."""

LEAST_BYTES = 256 << 20
MOST_BYTES = 32 << 30
ELSEWHERE_BYTES = 8 << 30
"""Of a device whose memory is not known."""

BATCHES_AT_ONCE = 2
"""On a GPU: one is computed while the host filters and writes down the other."""

ENCODER_ARRAYS = 64
"""Arrays of the encoder's width, one number a cell and channel, that live at once in an encode."""


def encoding_bytes(shape: SamConfig, encode_batch: int, number_bytes: int) -> int:
    """An encode's, of as many images or crops as are encoded together, in numbers of this size."""
    windows = -(-shape.embedding_size // shape.window_size)
    cells = (windows * shape.window_size) ** 2  # padded to whole windows
    return encode_batch * cells * shape.embed_dim * ENCODER_ARRAYS * number_bytes


def budget_of_card(
    card_bytes: int,
    weights_bytes: int,
    encode_bytes: int,
    *,
    reserve: float = RESERVE,
    most: int = MOST_BYTES,
) -> int:
    """The formula above."""
    left = int(card_bytes * (1 - reserve)) - CUDA_BYTES - weights_bytes
    return min(max(left // BATCHES_AT_ONCE - encode_bytes, LEAST_BYTES), most)


def budget_beside(sam: Sam, config: GeneratorConfig) -> int:
    """The configuration's budget; where it has none, one by the memory of the model's GPU."""
    import torch

    if config.device_budget_bytes is not None:
        return config.device_budget_bytes
    if sam.device.type != "cuda" or not torch.cuda.is_available():
        return ELSEWHERE_BYTES
    _, card = torch.cuda.mem_get_info(sam.device)
    weights = sum(weight.nbytes for weight in sam.parameters())
    number_bytes = next(sam.image_encoder.parameters()).element_size()
    return budget_of_card(card, weights, encoding_bytes(sam.config, config.encode_batch, number_bytes))

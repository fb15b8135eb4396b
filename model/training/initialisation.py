"""Where training starts from: what made a small model learn from 1,500 images at all.

From a plain initialisation the masks stay empty for thousands of images. Four things change that:
- Patches enter as their low frequencies (a whitened cosine basis in opponent colours) rather than through
  random filters that keep a quarter of what they see.
- Cells know where they are from the start (sinusoidal positions).
- In the decoder's cross-attentions keys start as a copy of orthogonal queries, scaled up: a point attends to
  its own neighbourhood from the first step.
- The learned tokens are small beside the positions, which say where the prompt is.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..networks.image_encoder import ImageEncoderViT
from ..networks.sam import Sam
from ..networks.two_way_transformer import Attention

KEY_GAIN = 1.6
TOKEN_SCALE = 0.2


def initialise(sam: Sam) -> None:
    """Set a new model's parameters for training, in place. For plain ViT encoders; draws from torch's RNG."""
    config, encoder = sam.config, sam.image_encoder
    if not isinstance(encoder, ImageEncoderViT):
        raise ValueError(f"only plain ViT encoders can be trained from nothing, not {config.encoder}")
    with torch.no_grad():
        for module in sam.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=min(0.05, module.in_features**-0.5))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                module.weight.mul_(TOKEN_SCALE)

        filters = cosine_filters(config.patch_size, config.embed_dim)
        encoder.patch_embed.proj.weight[: len(filters)].copy_(filters)
        nn.init.zeros_(cast(Tensor, encoder.patch_embed.proj.bias))
        encoder.pos_embed.copy_(0.5 * sinusoids(config.embedding_size, config.embed_dim))

        transformer = sam.mask_decoder.transformer
        crossings = [transformer.final_attn_token_to_image]
        for block in transformer.blocks():
            crossings += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
        for attention in crossings:
            _look_at_own_place(attention)


def _look_at_own_place(attention: Attention) -> None:
    nn.init.orthogonal_(attention.q_proj.weight, gain=KEY_GAIN)
    attention.k_proj.weight.copy_(attention.q_proj.weight)


def cosine_filters(patch_size: int, filters: int) -> Tensor:
    """The lowest frequencies of a patch in three opponent colours, whitened: filters×3×patch×patch.

    There are no more than a patch has values: of those that are asked for, the first 3·patch². Amplitudes in
    photographs fall as 1/frequency; the filters rise with it, so that edges count beside means.
    """
    steps = (torch.arange(patch_size) + 0.5) * math.pi / patch_size
    waves = torch.cos(torch.arange(patch_size)[:, None] * steps)  # frequency × place
    u, v = torch.meshgrid(torch.arange(patch_size), torch.arange(patch_size), indexing="ij")
    order = (u**2 + v**2).flatten().argsort(stable=True)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [3.0], [3.0]])

    # Brightness gets half of the filters, each of the two colour differences a quarter, while there are any.
    turns = range(4 * patch_size**2)
    drawn = [((0, turn // 2), (1 + turn // 2 % 2, turn // 4))[turn % 2] for turn in turns]
    drawn = [(colour, rank) for colour, rank in drawn if rank < patch_size**2][:filters]
    bank = torch.zeros(len(drawn), 3, patch_size, patch_size)
    for index, (colour, rank) in enumerate(drawn):
        row, column = divmod(int(order[rank]), patch_size)
        wave = torch.outer(waves[row], waves[column])
        gain = 0.5 * (1 + math.hypot(row, column))
        bank[index] = colours[colour][:, None, None] * wave / wave.norm() * gain / patch_size
    return bank


def sinusoids(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column at width/4 frequencies: 1×side×side×width."""
    frequencies = torch.exp(torch.linspace(0, math.log(side / 2), width // 4)) * math.pi / side
    angles = (torch.arange(side) + 0.5)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # side × width/2
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1)[None]

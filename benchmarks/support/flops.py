"""How much arithmetic an image takes: the network's matrix products, counted from its shapes.

Divided by the rate at which a machine multiplies matrices they give a floor: no program that makes these
products on it, however well it is written, is faster. Norms, activations, softmax and matrix × vector are
left out, as PyTorch's own counter leaves them out (`torch.utils.flop_counter`), which the tests hold these
functions against. A multiplication and its addition are two operations.

The encoder is counted as it was published. The decoder is counted twice: as it was published, and in the
factors that this one keeps its cells in (`model.networks.factored_cells`), which need less. The tests hold
the form in tensors against the counter, which does not see into compiled loops; those multiply only half of
each gram matrix, and make only the masks that are wanted, of which all are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from maskmill.model.config import SamConfig
from maskmill.model.networks.mask_decoder import MASK_TOKENS

TOKENS = 7
"""Of a prompt of one point: the IoU token, the mask tokens, the point and a padding point."""


def product(rows: int, inner: int, columns: int) -> int:
    """A rows × inner matrix times an inner × columns one."""
    return 2 * rows * inner * columns


def mlp(rows: int, *widths: int) -> int:
    """Linear layers one after another."""
    return sum(product(rows, a, b) for a, b in pairwise(widths))


def encoder_flops(config: SamConfig) -> int:
    """The ViT encoder, for one image. Raises ValueError for TinyViT, which is shaped otherwise."""
    if config.encoder != "vit":
        raise ValueError(f"expected an encoder of the kind vit, got {config.encoder}")
    width, out, side = config.embed_dim, config.out_chans, config.embedding_size
    cells = side**2
    patches = product(cells, 3 * config.patch_size**2, width)
    neck = product(cells, width, out) + product(cells, 9 * out, out)
    blocks = 0
    for index in range(config.depth):
        window = side if index in config.global_attn_indexes else config.window_size
        padded = (-(-side // window) * window) ** 2
        blocks += product(padded, width, 3 * width) + product(padded, width, width)
        blocks += 2 * product(padded, window**2, width)  # scores, and what they gather
        blocks += 2 * product(padded, window, width)  # relative positions, rows and columns
        blocks += mlp(cells, width, int(width * config.mlp_ratio), width)
    return patches + blocks + neck


@dataclass(frozen=True, slots=True)
class DecoderFlops:
    """Operations of a decoder that is asked about single points: to make an image ready, to score a prompt,
    and to draw the masks of one.
    """

    image: int
    prompt: int
    drawn: int

    def total(self, prompts: int, drawn: int) -> int:
        """For an image with so many prompts, of which so many are drawn."""
        return self.image + prompts * self.prompt + drawn * self.drawn


def published_decoder_flops(config: SamConfig) -> DecoderFlops:
    """The published form: each prompt has image cells of its own, and is drawn whether wanted or not."""
    width, inner, cells = config.out_chans, config.out_chans // 2, config.embedding_size**2
    cells_and_tokens = 2 * product(TOKENS, inner, cells)  # scores, and what they gather
    to_image = 2 * product(TOKENS, width, inner) + 2 * product(cells, width, inner) + cells_and_tokens
    to_tokens = 2 * product(TOKENS, width, inner) + 2 * product(cells, width, inner) + cells_and_tokens
    blocks = 2 * (_tokens_alone(config) + to_image + to_tokens)
    upscaling = product(cells, width, width) + _second_upscaling(config)
    score = mlp(1, width, config.iou_head_hidden_dim, config.iou_head_hidden_dim, MASK_TOKENS)
    return DecoderFlops(0, blocks + to_image + score, upscaling + _mask_heads(config))


def decoder_flops(config: SamConfig, *, compiled: bool = True) -> DecoderFlops:
    """Our form: cells in factors, the image's part of each projection made once, masks drawn on demand.

    `compiled` loops multiply the lower half of each gram matrix, tensors all of it.
    """
    width, inner, cells = config.out_chans, config.out_chans // 2, config.embedding_size**2
    rows = config.decoder_num_heads * TOKENS  # what an exchange adds to the factors
    across = product(TOKENS, inner, cells)  # tokens in head space with the cells' shared part
    project = product(TOKENS, width, inner)
    half = 2 if compiled else 1

    image = 15 * product(cells, width, inner) + product(cells, width, width)
    image += 2 * product(config.mask_in_chans + 1, width, cells)  # the base with the rows of mask prompts
    first = (project + 2 * across + project) + 2 * project  # to the image, tokens
    first += 2 * across if compiled else across  # scores: tensors add both parts of the cells up before
    first += (
        project + across + product(rows, width, rows) + product(rows, rows, cells) // half
    )  # the exchange
    second = _look(config, TOKENS, rows) + 2 * project  # to the cells, tokens
    second += product(rows, width, inner) + product(TOKENS, inner, rows)  # scores: of the rows,
    second += 2 * across + product(rows, rows, cells)  # and of the cells
    second += project + 2 * across  # the exchange, with two sets of rows
    second += product(2 * rows, width, 2 * rows) + product(2 * rows, 2 * rows, cells) // half
    score = mlp(1, width, config.iou_head_hidden_dim, config.iou_head_hidden_dim, MASK_TOKENS)
    prompt = 2 * _tokens_alone(config) + first + second + _look(config, 1, 2 * rows) + score

    upscaling = product(2 * rows, width, width) + product(cells, 2 * rows, width) + _second_upscaling(config)
    drawn = _look(config, MASK_TOKENS, 2 * rows) + _mask_heads(config) + upscaling
    return DecoderFlops(image, prompt, drawn)


def _tokens_alone(config: SamConfig) -> int:
    """A block's self-attention and MLP."""
    width = config.out_chans
    attention = 4 * product(TOKENS, width, width) + 2 * product(TOKENS, TOKENS, width)
    return attention + mlp(TOKENS, width, config.decoder_mlp_dim, width)


def _look(config: SamConfig, tokens: int, rows: int) -> int:
    """Some tokens attend to cells in so many rows of factors."""
    width, inner, cells = config.out_chans, config.out_chans // 2, config.embedding_size**2
    asking = config.decoder_num_heads * tokens
    projections = 2 * product(tokens, width, inner) + 2 * product(rows, width, inner)
    shared = 3 * product(tokens, inner, cells)  # scores with what changes and what does not, values
    return projections + shared + 2 * (product(tokens, inner, rows) + product(asking, rows, cells))


def _second_upscaling(config: SamConfig) -> int:
    """The second transposed convolution, and its sixteen pixels a cell with each mask's weights."""
    width, cells = config.out_chans, config.embedding_size**2
    return product(4 * cells, width // 4, width // 2) + product(16 * cells, width // 8, MASK_TOKENS)


def _mask_heads(config: SamConfig) -> int:
    width = config.out_chans
    return MASK_TOKENS * mlp(1, width, width, width, width // 8)

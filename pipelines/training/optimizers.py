"""The optimisers: AdamW as in the paper, or Muon with AdamW for the rest.

Layer-wise decay (paper, appendix A; arXiv 2203.16527): the last block of the encoder learns at the decay's
first power of the full rate, the one before at its second power, and the patches and positions slowest. Each
group of parameters carries its part of the rate as `scale`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...model.networks.sam import Sam
from .config import TrainConfig

Named = Iterable[tuple[str, nn.Parameter]]


def make_optimizers(config: TrainConfig, sam: Sam, auxiliary: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for everything, or Muon for the matrices of the transformers and AdamW for the rest."""
    rest = dict(sam.named_parameters()) | dict(auxiliary.named_parameters(prefix="auxiliary"))
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        linear = {f"{name}.weight" for name, module in sam.named_modules() if isinstance(module, nn.Linear)}
        transformers = ("image_encoder.blocks.", "mask_decoder.transformer.")
        matrices = {
            name: rest.pop(name) for name in [*rest] if name in linear and name.startswith(transformers)
        }
        products = torch.bfloat16 if config.precision == "bf16" else torch.float32
        optimizers.append(Muon(_groups(config, sam, matrices.items()), products))
    groups = _groups(config, sam, rest.items())
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
    return (*optimizers, adamw)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose matrix is made orthogonal (K. Jordan, "Muon", 2024).

    Steps are as large as AdamW's at the same rate (arXiv 2502.16982), and products have the run's precision.
    `torch.optim.Muon` always multiplies in bf16, which a CPU without instructions for it emulates: there, a
    step of `train_nano` in fp32 took 12 seconds with it, and takes 4 with this one.
    """

    MOMENTUM = 0.95

    def __init__(self, groups: list[dict[str, Any]], products: torch.dtype = torch.float32) -> None:
        super().__init__(groups, {"lr": 0.0, "products": products})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every group's parameters at its `lr` and `weight_decay`."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - self.MOMENTUM)
                ahead = matrix.grad.lerp(momentum, self.MOMENTUM)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(matrix.shape) ** 0.5
                matrix.add_(orthogonal(ahead.to(group["products"])), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of the matrix U S Vᵀ: singular values of a hundredth of its norm or more become about 1.

    Five iterations of a polynomial after Newton and Schulz, whose coefficients raise small values fast, bring
    values that are not far below the others between 0.7 and 1.2.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide: Tensor = matrix.T if is_tall else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (2.0315 * gram @ gram - 4.775 * gram) @ wide
    return wide.T if is_tall else wide


@contextmanager
def without_denormals() -> Iterator[None]:
    """Flush denormals to 0 in the block: moments of rarely used weights decay into them, and slow a CPU."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def layer_scale(name: str, depth: int, decay: float) -> float:
    """A parameter's part of the learning rate, in a model whose encoder has `depth` blocks."""
    if block := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return decay ** (depth - int(block[1]))
    first = name.startswith(("image_encoder.patch_embed.", "image_encoder.pos_embed"))
    return decay ** (depth + 1) if first else 1.0


def _groups(config: TrainConfig, sam: Sam, parameters: Named) -> list[dict[str, Any]]:
    """Groups of parameters with one rate and one weight decay each, ordered by their first parameters."""
    gathered: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters:
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        gathered[layer_scale(name, sam.config.depth, config.layer_decay), decay].append(parameter)
    return [
        {"params": found, "scale": scale, "weight_decay": decay} for (scale, decay), found in gathered.items()
    ]

"""What turns gradients into steps: AdamW as in the paper, or Muon with AdamW for the rest.

Layer-wise decay (paper, appendix A; arXiv 2203.16527): the last block of the encoder learns at the decay's
first power of the full rate, the one before at the second, the patches and positions slowest. Each group of
parameters carries its part of the rate as `scale`.
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
    """Momentum with Nesterov's look ahead, its matrix made orthogonal (K. Jordan, "Muon", 2024).

    A step has the size that AdamW's has at the same rate (arXiv 2502.16982). The products are of the run's
    precision. `torch.optim.Muon` does them in bf16 always, which a CPU without instructions for it emulates:
    there, and in fp32, a step of `train_nano` took 12 seconds with it, and takes 4 with this one.
    """

    MOMENTUM = 0.95

    def __init__(self, groups: list[dict[str, Any]], products: torch.dtype = torch.float32) -> None:
        super().__init__(groups, {"lr": 0.0, "products": products})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step of every group, at its `lr` and `weight_decay`."""
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
    """About U Vᵀ of the matrix U S Vᵀ: singular values of a hundredth of its norm or more come to about 1.

    Five rounds of a polynomial after Newton and Schulz, with coefficients that lift small values fast: what
    was not far below the others lies from 0.7 to 1.2 then.
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
    """Moments of what is rarely used decay into denormals, with which a CPU is slow: here they become 0."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def layer_scale(name: str, depth: int, decay: float) -> float:
    """The part of the learning rate that a parameter has, in a model whose encoder has `depth` blocks."""
    if block := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return decay ** (depth - int(block[1]))
    first = name.startswith(("image_encoder.patch_embed.", "image_encoder.pos_embed"))
    return decay ** (depth + 1) if first else 1.0


def _groups(config: TrainConfig, sam: Sam, parameters: Named) -> list[dict[str, Any]]:
    """Parameters of one rate and one weight decay each, in the order in which they come first."""
    gathered: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters:
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        gathered[layer_scale(name, sam.config.depth, config.layer_decay), decay].append(parameter)
    return [
        {"params": found, "scale": scale, "weight_decay": decay} for (scale, decay), found in gathered.items()
    ]

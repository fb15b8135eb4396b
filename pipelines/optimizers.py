"""What turns gradients into steps: AdamW as in the paper, or Muon with AdamW for the rest.

Layer-wise decay (paper, appendix A; arXiv 2203.16527): the last block of the encoder learns at the decay's
first power of the full rate, the one before at the second, the patches and positions slowest. Each group of
parameters carries its part of the rate as `scale`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from model.sam import Sam
from pipelines.errors import ConfigError
from pipelines.training_config import TrainConfig

Named = Iterable[tuple[str, nn.Parameter]]


def make_optimizers(config: TrainConfig, sam: Sam, auxiliary: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for everything, or Muon for the matrices of the transformers and AdamW for the rest.

    Raises ConfigError where the installed torch has no Muon.
    """
    rest = dict(sam.named_parameters()) | dict(auxiliary.named_parameters(prefix="auxiliary"))
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; use adamw"
            )
        linear = {f"{name}.weight" for name, module in sam.named_modules() if isinstance(module, nn.Linear)}
        transformers = ("image_encoder.blocks.", "mask_decoder.transformer.")
        matrices = {
            name: rest.pop(name) for name in [*rest] if name in linear and name.startswith(transformers)
        }
        optimizers.append(
            torch.optim.Muon(
                _groups(config, sam, matrices.items()),
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    groups = _groups(config, sam, rest.items())
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
    return (*optimizers, adamw)


def layer_scale(name: str, depth: int, decay: float) -> float:
    """The part of the learning rate that a parameter has, in a model whose encoder has `depth` blocks."""
    if block := re.match(r"image_encoder\.blocks\.(\d+)\.", name):
        return decay ** (depth - int(block[1]))
    first = name.startswith(("image_encoder.patch_embed.", "image_encoder.pos_embed"))
    return decay ** (depth + 1) if first else 1.0


def _groups(config: TrainConfig, sam: Sam, parameters: Named) -> list[dict[str, object]]:
    """Parameters of one rate and one weight decay each, in the order in which they come first."""
    gathered: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters:
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        gathered[layer_scale(name, sam.config.depth, config.layer_decay), decay].append(parameter)
    return [
        {"params": found, "scale": scale, "weight_decay": decay} for (scale, decay), found in gathered.items()
    ]

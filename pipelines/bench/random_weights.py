"""Noise in place of weights: the speed of a network's shapes, where the published file is not at hand."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...engine.geometry import resize_to_input
from ...model import MODELS, Sam
from ..config.run import RunConfig
from ..workers.loading import resolve_device


def placed(noise: Sam, config: RunConfig) -> Sam:
    """A copy of the network on the configured device, in the configured precision."""
    dtype = torch.bfloat16 if config.model.precision == "bf16" else torch.float32
    sam = copy.deepcopy(noise).to(resolve_device(config.model.device)).in_precision(dtype)
    if config.model.compile:
        sam.compile_encoder(config.generator.encode_batch)
    return sam


@torch.no_grad()
def random_sam(name: str, pixels_HW3: npt.NDArray[np.uint8]) -> Sam:
    """A network of seeded noise, in fp32, that leaves masks to work on.

    On this photograph its predicted IoUs spread about 0.5 by 0.1, and its logits about 0 by 10: as much
    passes as the thresholds let through.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = Sam(MODELS[name]).eval()
        for parameter in sam.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 if len(parameter) == 1 else parameter[0].numel() ** -0.5)
        resized = torch.from_numpy(resize_to_input(pixels_HW3, sam.config.img_size))
        encoded = sam.encode([resized.permute(2, 0, 1)])
        points_1P12 = torch.rand(1, 32, 1, 2) * torch.tensor(resized.shape[1::-1])
    decoded = sam.attend(encoded, points_1P12, torch.ones(1, 32, 1, dtype=torch.int64))
    logits = sam.draw(decoded, torch.arange(32), torch.ones(32, dtype=torch.int64))
    for head in sam.mask_decoder.output_hypernetworks_mlps:
        linear = _last_linear(head)
        linear.weight.mul_(10 / logits.std())
        linear.bias.mul_(10 / logits.std())
    linear, iou_PM = _last_linear(sam.mask_decoder.iou_prediction_head), decoded.iou_BPM[0]
    linear.weight.mul_(0.1 / iou_PM.std(0)[:, None])
    linear.bias.copy_(0.5 + (linear.bias - iou_PM.mean(0)) * 0.1 / iou_PM.std(0))
    return sam


def _last_linear(head: nn.Module) -> nn.Linear:
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]

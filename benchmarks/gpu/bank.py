"""Masks that look like masks, where a network of noise would draw snow: a bank of smooth shapes.

The network works as it would, and its answers are exchanged last: the predicted IoUs after a prompt was
scored, the logits after a mask was drawn. So drawing costs what it costs, and measuring, suppressing,
painting and coding work on what a photograph would give them. A prompt's answer depends on its point alone:
the object that it lies on, the whole of it, a part and a part of the part. So ours and the released
generator, asked about the same points, are answered the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskmill.model.config import SamConfig
from maskmill.model.networks.mask_decoder import Decoded
from maskmill.model.networks.sam import EncodedImages, Sam

READINGS = (1.0, 0.6, 0.36)
"""Radius of the whole, of its part and of the part's part."""

OBJECTS = 96
CONFIDENT = 0.2
"""Share of masks that pass the released generator's predicted IoU, 0.88."""

FIRMNESS = (60.0, 500.0)
"""Logits from a shape's middle to its edge: the stability filter (0.95, offset 1) drops about a third."""


@dataclass(frozen=True)
class Bank:
    """S smooth shapes on the grid of logits, and which three answer a prompt at each of its points.

    `logits_Shw` in the network's precision, `shape_hwM` indexes into it, `iou_hwM` fp32.
    """

    logits_Shw: Tensor
    shape_hwM: Tensor
    iou_hwM: Tensor
    scale: float
    """Grid points a pixel of the network's input."""

    @classmethod
    def drawn(
        cls, config: SamConfig, size: tuple[int, int], device: torch.device | str, dtype: torch.dtype
    ) -> Bank:
        """For images of a size (height, width), resized as the network has it; the same each time."""
        side, rng = config.low_res_size, np.random.default_rng(0)
        y_h1, x_1w = (place + 0.5 for place in np.ogrid[:side, :side])
        extent = np.array(size[::-1]) * side / max(size)
        middles, radii = rng.uniform(0, extent, (OBJECTS, 2)), np.exp(rng.uniform(-4, -1.2, OBJECTS)) * side
        logits = np.empty((OBJECTS, len(READINGS), side, side), np.float32)
        distance = np.empty((OBJECTS, side, side), np.float32)
        for n, (middle, radius) in enumerate(zip(middles, radii, strict=True)):
            dx, dy = x_1w - middle[0], y_h1 - middle[1]
            bumps, phase = rng.uniform(0, 0.25), rng.uniform(0, 6)
            reach_hw = 1 + bumps * np.sin(np.arctan2(dy, dx) * rng.integers(2, 6) + phase)
            distance[n] = np.hypot(dx, dy) / (radius * reach_hw)
            firm = np.exp(rng.uniform(*np.log(FIRMNESS)))
            for reading, share in enumerate(READINGS):
                logits[n, reading] = np.clip(firm * (share - distance[n]), -20, 20)
        # The smallest object that a point lies on; the nearest, where it lies on none.
        rank_n = np.where(distance < 1, radii[:, None, None], side * (1 + distance))
        owner_hw = rank_n.argmin(0)
        shape_hwM = len(READINGS) * owner_hw[..., None] + np.arange(len(READINGS))
        # Even steps in a shuffled order, so that the share above 0.88 is the one wanted.
        steps = np.argsort(np.argsort(rng.random(shape_hwM.size))).reshape(shape_hwM.shape)
        iou_hwM = 0.88 + 0.5 * (steps / steps.size - (1 - CONFIDENT))
        return cls(
            torch.from_numpy(logits).flatten(0, 1).to(device, dtype),
            torch.from_numpy(shape_hwM).to(device),
            torch.from_numpy(iou_hwM.astype(np.float32)).to(device),
            side / config.img_size,
        )

    def at(self, points_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes and predicted IoUs, N×3 each, for prompts at points (x, y) of the network's input."""
        last = self.shape_hwM.shape[0] - 1
        x_N, y_N = (points_N2 * self.scale).long().clamp(0, last).unbind(-1)
        return self.shape_hwM[y_N, x_N], self.iou_hwM[y_N, x_N]


class BankSam(Sam):
    """The network with a bank's answers. Threads may share it: each draws what it has scored last."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        self.bank: Bank | None = None
        self._scored = threading.local()

    def attend(
        self, images: EncodedImages, points_BPN2: Tensor | None = None, *given: Any, **options: Any
    ) -> Decoded:
        """Score as the network does, and answer as the bank does."""
        decoded = super().attend(images, points_BPN2, *given, **options)
        if self.bank is None or points_BPN2 is None:
            return decoded
        shape_BPM, iou_BPM = self.bank.at(points_BPN2[:, :, 0])
        self._scored.shape_XM = shape_BPM.flatten(0, 1)
        single_mask = iou_BPM[..., :1]
        return replace(decoded, iou_BPM=torch.cat([single_mask, iou_BPM], -1))

    def draw(self, decoded: Decoded, prompt_K: Tensor, token_K: Tensor) -> Tensor:
        """Draw as the network does, and return what the bank has."""
        logits_Khw = super().draw(decoded, prompt_K, token_K)
        if self.bank is None:
            return logits_Khw
        place_2K = torch.stack([prompt_K, token_K - 1])
        if self.device.type == "cuda" and place_2K.device.type == "cpu":
            place_2K = place_2K.pin_memory().to(self.device, non_blocking=True)
        shape_K = self._scored.shape_XM[place_2K[0], place_2K[1]]
        return self.bank.logits_Shw[shape_K]


@contextmanager
def answering(released: nn.Module, bank: Bank) -> Iterator[None]:
    """The released network with the bank's answers, within the block."""
    points: list[Tensor] = []

    def before(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        coordinates, _labels = named["points"] if "points" in named else given[0]
        points[:] = [coordinates[:, 0]]

    def after(
        _module: nn.Module, _given: tuple[Any, ...], drawn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        shape_PM, iou_PM = bank.at(points[0])
        return bank.logits_Shw[shape_PM].to(drawn[0].dtype), iou_PM.to(drawn[1].dtype)

    prompts: Any = released.prompt_encoder
    decoder: Any = released.mask_decoder
    hooks = [
        prompts.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

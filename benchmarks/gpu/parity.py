"""Whether a device makes the CPU's masks, and the fast precision those of fp32, with the bundled weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from maskmill.engine import GeneratedMasks, GeneratorConfig, MaskGenerator
from maskmill.engine.backends.device import OnDevice
from maskmill.model import load_sam
from maskmill.model.networks.sam import Sam

from .agreement import count, matched_share, same_codes
from .scenes import Pixels

LENIENT = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}
"""Below the bundled weights' own: thrice the masks to compare."""


def lenient(points_per_side: int, **options: Any) -> GeneratorConfig:
    """A grid that leaves some dozens of masks a scene."""
    return GeneratorConfig(points_per_side=points_per_side, **LENIENT, **options)


def on(device: torch.device | str, config: GeneratorConfig, sam: Sam | None = None) -> MaskGenerator:
    """A generator that works as on a GPU, with the bundled weights in fp32 unless others are given."""
    sam = sam or load_sam("nano", device=device)
    return MaskGenerator(sam, config, OnDevice(sam, config))


def on_cpu(config: GeneratorConfig, images: Sequence[Pixels]) -> list[GeneratedMasks]:
    """What a CPU makes of the images, in fp32: the reference."""
    return MaskGenerator(load_sam("nano"), config).generate_batch(images)


def mixed(device: torch.device | str, encoder: torch.dtype, decoder: torch.dtype) -> Sam:
    """The bundled weights with each half in a precision of its own."""
    sam = load_sam("nano", device=device)
    sam.image_encoder.to(encoder)
    if hasattr(sam, "decode_in"):
        return sam.decode_in(decoder)
    sam.prompt_encoder.to(decoder)
    sam.mask_decoder.to(decoder)
    return sam


def compared(ours: Sequence[GeneratedMasks], reference: Sequence[GeneratedMasks]) -> dict[str, Any]:
    """How many masks each has, and what share of them found a partner."""
    return {
        "masks": count(ours),
        "reference_masks": count(reference),
        "matched_0.99": matched_share(ours, reference, 0.99),
        "matched_0.95": matched_share(ours, reference, 0.95),
        "same_codes": same_codes(ours, reference),
    }


def fp32(device: torch.device, images: Sequence[Pixels], config: GeneratorConfig) -> dict[str, Any]:
    """The device's way of working, in fp32, against the CPU's."""
    return compared(on(device, config).generate_batch(images), on_cpu(config, images))


def half(device: torch.device, images: Sequence[Pixels], config: GeneratorConfig) -> dict[str, Any]:
    """`precision: bf16` as it loads, and on a GPU a decoder in fp16 and bf16, against fp32 there.

    (A CPU multiplies halves so slowly that a scene takes a minute.)
    """
    reference = on(device, config).generate_batch(images)
    sams = {"as_loaded": lambda: load_sam("nano", device=device, dtype=torch.bfloat16)}
    if device.type != "cpu":
        sams |= {
            "fp16_decoder": lambda: mixed(device, torch.bfloat16, torch.float16),
            "bf16_decoder": lambda: mixed(device, torch.bfloat16, torch.bfloat16),
        }
    return {
        name: compared(on(device, config, made()).generate_batch(images), reference)
        for name, made in sams.items()
    }

"""Whether a device makes the CPU's masks, and the fast precision those of fp32, with the bundled weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from maskmill.engine import GeneratedMasks, GeneratorConfig, MaskGenerator
from maskmill.engine.backends.device import DeviceBackend
from maskmill.model import load_sam
from maskmill.model.networks.sam import Sam
from maskmill.pipelines.config.run import load_config
from maskmill.pipelines.workers.loading import make_generator
from maskmill.pipelines.workers.tasks import Job

from .agreement import count, matched_share, same_codes
from .scenes import Pixels

LENIENT = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}
"""Below the bundled weights' own: thrice the masks to compare."""


def lenient(points_per_side: int, **options: Any) -> GeneratorConfig:
    """A grid that leaves some dozens of masks a scene."""
    return GeneratorConfig(points_per_side=points_per_side, **LENIENT, **options)


def loaded(device: torch.device | str, precision: str = "fp32") -> Sam:
    """The bundled weights as a run's worker loads them, with what it sets for its process: TF32 is off."""
    device = torch.device(device)
    config = load_config("nano", [f"model.device={device.type}", f"model.precision={precision}"])
    return make_generator(Job(Path(), config, "parity")).sam


def on(device: torch.device | str, config: GeneratorConfig, sam: Sam | None = None) -> MaskGenerator:
    """A generator that works as on a GPU, with the bundled weights in fp32 unless others are given."""
    sam = sam or loaded(device)
    return MaskGenerator(sam, config, DeviceBackend(sam, config))


def on_cpu(config: GeneratorConfig, images: Sequence[Pixels]) -> list[GeneratedMasks]:
    """What a CPU makes of the images, in fp32: the reference."""
    return MaskGenerator(load_sam("nano"), config).generate_batch(images)


def decoding_in(dtype: torch.dtype, device: torch.device | str) -> Sam:
    """The bundled weights with the encoder in bf16 and the decoder as given."""
    sam = loaded(device, "bf16")
    sam.decode_in(dtype)
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
    """The device's backend, in fp32, against the CPU's."""
    return compared(on(device, config).generate_batch(images), on_cpu(config, images))


def half(device: torch.device, images: Sequence[Pixels], config: GeneratorConfig) -> dict[str, Any]:
    """`precision: bf16` as it loads, and on a GPU with a decoder in fp32 and in bf16, against fp32 there.

    (On a CPU it loads with a decoder in fp32, since halves take it a minute a scene.)
    """
    reference = on(device, config).generate_batch(images)
    sams: dict[str, Callable[[], Sam]] = {"as_loaded": lambda: loaded(device, "bf16")}
    if device.type != "cpu":
        sams |= {
            "fp32_decoder": lambda: decoding_in(torch.float32, device),
            "bf16_decoder": lambda: decoding_in(torch.bfloat16, device),
        }
    return {
        name: compared(on(device, config, made()).generate_batch(images), reference)
        for name, made in sams.items()
    }

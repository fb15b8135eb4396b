"""Weights from a file into a `Sam`, and back.

Three kinds of file are understood, told apart by what is in them rather than by their names:
- official ones (`sam_vit_h_4b8939.pth`, `mobile_sam.pt`, anything with their keys): loaded as they are;
- Hugging Face `SamModel` files: renamed by one table (`HUGGING_FACE`), then loaded strictly;
- our own: safetensors with official names and, as JSON in the metadata, the model's shapes (`config`) and its
  thresholds.

Whatever does not fit the model is named in the error, all of it counted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import MODELS, SamConfig
from ..networks.sam import Sam
from .errors import CheckpointError
from .finding import find_checkpoint, thresholds_of
from .tensor_file import listed, read_tensors, write_tensors

OWN_SIZES = frozenset({"nano"})  # trained here: the file knows its shapes, not the name

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_HEAD = r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))"
HUGGING_FACE: tuple[tuple[str, str], ...] = (
    # Patterns for the names in a Hugging Face `SamModel`, applied one after the other. Only names differ:
    # every tensor has the official layout. The positional matrix may be there twice, for image and prompts.
    # (transformers runs the decoder's norms with ε = 1e-6; the weights were trained with 1e-5, as here.)
    (r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", GAUSSIAN),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder\.patch_embed)\.projection\.", r"\1.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^(image_encoder\.blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^(image_encoder\.neck)\.conv1\.", r"\1.0."),
    (r"^(image_encoder\.neck)\.layer_norm1\.", r"\1.1."),
    (r"^(image_encoder\.neck)\.conv2\.", r"\1.2."),
    (r"^(image_encoder\.neck)\.layer_norm2\.", r"\1.3."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm([1234])\.", r"\1.norm\2."),
    (r"^(mask_decoder\.transformer)\.layer_norm_final_attn\.", r"\1.norm_final_attn."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (rf"^{_HEAD}\.layers\.0\.", r"\1.layers.1."),
    (rf"^{_HEAD}\.proj_in\.", r"\1.layers.0."),
    (rf"^{_HEAD}\.proj_out\.", r"\1.layers.2."),
)


def load_sam(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Sam:
    """Build the model called `name` (a key of `MODELS`) with its weights, in evaluation mode.

    Without `checkpoint` the weights are those that ship with the package (`nano`), else a download in the
    cache folder. A file of ours says its shapes itself: for `nano` they are taken from it, for the published
    sizes they must be the published ones. The model's `thresholds` are those that are recommended for these
    weights.
    Raises CheckpointError: unknown name, no such file, not a checkpoint, not one of this model, or weights
    that are not finite, in the file or in the precision asked for.
    """
    path = find_checkpoint(name, checkpoint)
    state, metadata = read_tensors(path)
    config = _config_for(name, metadata, path)
    with Uninitialised():
        sam = Sam(config)
    _load_strictly(sam, _official_names(state, path), path, name)
    sam.thresholds = thresholds_of(name, metadata, path)
    sam = sam.to(device).in_precision(dtype)
    check_finite(sam, path)
    return sam.eval()


def check_finite(sam: Sam, path: Path) -> None:
    """Raise CheckpointError where a weight is no number, or too large for the precision that it is in.

    On a GPU the decoder is in fp16, which ends at 65,504: a larger weight would make every mask of nothing.
    """
    state = sam.state_dict()
    finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()  # one wait for all
    lost = [
        f"{key} ({value.dtype})" for (key, value), well in zip(state.items(), finite, strict=True) if not well
    ]
    if lost:
        told = listed(lost).replace("torch.", "")
        raise CheckpointError(f"{path}: expected finite weights, got others in {len(lost)} tensor(s): {told}")


def save_sam(
    sam: Sam,
    path: str | Path,
    extra_metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write safetensors that `load_sam` and outside programs can build the model from (metadata: `config`,
    and `thresholds`, as `load_sam` gives them).

    The file appears whole or not at all, and its bytes are the same for the same model. Raises ValueError
    for a weight that `dtype` cannot hold.
    """
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in sam.state_dict().items()
    }
    lost = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if lost:
        raise ValueError(f"not finite in {dtype}: {listed(lost)}")
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    said = {"config": json.dumps(asdict(sam.config)), "thresholds": json.dumps(asdict(sam.thresholds))}
    write_tensors(state, unfinished, {**(extra_metadata or {}), **said})
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def _official_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not any(key.startswith("vision_encoder.") for key in state):
        return state
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        official = key
        for pattern, replacement in HUGGING_FACE:
            official = re.sub(pattern, replacement, official)
        if official in renamed and not torch.equal(renamed[official], value):
            raise CheckpointError(f"{path} has two different tensors for {official}")
        renamed[official] = value
    return renamed


def _config_for(name: str, metadata: Mapping[str, str], path: Path) -> SamConfig:
    named, stored = MODELS[name], _parse_config(metadata, path)
    if stored is None:
        return named
    differences = [
        f"{key} {ours!r} in the file, {theirs!r} in {name}"
        for (key, ours), theirs in zip(asdict(stored).items(), asdict(named).values(), strict=True)
        if ours != theirs
    ]
    if differences and (name not in OWN_SIZES or stored.encoder != named.encoder):
        raise CheckpointError(f"{path} is not a {name}: {'; '.join(differences)}")
    return stored


def _parse_config(metadata: Mapping[str, str], path: Path) -> SamConfig | None:
    if "config" not in metadata:
        return None
    try:
        stored = json.loads(metadata["config"]).items()
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored}
        unknown = sorted(set(values) - {field.name for field in fields(SamConfig)})
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}")
        return SamConfig(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has an invalid `config` in its metadata: {error}") from error


def _load_strictly(sam: Sam, state: dict[str, Tensor], path: Path, name: str) -> None:
    expected = sam.state_dict()
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {_shape(state[key])} in the file, {_shape(value)} in the model"
        for key, value in expected.items()
        if key in state and _shape(state[key]) != _shape(value)
    ]
    faults = [
        f"{len(keys)} {what} ({listed(keys)})"
        for what, keys in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if keys
    ]
    if faults:
        raise CheckpointError(f"{path} does not fit {name}: {'; '.join(faults)}{_resemblance(state)}")
    sam.load_state_dict(state, strict=True)


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return ("×".join(map(str, tensor.shape)) or "scalar") + kind


def _resemblance(state: Mapping[str, Tensor]) -> str:
    """“; it looks like vit_l”, if it does."""
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return "; it looks like vit_t"
    positions = state.get("image_encoder.pos_embed")
    if positions is None:
        return ""
    matches = (
        name for name, c in MODELS.items() if c.encoder == "vit" and c.embed_dim == positions.shape[-1]
    )
    return next((f"; it looks like {name}" for name in matches), "")


class Uninitialised(TorchFunctionMode):
    """Skip `torch.nn.init`: every weight is about to be overwritten, and drawing ViT-H takes seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))

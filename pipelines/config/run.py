"""What a run is told: a frozen tree of described values (`loading` reads it from YAML and `--set`).

`digest` names what decides the rows of a corpus. Two runs with equal digests and equal weights may share a
corpus; how many workers, threads or images a batch they use is nobody's business but their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from ...engine.config import GeneratorConfig
from ...model.config import Thresholds
from ..decoding.image import MAX_PIXELS
from ..storage.json_files import canonical, sha256_hex
from .loading import Section, load_settings

AUTO: Literal["auto"] = "auto"
MOST_IMAGES_A_SHARD = 100_000
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class ModelConfig(Section):
    """Which network, which weights, where and how precisely."""

    name: Literal["nano", "vit_b", "vit_l", "vit_h", "vit_t"] = Field(
        default="nano", description="Size of the network."
    )
    checkpoint: str | None = Field(
        default=None, description="File of weights; null takes the bundled ones (nano) or those in the cache."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="fp32 is exact, bf16 is fast (with a decoder in fp16 on a GPU, in fp32 on a CPU).",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes a GPU where there is one."
    )
    compile: bool = Field(
        default=False, description="Fuse the image encoder by torch.compile: a minute or more at each start."
    )


class InputConfig(Section):
    """What counts as a photograph."""

    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        description="Larger images are rejected, by their header, before anything is allocated.",
    )
    extensions: tuple[str, ...] = Field(
        default=IMAGE_EXTENSIONS,
        min_length=1,
        description="Files taken from a folder or a tar file: those ending so, in any case.",
    )
    image_column: str | None = Field(
        default=None,
        description="Column of Parquet inputs with the images; null: image, or the only one of bytes.",
    )


class ClusterConfig(Section):
    """How the work is placed and watched; decides no row."""

    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs a worker reserves, fractions allowed; null: 1 where the cluster has any, else 0.",
    )
    min_workers: int = Field(
        default=1,
        ge=1,
        description="No shard is handed out before so many workers are ready; more may come later.",
    )
    shards_in_flight: int = Field(
        default=2,
        ge=1,
        le=8,
        description="Shards a worker holds at once, so that decoding overlaps with computing.",
    )
    images_ahead: int = Field(
        default=2, ge=1, le=64, description="Images of a shard decoded before they are needed."
    )
    stall_seconds: float = Field(
        default=1800,
        gt=0,
        description="A shard that finishes no image for this long is taken from its worker, which is killed.",
    )
    start_seconds: float = Field(
        default=900,
        gt=0,
        description="A worker that is placed but has not loaded its weights by then is replaced.",
    )
    grace_seconds: float = Field(
        default=20,
        ge=0,
        description="After Ctrl-C or SIGTERM the shards in hand may finish within this time.",
    )


class BreakerConfig(Section):
    """When a run stops by itself, since something is wrong that no image can help; decides no row."""

    rejected_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop when more than this share of the run's images is refused; 1: never.",
    )
    min_images: int = Field(
        default=100,
        ge=1,
        description="Images that a run commits before its share is looked at, shard by shard.",
    )
    worker_deaths: int = Field(
        default=10,
        ge=1,
        description="Stop when this many workers for each slot died in a row, over different images.",
    )
    unwritten_shards: int = Field(
        default=3,
        ge=1,
        description="Stop when the corpus's storage failed for this many shards a worker in a row.",
    )


class RunConfig(Section):
    """Everything `maskmill generate` can be told."""

    model: ModelConfig = ModelConfig()
    generator: GeneratorConfig = GeneratorConfig()
    input: InputConfig = InputConfig()
    shard_size: int | Literal["auto"] = Field(
        default=AUTO,
        description="Images in a shard, the unit of work and of commit; auto: so that all workers have some.",
    )
    embed_images: bool = Field(default=False, description="Keep each image's own bytes in its row.")
    workers: int | None = Field(
        default=None,
        ge=0,
        description="Worker processes at most; null: one a GPU, or 2 CPUs; 0: this process, without Ray.",
    )
    threads_per_worker: int | None = Field(
        default=None, ge=1, description="CPU threads of each worker; null: the machine's CPUs shared evenly."
    )
    cluster: ClusterConfig = ClusterConfig()
    breaker: BreakerConfig = BreakerConfig()

    @field_validator("shard_size", mode="before")
    @classmethod
    def _size_or_auto(cls, value: Any) -> Any:
        if value == AUTO or (type(value) is int and 1 <= value <= MOST_IMAGES_A_SHARD):
            return value
        raise ValueError(f"expected auto, or a whole number from 1 to {MOST_IMAGES_A_SHARD}")

    def with_thresholds(self, thresholds: Thresholds) -> Self:
        """The same with a model's thresholds where none are given."""
        return self.model_copy(update={"generator": self.generator.with_thresholds(thresholds)})


# What moves numbers by rounding at most, or not at all. The weights themselves are told apart by their
# sha256.
_DECIDES_NO_ROW: Any = {
    "model": {"checkpoint", "device", "compile"},
    "generator": {"points_per_batch", "encode_batch", "device_budget_bytes"},
    "input": {"extensions", "image_column"},
    "workers": True,
    "threads_per_worker": True,
    "cluster": True,
    "breaker": True,
}


def digest(config: RunConfig) -> str:
    """Sha256, in hex, of the canonical JSON of what decides the rows."""
    return digest_of(config.model_dump(mode="json"))


def digest_of(config: Mapping[str, Any]) -> str:
    """The same of a configuration as `run.json` has it: plain values."""
    decides = {name: value for name, value in config.items() if _DECIDES_NO_ROW.get(name) is not True}
    for name, left_out in _DECIDES_NO_ROW.items():
        if isinstance(decides.get(name), Mapping):
            decides[name] = {key: value for key, value in decides[name].items() if key not in left_out}
    return sha256_hex(canonical(decides))


def decides_rows(name: str) -> bool:
    """Whether the value of this dotted name counts in `digest`."""
    section, _, rest = name.partition(".")
    left_out = _DECIDES_NO_ROW.get(section, ())
    return left_out is not True and rest not in left_out


def load_config(name_or_path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The run's configuration, as `load_settings` reads it."""
    return load_settings(RunConfig, name_or_path, overrides)

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
        description="fp32 is exact, bf16 is fast (its decoder runs in fp16 on a GPU, in fp32 on a CPU).",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto uses a GPU if there is one."
    )
    compile: bool = Field(
        default=False,
        description="Compile the image encoder by torch.compile, a minute or more at each start.",
    )


class InputConfig(Section):
    """Which inputs count as images."""

    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        description="Images with more pixels are rejected from their header, before memory is allocated.",
    )
    extensions: tuple[str, ...] = Field(
        default=IMAGE_EXTENSIONS,
        min_length=1,
        description="Endings, in either case, of the files that are taken from a folder or a tar file.",
    )
    image_column: str | None = Field(
        default=None,
        description="Column of Parquet inputs that has the images; null: image, or the only column of bytes.",
    )


class ClusterConfig(Section):
    """How work is placed on workers and watched; decides no row."""

    gpus_per_worker: float | None = Field(
        default=None,
        ge=0,
        description="GPUs per worker, fractions allowed; null: 1 if the cluster has any, else 0.",
    )
    min_workers: int = Field(
        default=1,
        ge=1,
        description="Workers that must be ready before the first shard is handed out; more may come later.",
    )
    shards_in_flight: int = Field(
        default=2,
        ge=1,
        le=8,
        description="Shards that a worker holds at once, so that decoding overlaps with computing.",
    )
    images_ahead: int = Field(default=2, ge=1, le=64, description="Images of a shard that are decoded ahead.")
    stall_seconds: float = Field(
        default=1800,
        gt=0,
        description="A worker whose shard finishes no image for this long loses the shard and is killed.",
    )
    start_seconds: float = Field(
        default=900,
        gt=0,
        description="A worker that has not loaded its weights this long after it was placed is replaced.",
    )
    grace_seconds: float = Field(
        default=20,
        ge=0,
        description="Time that the shards in hand have to finish after Ctrl-C or SIGTERM.",
    )


class BreakerConfig(Section):
    """When a run stops itself because of a fault that is not in the images; decides no row."""

    rejected_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop when more than this share of the run's images is rejected; 1: never.",
    )
    min_images: int = Field(
        default=100,
        ge=1,
        description="Images that a run commits before rejected_share is checked, after each shard.",
    )
    worker_deaths: int = Field(
        default=10,
        ge=1,
        description="Stop when this many workers per slot die in a row, on different images.",
    )
    unwritten_shards: int = Field(
        default=3,
        ge=1,
        description="Stop when the corpus's storage fails for this many shards per worker in a row.",
    )


class RunConfig(Section):
    """Everything `maskmill generate` can be told."""

    model: ModelConfig = ModelConfig()
    generator: GeneratorConfig = GeneratorConfig()
    input: InputConfig = InputConfig()
    shard_size: int | Literal["auto"] = Field(
        default=AUTO,
        description="Images per shard, the unit of work and of commit; auto: so that every worker gets some.",
    )
    embed_images: bool = Field(default=False, description="Keep each image's bytes in its row.")
    workers: int | None = Field(
        default=None,
        ge=0,
        description="Most worker processes; null: one per GPU, or per 2 CPUs; 0: this process, without Ray.",
    )
    threads_per_worker: int | None = Field(
        default=None, ge=1, description="CPU threads per worker; null: an even share of the machine's CPUs."
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

"""`run.json`: what decides every row of a corpus, written first and never changed.

It comes before the plan, marks the folder as a corpus, and lets a rerun tell whether it is the same run. It
also says in words what the corpus's numbers mean: in one of ours, and in one that was imported from SA-1B,
which keeps what its source says: the ids of images and annotations, and boxes as SA-1B measures them, from
the first pixel to the last, so that a mask of one pixel has a box of width 0. Its configuration says that it
is imported, hence the run digest too.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ..errors import CorpusError
from ..storage import atomic
from ..storage.json_files import as_bytes, canonical, read_json, sha256_hex
from .layout import RUN
from .schema import FORMAT_NAME, FORMAT_VERSION

CONVENTIONS: dict[str, str] = {
    "image_id": "first 63 bits of the SHA-256 of the key's UTF-8",
    "annotation_id": "(row in the plan << 20) + mask index + 1",
    "coordinates": "pixels of the upright image; x to the right, y down, origin at the top left corner",
    "orientation": "EXIF tag as read; it is applied before anything is measured",
    "bbox": "x, y, width, height; width = x_max - x_min + 1",
    "crop_box": "x, y, width, height",
    "point_coords": "x, y",
    "segmentation": "COCO compressed RLE, column by column; size = height, width",
    "colour": "RGB, 8 bits; transparency over white; 16 bits >> 8; ICC profiles are not applied",
}
IMPORTED: dict[str, str] = CONVENTIONS | {
    "image_id": "that of SA-1B: the number in the name sa_NUMBER.jpg",
    "annotation_id": "that of SA-1B; no two of one image are the same",
    "bbox": "as SA-1B has it: x, y, width, height; width = x_max - x_min",
}
SOURCE = "import"
"""The key of the configuration that says from which format a corpus was imported."""

SA1B = "sa1b"

_SOFTWARE = (
    "numba",
    "numpy",
    "Pillow",
    "pyarrow",
    "pycocotools",
    "ray",
    "safetensors",
    "torch",
)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What decides every row of a corpus.

    Attributes:
        config: the whole configuration, as plain JSON values.
        config_digest: the SHA-256, in hex, of the part of the configuration that decides the rows.
        model_name: the network's name.
        weights_sha256: the SHA-256, in hex, of the network's weights.
        software: package → version when the corpus was planned; for information.

    """

    config: Mapping[str, Any]
    config_digest: str
    model_name: str
    weights_sha256: str
    software: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The run digest, which every shard's footer carries: one hash over what decides the rows."""
        return sha256_hex(
            canonical(
                {
                    "config_digest": self.config_digest,
                    "format_version": FORMAT_VERSION,
                    "model": self.model_name,
                    "weights_sha256": self.weights_sha256,
                }
            )
        )

    @property
    def is_imported(self) -> bool:
        """Whether the corpus keeps SA-1B's ids and boxes (see `IMPORTED`)."""
        return is_imported(self.config)

    def as_json(self) -> dict[str, Any]:
        """The contents of `run.json`."""
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "run_digest": self.digest,
            "config": dict(self.config),
            "config_digest": self.config_digest,
            "model": {"name": self.model_name, "weights_sha256": self.weights_sha256},
            "software": dict(self.software),
            "conventions": IMPORTED if self.is_imported else CONVENTIONS,
        }

    def differences(self, other: RunRecord) -> list[str]:
        """What keeps `other` from writing into this record's corpus, in phrases; empty if nothing does."""
        from ..config.run import decides_rows  # loads pydantic, which readers do without

        found = []
        if self.model_name != other.model_name:
            found.append(f"the model was {self.model_name}, now {other.model_name}")
        if self.weights_sha256 != other.weights_sha256:
            found.append(
                f"the weights' sha256 was {self.weights_sha256[:12]}…, now {other.weights_sha256[:12]}…"
            )
        if self.config_digest != other.config_digest:
            was, now = dict(_flat(self.config)), dict(_flat(other.config))
            names = filter(decides_rows, {**was, **now})
            changed = [name for name in names if was.get(name) != now.get(name)]
            found += [f"{name} was {was.get(name)!r}, now {now.get(name)!r}" for name in changed]
            found += [] if changed else ["the configuration's digest differs"]
        return found

    def changes(self, config: Mapping[str, Any]) -> list[str]:
        """`key=value` for each value that decides no row and differs in `config`."""
        from ..config.run import decides_rows

        was = dict(_flat(self.config))
        return [
            f"{name}={json.dumps(value)}"
            for name, value in _flat(config)
            if name in was and was[name] != value and not decides_rows(name)
        ]


def software_versions() -> dict[str, str]:
    """The installed versions of the packages that make the rows; what is not installed is left out."""
    from importlib import metadata  # takes as long to load as pyarrow's compute; readers do without

    versions = {"python": platform.python_version(), "maskmill": __version__}
    for package in _SOFTWARE:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_run(out: Path, record: RunRecord) -> bool:
    """Write `run.json`. Returns False if there is one already; that one stays."""
    return atomic.create(out / RUN, as_bytes(record.as_json()))


def replace_run(out: Path, record: RunRecord) -> None:
    """Replace `run.json`."""
    atomic.replace(out / RUN, as_bytes(record.as_json()))


def read_run(out: Path) -> RunRecord:
    """Read `run.json`. Raises CorpusError if it is missing, damaged or of another format version."""
    path = out / RUN
    content = read_json(path)
    if content.get("format") != FORMAT_NAME:
        raise CorpusError(f"{path}: expected format {FORMAT_NAME!r}, got {content.get('format')!r}")
    if content.get("format_version") != FORMAT_VERSION:
        raise CorpusError(
            f"{path}: format version {content.get('format_version')!r}; "
            f"this maskmill reads version {FORMAT_VERSION}"
        )
    try:
        record = RunRecord(
            config=dict(content["config"]),
            config_digest=str(content["config_digest"]),
            model_name=str(content["model"]["name"]),
            weights_sha256=str(content["model"]["weights_sha256"]),
            software=dict(content["software"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    if content.get("run_digest") != record.digest:
        raise CorpusError(f"{path}: damaged: its run_digest is not that of its own contents")
    return record


def is_imported(config: Mapping[str, Any]) -> bool:
    """Whether a corpus with this configuration in its `run.json` was imported from SA-1B."""
    return config.get(SOURCE) == SA1B


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value))
    return pairs

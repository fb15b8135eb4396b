"""`run.json` and `corpus.json`: what a corpus says about itself, written first and last.

`run.json` comes before the plan and is never changed: it marks the folder as a corpus and holds what decides
every row, so that a rerun can tell whether it is the same run. `corpus.json` comes after the last shard and
closes the corpus with totals and the SHA-256 of every other file. It holds no time and no place, so finishing
twice gives the same bytes.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...engine.records import DROP_REASONS
from ..errors import CorpusError
from ..prefetch import in_order
from ..storage import atomic
from ..storage.json_files import canonical, fingerprint, read_json, sealed, sha256_hex, write_json
from .ids import CONVENTIONS, IMPORTED, is_imported
from .manifest import BEFORE, recorded, refuse_changed
from .manifest import CORPUS as CORPUS
from .schema import FORMAT_NAME, FORMAT_VERSION, STATUSES
from .shards import committed_shards, open_parquet, reading, shard_path

RUN = "run.json"
FILES_AT_ONCE = 16
"""Read side by side where a corpus is closed: a store's answers take tens of milliseconds each."""
_SOFTWARE = (
    "maskmill",
    "numba",
    "numpy",
    "opencv-python",
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
        config: the whole configuration, plain JSON values.
        config_digest: hex SHA-256 of the part of it that decides the rows.
        model_name: the network.
        weights_sha256: hex, of its weights.
        software: package → version, of the run that planned the corpus; for information.

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
        """Whether the corpus keeps SA-1B's ids and boxes (see `pipelines.format.ids`)."""
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
        """What keeps `other` from writing into this record's corpus, a phrase each; empty where nothing."""
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


def software_versions() -> dict[str, str]:
    """Versions of what makes the rows, as installed; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in _SOFTWARE:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_run(out: Path, record: RunRecord) -> bool:
    """Write `run.json`; False where one is there already, which stays."""
    return atomic.link(out / RUN, lambda file: write_json(file, record.as_json()))


def replace_run(out: Path, record: RunRecord) -> None:
    """Write `run.json` over what is there."""
    atomic.replace(out / RUN, lambda file: write_json(file, record.as_json()))


def read_run(out: Path) -> RunRecord:
    """The record in `run.json`; CorpusError where it is missing, damaged or of another format version."""
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


def finish_corpus(out: Path, shards: range) -> dict[str, Any]:
    """Write `corpus.json` over whatever was there, once every shard of the plan is committed; returns its
    contents.

    Reads every file, several at a time. Raises CorpusError where a shard is missing, cannot be read, or is
    not what was recorded of it before (see `reopen`); no `corpus.json` is written then.
    """
    missing = sorted(set(shards) - committed_shards(out))
    if missing:
        raise CorpusError(
            f"{out}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}"
        )
    for folder in (out, out / "plan", out / "shards"):
        atomic.sweep(folder)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        totals = {**_totals(out, shards, read_run(out).digest, pool), "shards": len(shards)}
        names = _closed_files(out, shards)
        prints = in_order(pool, lambda name: fingerprint(out / name), names, FILES_AT_ONCE)
        files = [{"path": name, **done.result()} for name, done in zip(names, prints, strict=True)]
    refuse_changed(out, recorded(out), {entry["path"]: entry for entry in files})
    content = sealed(
        {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, "totals": totals, "files": files}
    )
    atomic.replace(out / CORPUS, lambda file: write_json(file, content))
    atomic.remove(out / BEFORE)
    return content


def _closed_files(out: Path, shards: range) -> list[str]:
    parts = sorted(path.name for path in (out / "plan").glob("part-*.parquet"))
    return [RUN, *(f"plan/{name}" for name in parts), *(f"shards/{shard_path(out, s).name}" for s in shards)]


def _totals(out: Path, shards: range, digest: str, pool: Executor) -> dict[str, Any]:
    """Sums over the rows, from the few columns that they need; CorpusError for a shard of another run."""
    planned = _planned_ids(out, shards)

    def read(shard: int) -> pa.Table:
        return _counted_columns(shard_path(out, shard), digest, planned[shard])

    statuses: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    rejects: Counter[str] = Counter()
    masks = candidates = 0
    for done in in_order(pool, read, shards, FILES_AT_ONCE):
        table = done.result()
        statuses.update(table["status"].to_pylist())
        rejects.update(error["class"] for error in table["error"].to_pylist() if error)
        candidates += sum(table["candidates"].to_pylist())
        masks += sum(map(len, table["annotations"].to_pylist()))
        for row in table["drops"].to_pylist():
            drops.update(row)
    return {
        "images": statuses.total(),
        **{status: statuses[status] for status in STATUSES},
        "rejects": dict(sorted(rejects.items())),
        "masks": masks,
        "candidates": candidates,
        "drops": {reason: drops[reason] for reason in DROP_REASONS},
    }


def _counted_columns(path: Path, digest: str, planned: npt.NDArray[np.int64]) -> pa.Table:
    columns = ["image_id", "status", "error.class", "candidates", "drops", "annotations.list.element.id"]
    with open_parquet(path) as file:
        with reading(path):
            table = file.read(columns)
        same = file.metadata.metadata.get(b"maskmill.run_digest") == digest.encode()
    if not (same and np.array_equal(table["image_id"].to_numpy(), planned)):
        raise CorpusError(f"{path}: made by another run; remove it, then run the same command again")
    return table


def _planned_ids(out: Path, shards: range) -> list[npt.NDArray[np.int64]]:
    """The ids of each shard's images, in plan order."""
    tables = []
    for path in sorted((out / "plan").glob("part-*.parquet")):
        with open_parquet(path) as file, reading(path):
            tables.append(file.read(["image_id", "shard"]))
    table = pa.concat_tables(tables)
    return np.split(
        table["image_id"].to_numpy(), np.searchsorted(table["shard"].to_numpy(), np.arange(1, len(shards)))
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value))
    return pairs

"""The JSON files of a corpus: one spelling for the same values, and a checksum of the file in itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorpusError, CorpusUnavailable
from .store_errors import as_os_errors


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CorpusError, in one line, if the file holds none."""
    try:
        with as_os_errors():
            content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CorpusError(f"{path}: missing") from None
    except OSError as error:
        raise CorpusUnavailable(f"{path}: cannot be read: {error}", error.errno) from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CorpusError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a `sha256` field added, computed over its canonical JSON without that field."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return {**rest, "sha256": sha256_hex(canonical(rest))}


def canonical(content: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, no blanks, ASCII only: the same bytes for the same values."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def as_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON file of a corpus, byte for byte: ASCII, one blank for each level, a newline at the end."""
    return json.dumps(content, indent=1, allow_nan=False).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A file's identity: its size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


def fingerprint(path: Path) -> Fingerprint:
    """Read the file and return its fingerprint. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Fingerprint(file.tell(), sha256)


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()

"""Where things lie: on this machine's disks, or in an object store.

What the user typed becomes a path once, here: a `pathlib.Path` for a local place, a `UPath` of the same shape
for `s3://`, `gs://` and `hf://`, so that whatever opens, lists or joins paths need not know which it has.
Only what must not be the same, how a file becomes visible, asks `is_remote` (see `atomic`).
"""

from __future__ import annotations

import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

from ..errors import UsageError
from ..extras import pip_install
from ..text import redacted
from .store_errors import as_os_errors

FILE = "file://"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
# What is listed must be what is there, not what this process saw earlier.
_OPTIONS: dict[str, dict[str, Any]] = {
    scheme: {"use_listings_cache": False} for scheme in ("s3", "gs", "gcs")
}


def scheme_of(text: str) -> str | None:
    """`s3` for `s3://bucket/key`; None for a path."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else None


def place(text: str | Path) -> Path:
    """Turn what was typed into a path on a disk or in a store; the store is not asked anything yet.

    `~` and `~user` are home folders. Raises UsageError for a user whom this machine does not know, unless a
    file has that name, and wherever `check_address` does.
    """
    if not isinstance(text, str):
        return text
    scheme = scheme_of(text)
    if scheme is None:
        return at_home(text) if text.startswith("~") else Path(text)
    if scheme == "file":
        return Path(os.fsdecode(unquote(text[len(FILE) :], errors="surrogateescape")))
    check_address(text)
    from upath import UPath

    return cast(Path, UPath(text, **_OPTIONS.get(scheme, {})))  # the same methods, though another class


def at_home(text: str) -> Path:
    """Expand a path that begins with `~`. Raises UsageError as `place` does."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111  (pathlib raises for an unknown user)
    first = path.parts[0]
    if first.startswith("~") and not os.path.lexists(first):
        raise UsageError(f"{text}: this machine has no home folder {first}; write ./{first} to name a file")
    return path


def check_address(text: str) -> None:
    """Raise UsageError if an address names no store we know, or one whose library is not installed, or if it
    holds a password or a signature, which would go into the plan and from there into every row.
    """
    scheme = scheme_of(text)
    if scheme not in _EXTRAS:
        raise UsageError(f"{redacted(text)}: expected a local path, or s3://, gs://, hf:// or file://")
    bucket = text[len(f"{scheme}://") :].partition("/")[0]
    if ":" in bucket or "@" in bucket or redacted(text) != text:
        raise UsageError(f"{redacted(text)}: expected no credentials here; give them in the environment")
    try:
        _library_of(scheme)
    except ImportError:
        raise UsageError(f"{text}: {scheme}:// needs a library: {pip_install(_EXTRAS[scheme])}") from None


@lru_cache
def _library_of(scheme: str) -> Any:
    from fsspec import get_filesystem_class

    # Else gcsfs asks Google's control plane, by gRPC and before each request, what kind of bucket it is.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for logs_what_it_raises in ("gcsfs", "fsspec.prefetcher"):  # with its traceback
        logging.getLogger(logs_what_it_raises).setLevel(logging.CRITICAL)
    return get_filesystem_class(scheme)


def is_remote(path: Path) -> bool:
    """Whether the path is in a store, where a file is one object, put in one request."""
    return not isinstance(path, Path)


def check_page(out: Path, corpus: Path) -> None:
    """Raise UsageError if `out` cannot be a page about the corpus: in a store, a folder, or inside it."""
    if is_remote(out):
        raise UsageError(f"{out}: a page is written to a local disk; choose a path there for --out")
    if out.is_dir():
        raise UsageError(f"{out}: expected a file for the page, this is a folder")
    refuse_inside(out, corpus)


def refuse_inside(out: Path, corpus: Path) -> None:
    """Raise UsageError where `out` lies in the corpus, which nothing but a run may write to."""
    if not (is_remote(out) or is_remote(corpus)) and out.resolve().is_relative_to(corpus.resolve()):
        raise UsageError(f"{out}: lies in the corpus; choose a place outside for --out")


def store_of(path: Path) -> tuple[Any, str]:
    """The fsspec file system of a remote path, and its name there."""
    remote = cast(Any, path)
    return remote.fs, remote.path


def uri_of(path: str) -> str:
    """A path as a plan spells it: absolute and as it is, or a percent-encoded `file://` if it is not UTF-8.

    In a store's address `%` and `#` are percent-encoded, since `#` begins a part of an archive.
    """
    if scheme_of(path):
        return path.replace("%", "%25").replace("#", "%23")
    try:
        path.encode()
    except UnicodeEncodeError:
        return file_uri(path)
    return path


def file_uri(path: str) -> str:
    """A local path as a percent-encoded URI, to which a `#` may be added."""
    return FILE + quote(os.fsencode(path))


def path_of(uri: str) -> Path:
    """The path of a URI that `uri_of` spelt."""
    scheme = scheme_of(uri)
    return place(unquote(uri) if scheme not in (None, "file") else uri)


def is_home_there(path: Path) -> bool:
    """Whether the bucket of an object, or its repository and revision on the Hub, exists now.

    Raises OSError.
    """
    store, name = store_of(path)
    with as_os_errors():
        if scheme_of(str(path)) != "hf":
            return bool(store.exists(name.partition("/")[0]))
        hub = type(store)(
            **store.storage_options, skip_instance_cache=True
        )  # an older one answers from memory
        try:
            hub.resolve_path(name)
        except FileNotFoundError:
            return False
        return True


def shown(path: Path) -> str:
    """The path as a command takes it here: relative to the current folder if it lies in there."""
    try:
        return str(path if is_remote(path) else path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, or there is no current folder any more
        return str(path)

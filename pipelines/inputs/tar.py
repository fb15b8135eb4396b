"""The images in a tar file: found by its headers, once, and then read by range.

A tar has no index, so its headers are walked, each telling where the next one is. `tarfile` does that, and
knows the old and new ways of writing long names. What it finds is kept in the user's cache folder under the
file's address, size and version: of a store ten thousand headers are asked for in minutes, not at once.

Nothing is ever extracted. A member's path is only a name, however many `../` it has; links and sparse files,
whose bytes do not lie in one piece, are passed over and counted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ...model.checkpoints.zoo import cache_folder
from ..errors import UsageError
from ..storage import atomic
from ..storage.paths import is_remote, store_of
from ..storage.store_errors import as_os_errors
from ..text import redacted

log = logging.getLogger(__name__)

EXTENSION = ".tar"
SCANS_AT_ONCE = 8
_BLOCK = 512
_READ_AHEAD = 1 << 18  # of a store: enough for a header and a small member, little enough to throw away
_LONGEST_TEXT = 1 << 20  # of a long name or of pax fields: tarfile reads as much as a header claims
_TEXTS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError)  # tarfile's, of hostile headers
_MEMBERS = pa.schema([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True, slots=True)
class TarIndex:
    """What the headers of a tar file say.

    Attributes:
        members: the ordinary files, in order: name, offset of the first byte, size in bytes.
        passed_over: links, sparse files and devices.
        cached: whether this was known from an earlier scan.

    """

    members: pa.Table
    passed_over: int
    cached: bool


class _Header(tarfile.TarInfo):
    """A header that claims no absurd size; ReadError where it does."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _TEXTS and header.size > _LONGEST_TEXT):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


def read_indexes(paths: Sequence[Path]) -> list[TarIndex]:
    """The index of each tar file, several at a time.

    Raises UsageError, naming the file, where one cannot be read, is cut short, or is no plain tar file.
    """
    with ThreadPoolExecutor(SCANS_AT_ONCE, thread_name_prefix="tar") as pool:
        return list(pool.map(_index, paths))


def _index(path: Path) -> TarIndex:
    try:
        with as_os_errors():
            known = _cache_file(path)
            index = _cached(known)
            if index is None:
                index = _scan(path)
                _keep(known, index)
            return index
    except OSError as error:
        reason = redacted(error.strerror or str(error) or type(error).__name__)
        raise UsageError(f"{path}: cannot be read: {reason}") from None


def _scan(path: Path) -> TarIndex:
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    passed_over = 0
    with _opened(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                for member in _members(tar):
                    if member.isreg() and not member.issparse():
                        names.append(_readable(member.name))
                        offsets.append(member.offset_data)
                        sizes.append(member.size)
                    elif not member.isdir():
                        passed_over += 1
                end = tar.offset
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"{path}: expected a whole, uncompressed tar file: {reason}; unpack a compressed one first"
            ) from None
        file.seek(end)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK or any(block):  # tarfile takes any end for the end
        what = "damaged" if len(block) == _BLOCK else "cut short"
        raise UsageError(f"{path}: the tar file is {what} at byte {end}; copy it again")
    return TarIndex(pa.table([names, offsets, sizes], schema=_MEMBERS), passed_over, cached=False)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order, none of which is kept."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else each is kept
        if member.size < 0:  # by its pax fields: would lead back, and round for ever
            raise tarfile.ReadError(f"a member claims {member.size} bytes")
        yield member


def _opened(path: Path) -> IO[bytes]:
    if not is_remote(path):
        return path.open("rb")
    store, name = store_of(path)
    return cast(IO[bytes], store.open(name, "rb", block_size=_READ_AHEAD, cache_type="readahead"))


def _readable(name: str) -> str:
    r"""The member's name as valid Unicode, bytes that are not UTF-8 as \xNN; a leading `./` says nothing."""
    while name.startswith("./"):
        name = name.removeprefix("./")
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _cache_file(path: Path) -> Path:
    """Where the index of these bytes would lie: by address, size, and the version that a store tells."""
    if is_remote(path):
        store, name = store_of(path)
        state: Any = (store.info(name)["size"], store.ukey(name))
    else:
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns, status.st_ino)
    return cache_folder() / "tar" / f"{hashlib.sha256(os.fsencode(f'1 {path} {state}')).hexdigest()}.parquet"


def _cached(file: Path) -> TarIndex | None:
    """What is kept, or None where there is nothing or it cannot be used."""
    try:
        table = pq.read_table(file, memory_map=False)
        passed_over = int((table.schema.metadata or {})[b"passed_over"])
        members = table.replace_schema_metadata(None)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return TarIndex(members, passed_over, cached=True) if members.schema.equals(_MEMBERS) else None


def _keep(file: Path, index: TarIndex) -> None:
    """Keep an index for the next run; a cache folder that cannot be written is no error."""
    table = index.members.replace_schema_metadata({"passed_over": str(index.passed_over)})
    try:
        atomic.replace(file, lambda out: pq.write_table(table, out))
    except OSError as error:
        log.info("%s: cannot be cached: %s", file, error)

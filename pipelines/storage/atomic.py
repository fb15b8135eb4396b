"""How a file becomes visible, whole, in one step and durably; and what killed processes leave behind.

Everything the corpus is made of passes through here, so that one module knows the file system. A file is
written under a temporary name in its own folder, flushed to the disk, and only then given its name. `create`
gives it with `os.link`, which fails where the name is taken: the first writer wins and the second learns of
it, which a rename could not tell. Two workers may therefore do the same shard, and a reader never sees half a
file.

An object store has neither names to link nor folders to flush: there a file is written to memory and put in
one request, on the condition that its name is free (S3: `If-None-Match: *`; Google: `ifGenerationMatch=0`). A
large one goes in parts, which become an object in one request too, on the same condition; where one of them
fails the others are thrown away. An object that is checked before it is replaced is replaced in S3 on the
condition that it is the one that was checked (`If-Match`). A store that does not know the condition is only
asked beforehand whether the name is free. Nothing is ever streamed to a final name: a writer
that raises would leave a stump there.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CorpusUnavailable, MaskmillError
from ..text import redacted
from .paths import is_remote, scheme_of, store_of
from .store_errors import as_os_errors, store_code

Content = bytes | Callable[[BinaryIO], None]
"""What a file is made of: its bytes, or a function that writes them into an open file."""

_TEMPORARY = ".maskmill-"
_SUFFIX = ".tmp"
PART_BYTES = 512 << 20
"""A file below this is one request, of which a killed process leaves nothing; S3 would take 5 GiB in one."""

_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
_TAKEN = {"PreconditionFailed", "412"}
_BUSY = {"ConditionalRequestConflict", "OperationAborted", "409"}
_NO_CONDITIONS = {"NotImplemented", "501"}


def create(path: Path, content: Content) -> bool:
    """Make the file `path`, unless it is there already.

    Returns True where this call made it, False where the file was there: what is there stays as it is, byte
    for byte. The folder is made where it is missing. Raises what a writer raises, and OSError; nothing is
    left behind then.
    """
    if is_remote(path):
        return _put_new(path, content)
    if path.exists():
        return False
    with _written(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                raise OSError(error.errno, "the file system has no hard links", str(path)) from None
            raise
    _sync_folder(path.parent)
    return True


def replace(path: Path, content: Content, check: Callable[[], None] | None = None) -> None:
    """Make the file `path`, or make it anew; a reader sees the old file or the new one, never a mixture.

    `check` is called last, when the new file is written and flushed, to look at the old one; if it raises,
    the old file stays. In S3 the new object then replaces the very one that was looked at, or none.
    """
    if is_remote(path):
        _put(path, content, check)
        return
    with _written(path, content) as temporary:
        if check is not None:
            check()
        temporary.replace(path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def failing_as(
    kind: type[MaskmillError], path: Path, refused: type[MaskmillError] | None = None
) -> Iterator[None]:
    """Raise an OSError of the block, which works at or below `path`, as a one-line error of this `kind`.

    It is `refused` instead, if one is given, where this user cannot write to that place.
    """
    try:
        with as_os_errors():
            yield
    except OSError as error:
        chosen = refused if refused is not None and error.errno in _REFUSALS else kind
        if isinstance(error, CorpusUnavailable):
            raise chosen(str(error)) from None
        reason = redacted(error.strerror or str(error) or type(error).__name__)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file is in the place of a folder"
        raise chosen(f"{path}: cannot be written: {reason}") from None


def remove(*paths: Path) -> None:
    """Remove files, durably; one that is not there is no error."""
    with as_os_errors():
        for path in paths:
            path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths if not is_remote(path)}:
        if folder.is_dir():
            _sync_folder(folder)


def is_temporary(name: str) -> bool:
    """Whether a file of this name can only be what a killed process of ours left."""
    return name.startswith(_TEMPORARY) and name.endswith(_SUFFIX)


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed processes left in the folder; returns how many there were."""
    if is_remote(folder) or not folder.is_dir():
        return 0
    left = [entry for entry in folder.iterdir() if is_temporary(entry.name) and not entry.is_dir()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _put(path: Path, content: Content, check: Callable[[], None] | None) -> None:
    """Put an object over whatever is there; with a check, only over the object that was checked."""
    store, name = _writable(path)
    data = _bytes_of(content)
    with as_os_errors():
        condition: dict[str, str] = {}
        # gcsfs takes no condition but that a name is free, nor s3fs one for an object in parts.
        if check is not None and scheme_of(str(path)) == "s3" and len(data) < 2 * PART_BYTES:
            condition = {"IfMatch": store.info(name)["ETag"]}  # asked before the check, so of no later object
        if check is not None:
            check()
        try:
            store.pipe_file(name, data, chunksize=PART_BYTES, **condition)
        except OSError as error:
            code = store_code(error)
            if check is not None and code in _TAKEN | _BUSY:
                check()  # which tells what became of it
            if not condition or code not in _NO_CONDITIONS:
                raise
            store.pipe_file(name, data, chunksize=PART_BYTES)


def _put_new(path: Path, content: Content) -> bool:
    """Put an object under a name that is free; False where it is taken."""
    store, name = _writable(path)
    with as_os_errors():
        if store.exists(name):
            return False
        data = _bytes_of(content)
        try:
            store.pipe_file(name, data, mode="create", chunksize=PART_BYTES)
        except FileExistsError:
            return False
        except OSError as error:
            code = store_code(error)
            if code in _TAKEN:
                return False
            if code in _BUSY:
                raise OSError(errno.EBUSY, "another writer is at it", str(path)) from None
            if code not in _NO_CONDITIONS:
                raise
            store.pipe_file(name, data, chunksize=PART_BYTES)
        return True


def _writable(path: Path) -> tuple[Any, str]:
    """The store and the name in it; OSError if it cannot put an object on condition that the name is free."""
    if scheme_of(str(path)) == "hf":
        raise OSError(errno.EROFS, "hf:// is for inputs; choose a folder, s3:// or gs://", str(path))
    return store_of(path)


def _bytes_of(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    memory = io.BytesIO()
    content(memory)
    return memory.getvalue()


@contextlib.contextmanager
def _written(path: Path, content: Content) -> Iterator[Path]:
    """Write and flush a temporary file for the block, which may give it a name; else it is removed after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}{_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

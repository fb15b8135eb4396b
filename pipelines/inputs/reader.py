"""The bytes of one input, wherever it lies: a file, an object, a piece of a tar file, a row of a table.

A part of an archive is written in its uri after the `#`: `…/a.tar#offset=1536&size=20480` is read by range,
`…/a.parquet#row=17&column=image` out of its row group. The names of members play no part here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..decoding.image import MAX_PIXELS, decode_image
from ..errors import InputRejected
from ..storage.paths import is_home_there, is_remote, path_of, place, scheme_of, store_of, uri_of
from ..storage.store_errors import as_os_errors, store_code
from ..text import redacted
from .parquet import read_row

MAX_BYTES = 1 << 30
"""A photograph's file is far smaller; an embedded one has to fit a Parquet value of 2 GiB."""

_FINAL = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The upright pixels of an image file, H×W×3 uint8 RGB, as a run sees them (docs/inputs.md).

    `path` is a local file, a `file://` URI, or an object's address (`s3://`, `gs://`, `hf://`). Raises
    InputRejected, naming the path, for a file that cannot be used: missing, not an image, cut short, damaged,
    or larger than `max_pixels`; UsageError for an address of an unknown kind, both of
    `maskmill.pipelines.errors`; OSError where the storage fails, also where a whole folder is not there.
    """
    text = str(path)
    if scheme_of(text) in (None, "file"):
        text = os.path.abspath(os.path.expanduser(place(text)))  # noqa: PTH100, PTH111  (links stay)
    uri = uri_of(text)
    try:
        return decode_image(read_input(uri), max_pixels).pixels_HW3
    except InputRejected as error:
        raise InputRejected(error.stage, error.error_class, f"{redacted(text)}: {error.message}") from None


def read_input(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of an input.

    Raises InputRejected where the fault is the file's own: it is gone from a folder that is there, may not be
    read, is no ordinary file, is empty, or is over `max_bytes`. Raises OSError for everything else, a whole
    folder, bucket or archive that is gone included: that is a disk, a mount or a store, and worth another
    try.
    """
    place, part = uri, ""
    if scheme_of(uri):
        place, _, part = uri.partition("#")
    path = path_of(place)
    with as_os_errors():
        if part:
            data = _read_part(path, part, max_bytes)
        elif is_remote(path):
            data = _read_object(path, max_bytes)
        else:
            data = _read_file(path, max_bytes)
    if not data:
        raise InputRejected("read", "EmptyFile", "the file has no bytes")
    return data


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputRejected("read", "Unreadable", "not an ordinary file")
        _hold(status.st_size, max_bytes)
        return path.read_bytes()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise
        raise InputRejected("read", "Missing", "there is no such file any more") from None
    except OSError as error:
        if error.errno not in _FINAL:
            raise
        raise InputRejected("read", "Unreadable", error.strerror or type(error).__name__) from None


def _read_object(path: Path, max_bytes: int) -> bytes:
    """An object: in one request, since each costs as long as a photograph takes to be decoded."""
    store, name = store_of(path)
    try:
        data = bytes(store.cat_file(name, start=0, end=max_bytes + 1))
    except Exception as error:  # each library has its own
        code = store_code(error)
        if code in ("InvalidRange", "416"):  # what an empty object says of any range
            return b""
        gone = isinstance(error, FileNotFoundError) or code == "404"
        if not gone or code == "NoSuchBucket" or (code != "NoSuchKey" and not is_home_there(path)):
            raise
        raise InputRejected("read", "Missing", "there is no such object any more") from None
    _hold(len(data), max_bytes)
    return data


def _read_part(path: Path, part: str, max_bytes: int) -> bytes:
    fields = {name: values[0] for name, values in parse_qs(part, keep_blank_values=True).items()}
    try:
        if "row" in fields:
            row, column = int(fields["row"]), fields["column"]
        else:
            offset, size = int(fields["offset"]), int(fields["size"])
    except (KeyError, ValueError):
        raise InputRejected("read", "Unreadable", f"#{part} names no part of an archive") from None
    if "row" in fields:
        try:
            data = read_row(path, row, column)
        except pa.ArrowException as error:
            raise OSError(errno.EIO, str(error), str(path)) from None
        _hold(len(data), max_bytes)
        return data
    _hold(size, max_bytes)
    data = _read_range(path, offset, size)
    if len(data) != size:
        raise InputRejected("read", "Missing", "the archive is shorter than when the run was planned")
    return data


def _read_range(path: Path, offset: int, size: int) -> bytes:
    if size == 0:
        return b""
    if is_remote(path):
        store, name = store_of(path)
        return bytes(store.cat_file(name, start=offset, end=offset + size))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def _hold(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InputRejected("read", "TooLarge", f"at least {size} bytes, over the limit of {max_bytes}")

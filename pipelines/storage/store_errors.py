"""Errors of the stores' libraries, turned into OSErrors.

Each store's library has errors of its own. `as_os_errors` turns them into OSErrors, which the other modules
take for storage that failed, and removes whatever would let a reader of the log into the store.
"""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator

from ..text import redacted

_LIBRARIES = {
    "aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "httpcore", "httpcore2", "httpx",
    "httpx2", "huggingface_hub", "requests", "s3fs", "urllib3",
}  # fmt: skip
_PLAIN = (OSError, ValueError, RuntimeError)


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Raise what a store's library raises in the block as an OSError of one line, without credentials; a
    PermissionError where the store knows its caller and refuses.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not is_stores(error):
            raise
        number = errno.EACCES if _is_refusal(error) else errno.EIO
        raise OSError(number, " ".join(redacted(f"{type(error).__name__}: {error}").split())) from None


def is_stores(error: BaseException) -> bool:
    """Whether a store's library raised this error, be it of a kind of its own or a plain one of Python's.

    gcsfs reports 403 by an OSError without a number, as pyarrow reports damage, and 400 by a ValueError. The
    traceback tells them apart; pyarrow keeps it when it reads through a store's file.
    """
    if _is_from_library(error):
        return True
    if not isinstance(error, _PLAIN) or getattr(error, "errno", None) is not None:
        return False
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.partition(".")[0] in _LIBRARIES for module in modules)


def _is_refusal(error: BaseException) -> bool:
    plain = isinstance(error, OSError) and str(error).startswith("Forbidden: ")  # gcsfs, of 403
    return plain or isinstance(error, PermissionError) or store_code(error) in ("401", "403")


def store_code(error: BaseException) -> str:
    """The store's own code for an error, such as `NoSuchBucket` or `404`; "" if it has none.

    s3fs makes a plain OSError of botocore's and keeps that as its cause; gcsfs and the Hub raise their own.
    """
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    answer = getattr(getattr(error, "response", None), "status_code", "")
    # not OpenCV's codes, nor those of whoever else numbers errors
    return str((_is_from_library(error) and getattr(error, "code", None)) or answer)


def _is_from_library(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in type(error).__mro__)

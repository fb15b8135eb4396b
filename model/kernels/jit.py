"""Loops that are compiled when they are first called."""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
from collections.abc import Callable
from multiprocessing import parent_process
from typing import Any, cast

import numba
from numba.core.caching import FunctionCache, NullCache

log = logging.getLogger(__name__)

REORDERED = {"contract", "reassoc", "nsz", "arcp"}
"""What floating-point sums must allow so that their loops are vectorised; infinities and NaN stay."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where there is a place for it.

    Numba keeps it in `NUMBA_CACHE_DIR`, beside the function's file or in the user's cache folder. Dividing by
    zero gives infinity or NaN: a check before each division would keep loops from being vectorised.
    """
    return _compiled(function, False)


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for loops whose sums may be added up in any order."""
    return _compiled(function, REORDERED)


def _compiled(function: Callable[..., Any], fastmath: bool | set[str]) -> Callable[..., Any]:
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    try:
        # As `cache=True` does with numba's own.
        dispatcher._cache = _DiskCache(function)  # type: ignore[no-untyped-call]
    except RuntimeError:  # no folder can be written
        dispatcher._cache = _NoCache()
    return cast("Callable[..., Any]", dispatcher)


class _DiskCache(FunctionCache):
    """Numba's, for which a disk that fails, and a file that was cut off, cost a compilation and no more."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """None where there is none, or none that can be read."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except (OSError, EOFError, pickle.UnpicklingError):
            with contextlib.suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]  # else nothing is ever kept there again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if that is possible."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except OSError:
            _say_that_nothing_is_kept()


class _NoCache(NullCache):
    def save_overload(self, sig: Any, cres: Any) -> None:  # noqa: ARG002
        """Keep nothing."""
        _say_that_nothing_is_kept()


@functools.cache
def _say_that_nothing_is_kept() -> None:
    if parent_process() is not None:
        return  # which would say it once more for each process of a pool
    log.warning(
        "compiled loops cannot be cached, so each run compiles them again, which takes seconds; "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    )

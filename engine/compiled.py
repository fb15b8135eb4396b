"""Loops that are compiled when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where there is a place for it.

    Numba keeps it beside the function's file or in the user's cache folder.
    """
    try:
        return cast("Callable[..., Any]", numba.njit(function, nogil=True, cache=True))
    except RuntimeError:  # there is no such place
        return cast("Callable[..., Any]", numba.njit(function, nogil=True))

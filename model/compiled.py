"""Loops that are compiled when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba

REORDERED = {"contract", "reassoc", "nsz", "arcp"}
"""What floating-point sums must allow so that their loops are vectorised; infinities and NaN stay."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where there is a place for it.

    Numba keeps it beside the function's file or in the user's cache folder.
    """
    return _compiled(function, False)


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for loops whose sums may be added up in any order."""
    return _compiled(function, REORDERED)


def _compiled(function: Callable[..., Any], fastmath: bool | set[str]) -> Callable[..., Any]:
    try:
        done = numba.njit(function, nogil=True, fastmath=fastmath, cache=True)
    except RuntimeError:  # there is no such place
        done = numba.njit(function, nogil=True, fastmath=fastmath)
    return cast("Callable[..., Any]", done)

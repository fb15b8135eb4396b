"""Loops that are compiled when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numba

REORDERED = {"contract", "reassoc", "nsz", "arcp"}
"""What floating-point sums must allow so that their loops are vectorised; infinities and NaN stay."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the interpreter lock, and keep the result on disk where there is a place for it.

    Numba keeps it beside the function's file or in the user's cache folder. Dividing by zero gives infinity
    or NaN: a check before each division would keep loops from being vectorised.
    """
    return _compiled(function, False)


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for loops whose sums may be added up in any order."""
    return _compiled(function, REORDERED)


def _compiled(function: Callable[..., Any], fastmath: bool | set[str]) -> Callable[..., Any]:
    compile_ = partial(numba.njit, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        return cast("Callable[..., Any]", compile_(function, cache=True))
    except RuntimeError:  # there is no such place
        return cast("Callable[..., Any]", compile_(function))

"""How to install what an optional part of maskmill needs, however maskmill itself was installed."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires

_OF_EXTRA = re.compile(r"""^(?P<requirement>.+?)\s*;\s*extra\s*==\s*['"](?P<extra>[\w-]+)['"]$""")


def pip_install(extra: str) -> str:
    """The command that installs the packages of an extra in pyproject.toml.

    It names the packages, not `maskmill[extra]`: that would need the checkout or the address that maskmill
    was installed from, which an installed maskmill does not know.
    """
    try:
        found = map(_OF_EXTRA.match, requires("maskmill") or ())
    except PackageNotFoundError:  # a checkout that is on the path and not installed
        return f"pip install '.[{extra}]' in a checkout of maskmill"
    names = [match["requirement"].replace(" ", "") for match in found if match and match["extra"] == extra]
    return shlex.join(["pip", "install", *names])

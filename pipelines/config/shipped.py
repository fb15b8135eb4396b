"""The configurations that come with the package, found by name, and by the command that they are for."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from ..errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "configs"


@cache
def shipped_for(command: str) -> tuple[str, ...]:
    """The names of the shipped configurations that fit `maskmill COMMAND`, in order.

    Each file opens with the command that uses it, `# maskmill COMMAND … --config NAME`. That line is read and
    no YAML, since the help of every command asks.
    """

    def is_for_it(path: Path) -> bool:
        opening = path.read_text(encoding="utf-8").partition("\n#\n")[0]
        return re.search(rf"maskmill {command} .*--config {path.stem}\b", opening) is not None

    return tuple(path.stem for path in sorted(SHIPPED.glob("*.yaml")) if is_for_it(path))


def find_config(name_or_path: str | Path) -> Path:
    """The file meant: a path as it stands, else the shipped configuration of that name."""
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111  (pathlib raises for an unknown user)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}
    if len(path.parts) == 1 and path.name.removesuffix(".yaml") in shipped:
        return shipped[path.name.removesuffix(".yaml")]
    raise ConfigError(
        f"--config {name_or_path}: expected a YAML file, or a shipped configuration: {', '.join(shipped)}"
    )

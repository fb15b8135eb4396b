"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..storage.paths import place

if TYPE_CHECKING:
    from ..writing.open import Mode

Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="A YAML file, or a shipped configuration's name."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value: a.b=value. Repeatable."),
]
CorpusArgument = Annotated[Path, typer.Argument(metavar="CORPUS", help="The corpus's folder.", parser=place)]


def mode_of(overwrite: bool, extend: bool) -> Mode:
    """What to do with a corpus that is there already."""
    if overwrite and extend:
        raise UsageError("expected --overwrite or --extend, not both")
    return "overwrite" if overwrite else "extend" if extend else "resume"

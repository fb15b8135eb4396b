"""`maskmill export` and `maskmill import`, as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import UsageError
from pipelines.places import place


def import_corpus(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT…", help="SA-1B's folders, or its tar files (a glob will do)."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="CORPUS", help="The corpus's folder.", parser=place)
    ] = None,
    embed: Annotated[
        bool, typer.Option(help="Keep the JPEG files in the corpus; else they are needed where they are.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the corpus and start anew.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add inputs that the corpus does not have.")
    ] = False,
) -> None:
    """Make a corpus of SA-1B's files, or go on where the last import stopped; ids and values stay."""
    if out is None:
        raise UsageError("expected --out CORPUS, the folder to write")
    if overwrite and extend:
        raise UsageError("expected --overwrite or --extend, not both")
    from pipelines.sa1b_import import import_sa1b

    mode = "overwrite" if overwrite else "extend" if extend else "resume"
    import_sa1b(inputs, out, embed=embed, mode=mode)


def export_corpus() -> None:
    """Write a corpus in another format."""

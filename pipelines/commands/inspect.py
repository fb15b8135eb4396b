"""Looking at a corpus: `report`, `gallery`, `view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..storage.paths import place
from .options import CorpusArgument


def report(
    corpus: CorpusArgument,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PAGE", help="A page with pictures, .html; default: tables here.", parser=place),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="Another corpus, or a COCO .json, to compare with.", parser=place),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON in place of the tables.")] = False,
    concavity: Annotated[bool, typer.Option(help="Measure convex hulls too, mask by mask.")] = True,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes; default: one for each core.")
    ] = None,
) -> None:
    """Statistics of a corpus: counts, what the masks are like, refusals by class."""
    from . import looking

    looking.report(corpus, out, against, as_json, concavity, workers)


def gallery(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(metavar="PAGE", help="The page to write, .html.", parser=place)],
    photographs: Annotated[int, typer.Option(metavar="N", min=1, help="The first so many are shown.")] = 2000,
) -> None:
    """Write a page that shows the masks over their photographs."""
    from . import looking

    looking.gallery(corpus, out, photographs)


def view(
    corpus: CorpusArgument,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Of loopback; 0: any that is free.")
    ] = 0,
) -> None:
    """Serve that page over the whole corpus, on this machine only, until Ctrl-C."""
    from . import looking

    looking.view(corpus, port)

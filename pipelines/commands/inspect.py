"""Looking at a corpus: `rejects`, `report`, `gallery`, `view`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import UsageError
from ..storage.paths import check_page, place
from ..text import redacted, visible
from .options import AsJson, CorpusArgument, Moved, Quiet, moved_places
from .terminal import bar, say

if TYPE_CHECKING:
    from ..report.statistics import Statistics


def rejects(
    corpus: CorpusArgument,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="CLASS", help="List only images rejected with this error class. Repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the rejected images: error class, key and what was wrong with each."""
    from ..corpus.reader import Corpus
    from ..corpus.rejects import rejected_json, rejected_lines

    write = rejected_json if as_json else rejected_lines
    write(Corpus(corpus), class_ or (), sys.stdout)


def report(
    corpus: CorpusArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PAGE",
            help="Write an HTML page with figures; default: print tables.",
            parser=place,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="Compare with another corpus or a COCO .json.", parser=place),
    ] = None,
    as_json: AsJson = False,
    concavity: Annotated[bool, typer.Option(help="Measure the concavity of every mask, too.")] = True,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes to use; default: one per core.")
    ] = None,
) -> None:
    """Report statistics of a corpus: counts, distributions over the masks, rejected images by class."""
    from ..report.figures import check_can_draw
    from ..report.page import write_report
    from ..report.statistics import corpus_statistics
    from ..report.tables import corpus_tables

    if out is not None:
        check_page(out, corpus)
        check_can_draw()
    if against is not None and out is None and not as_json:
        raise UsageError("--against needs --out PAGE or --json")
    needs_masks = concavity and (as_json or out is not None)
    found = corpus_statistics(corpus, needs_masks, workers)
    other = None
    if against is not None:
        other = _other(against, needs_masks, workers)
        if other.name == found.name:
            found.name, other.name = str(corpus), str(against)
    if out is not None:
        write_report(out, found, other)
        print(f"{out}: written", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        compared = {} if other is None else {"against": other.as_json()}
        print(json.dumps(found.as_json() | compared))
    elif out is None:
        console = Console(markup=False)
        for table in corpus_tables(found):
            console.print(table)


def gallery(
    corpus: CorpusArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PAGE", help="The HTML page to write.", parser=place)
    ],
    photographs: Annotated[int, typer.Option(metavar="N", min=1, help="Show the first N images.")] = 2000,
    moved: Moved = None,
    quiet: Quiet = False,
) -> None:
    """Write a page that shows the masks over their images."""
    from ..gallery.page import write_gallery

    notes: list[str] = []
    with bar("images", quiet) as show:
        write_gallery(corpus, out, photographs, show, moved=moved_places(moved), note=notes.append)
    say(f"{out}: written", quiet)
    for line in notes:
        typer.echo(visible(line), err=True)


def view(
    corpus: CorpusArgument,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 0,
    moved: Moved = None,
) -> None:
    """Serve a page that shows the masks of the whole corpus, on this machine only, until Ctrl-C."""
    from ..gallery.server import GalleryServer

    with GalleryServer(corpus, port, moved_places(moved)) as server:
        print(f"{server.address}\nPress Ctrl-C to stop.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", flush=True)


def _other(against: Path, concavity: bool, workers: int | None) -> Statistics:
    from ..report.coco_statistics import coco_statistics
    from ..report.statistics import corpus_statistics

    if against.suffix == ".json":
        return coco_statistics(against, concavity)
    if not against.is_dir():
        raise UsageError(f"--against {redacted(str(against))}: expected a corpus, or a COCO file (.json)")
    return corpus_statistics(against, concavity, workers)

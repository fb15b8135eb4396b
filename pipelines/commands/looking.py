"""The commands of whoever looks at a corpus: gallery, view and report, once they have been typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ..errors import UsageError
from ..storage.paths import check_page, redacted

if TYPE_CHECKING:
    from ..report.statistics import Statistics


def gallery(corpus: Path, out: Path, photographs: int) -> None:
    """Write the page and say so."""
    from ..gallery.page import write_gallery

    columns = (BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        write_gallery(
            corpus, out, photographs, lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(f"{out}: written")


def view(corpus: Path, port: int) -> None:
    """Serve the page until Ctrl-C or SIGTERM, which is how this command ends and no failure."""
    from ..gallery.server import GalleryServer

    with GalleryServer(corpus, port) as server:
        print(f"{server.address}\nCtrl-C ends it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", flush=True)


def report(
    corpus: Path, out: Path | None, against: Path | None, as_json: bool, concavity: bool, workers: int | None
) -> None:
    """Print the statistics of a corpus as tables or as JSON, or write them as a page."""
    from ..report.page import check_can_draw, write_report
    from ..report.statistics import corpus_statistics
    from ..writing.progress import corpus_tables

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


def _other(against: Path, concavity: bool, workers: int | None) -> Statistics:
    from ..report.coco_statistics import coco_statistics
    from ..report.statistics import corpus_statistics

    if against.suffix == ".json":
        return coco_statistics(against, concavity)
    if not against.is_dir():
        raise UsageError(f"--against {redacted(str(against))}: expected a corpus, or a COCO file (.json)")
    return corpus_statistics(against, concavity, workers)

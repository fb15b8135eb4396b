"""`maskmill export` and `maskmill import`, as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import UsageError
from ..storage.paths import place
from ..text import counted, visible
from .options import (
    CorpusArgument,
    CorpusOut,
    Extend,
    Moved,
    Overwrite,
    Quiet,
    Verbose,
    mode_of,
    moved_places,
)
from .terminal import say

if TYPE_CHECKING:
    from ..exchange.export import Format


def import_corpus(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT…", help="Folders, tar files or globs of SA-1B."),
    ],
    out: CorpusOut = None,
    embed: Annotated[
        bool,
        typer.Option(help="Copy the JPEG files into the corpus; otherwise they must stay where they are."),
    ] = True,
    overwrite: Overwrite = False,
    extend: Extend = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a corpus from SA-1B's files, keeping ids and values, or continue where the last import stopped."""
    if out is None:
        raise UsageError("expected --out CORPUS, the folder to write")
    mode = mode_of(overwrite, extend)
    from ..exchange.sa1b_import import import_sa1b
    from ..writing.progress import Display

    display = Display(quiet, verbose)
    import_sa1b(inputs, out, embed=embed, mode=mode, go_on=context.obj, display=display)


def export_corpus(
    corpus: CorpusArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The folder to write into.", parser=place),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="sa1b|coco",
            help="Write SA-1B's tar files or a COCO JSON.",
            autocompletion=lambda: ["sa1b", "coco"],
        ),
    ] = None,
    images_per_tar: Annotated[
        int, typer.Option(metavar="N", min=1, help="SA-1B: images in each tar file.")
    ] = 1000,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="COCO: write polygons instead of run-length codes.")
    ] = False,
    min_area: Annotated[int, typer.Option(metavar="PIXELS", min=0, help="Leave out smaller masks.")] = 0,
    predicted_iou: Annotated[
        float | None,
        typer.Option(
            metavar="IOU", min=0, max=1, help="Export only masks whose predicted IoU is above this."
        ),
    ] = None,
    stability_score: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE", min=0, max=1, help="Export only masks whose stability score is at least this."
        ),
    ] = None,
    mask_nms: Annotated[
        float | None,
        typer.Option(
            metavar="IOU", min=0, max=1, help="Of two masks whose IoU is above this, export the better one."
        ),
    ] = None,
    non_overlapping: Annotated[
        str | None,
        typer.Option(
            metavar="area|predicted_iou",
            help="Add label maps (PNG) that show the smaller or the better mask where two overlap.",
        ),
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Export what an unfinished corpus has so far.")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="SA-1B: leave out images whose files are gone or changed.")
    ] = False,
    moved: Moved = None,
    quiet: Quiet = False,
) -> None:
    """Write a corpus in the form of SA-1B or COCO, or continue where the last export stopped."""
    if out is None:
        raise UsageError("expected --out DIR, the folder to write into")
    if format_ not in ("sa1b", "coco"):
        raise UsageError(f"--format: expected sa1b or coco, got {format_ or 'nothing'}")
    if polygons and format_ != "coco":
        raise UsageError("--polygons: SA-1B's files have run-length codes; expected --format coco")
    for name, given in (("--skip-missing", skip_missing), ("--moved", moved)):
        if given and format_ != "sa1b":
            raise UsageError(f"{name}: COCO's JSON needs no image files; expected --format sa1b")
    from ..corpus.masks import PRIORITIES
    from ..corpus.views import View
    from ..exchange.export import Options, export
    from ..writing.progress import Display

    if non_overlapping is not None and non_overlapping not in PRIORITIES:
        raise UsageError(f"--non-overlapping: expected {' or '.join(PRIORITIES)}, got {non_overlapping}")
    view = View(min_area, predicted_iou, stability_score, mask_nms)
    options = Options(cast("Format", format_), images_per_tar, polygons, view, non_overlapping)

    def note(line: str) -> None:
        typer.echo(visible(line), err=True)

    done = export(
        corpus,
        out,
        options,
        unfinished=unfinished,
        skip_missing=skip_missing,
        moved=moved_places(moved),
        note=note,
        display=Display(quiet),
    )
    if not done.parts:
        say(f"{out}: complete, nothing to do", quiet)
        return
    say(
        f"{out}: written, {counted(done.images, 'image')}, {counted(done.masks, 'mask')}, "
        f"{done.left_out} left out, {done.rejected} rejected",
        quiet,
    )

"""Making a corpus, holding it to what it says, and how far it is: `generate`, `verify`, `status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError, VerificationFailed
from ..text import counted, visible
from .options import (
    AsJson,
    Checkpoint,
    Config,
    CorpusArgument,
    CorpusOut,
    Device,
    Extend,
    Model,
    Overwrite,
    PointsPerSide,
    PredIouThresh,
    Quiet,
    Set,
    StabilityScoreThresh,
    generator_settings,
    mode_of,
    model_settings,
)
from .terminal import bar, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..config.run import RunConfig


def generate(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT…", help="Folders, globs, file lists (.txt), image, tar or Parquet."),
    ] = None,
    out: CorpusOut = None,
    config: Config = None,
    set_: Set = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    device: Device = None,
    points_per_side: PointsPerSide = None,
    pred_iou_thresh: PredIouThresh = None,
    stability_score_thresh: StabilityScoreThresh = None,
    workers: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Workers",
            metavar="N|MIN:MAX",
            help="Worker processes; 0: this process, without Ray. Begin when MIN are ready.",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Workers", metavar="F", help="GPUs of a worker: 0, a share of one, or some."
        ),
    ] = None,
    cpus_per_worker: Annotated[
        str | None,
        typer.Option(rich_help_panel="Workers", metavar="N", help="CPUs, and threads, of a worker."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Workers",
            metavar="ADDRESS",
            help="A running Ray cluster (or auto), not one of our own.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    extend: Extend = False,
    retry_rejects: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Run the images again that were refused as this. Repeatable."),
    ] = None,
    log_json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Add a line of JSON for each event; - is standard output."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print what would run, as YAML.")
    ] = False,
) -> None:
    """Make a corpus of masks from photographs, or go on where the last run stopped."""
    from ..config.run import load_config

    overrides = [
        *(set_ or ()),
        *model_settings(model, checkpoint, device),
        *generator_settings(points_per_side, pred_iou_thresh, stability_score_thresh),
        *([] if workers is None else _workers(workers)),
        *([] if gpus_per_worker is None else [f"cluster.gpus_per_worker={gpus_per_worker}"]),
        *([] if cpus_per_worker is None else [f"threads_per_worker={cpus_per_worker}"]),
    ]
    settings = load_config(config, overrides)
    if print_config:
        typer.echo(_printed(settings), nl=False)
        return
    if not inputs:
        from ..inputs.listing import EXPECTED

        raise UsageError(f"expected at least one INPUT: {EXPECTED}")
    if out is None:
        raise UsageError("expected --out CORPUS, the folder to write")
    if ray is not None and settings.workers == 0:
        raise UsageError("expected --ray or --workers 0 (no Ray), not both")
    mode, retry = mode_of(overwrite, extend), retry_rejects or ()
    if retry and overwrite:
        raise UsageError("expected --overwrite or --retry-rejects, not both")
    from ..generation.event_log import opened
    from ..generation.generate import generate as run

    cleared = context.obj.without_overwrite
    with opened(log_json) as events:
        run(inputs, out, settings, mode=mode, ray=ray, retry=retry, cleared=cleared, events=events)


def verify(
    corpus: CorpusArgument,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Shards checked at a time; default: all cores.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Recompute everything a corpus says; exit code 3 and a list where anything is off."""
    from ..verification.corpus import verify as check

    with bar("shards", quiet) as show:
        report = check(corpus, workers, show)
    for problem in report.problems:
        typer.echo(visible(problem))
    if report.problems:
        raise VerificationFailed(f"{corpus}: {counted(len(report.problems), 'problem')} found")
    say(f"{corpus}: verified, {_counts(report.counts)}", quiet)


def status(
    corpus: CorpusArgument,
    as_json: AsJson = False,
) -> None:
    """How far a run is: shards, rate, time left, refusals; read from the corpus alone, at any time."""
    from ..generation.status import status_of

    found = status_of(corpus)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
        return
    from rich.console import Console

    from ..generation.status import status_table

    Console(markup=False, soft_wrap=True).print(status_table(found))


def _counts(counts: Mapping[str, int]) -> str:
    """`8 images (7 ok, 1 empty, 0 rejected), 195 masks, 2 shards, 6 files`."""
    statuses = ", ".join(f"{counts[name]} {name}" for name in ("ok", "empty", "rejected"))
    rest = (counted(counts[f"{noun}s"], noun) for noun in ("mask", "shard", "file"))
    return f"{counted(counts['images'], 'image')} ({statuses}), {', '.join(rest)}"


def _printed(settings: RunConfig) -> str:
    """What would run, as YAML; thresholds that are the model's are said to be."""
    from ...model.checkpoints.errors import CheckpointError
    from ...model.config import THRESHOLDS
    from ..config.loading import to_yaml
    from ..workers.loading import with_thresholds

    model, generator = settings.model, settings.generator
    said = f"recommended for {model.name}"
    try:
        settings = with_thresholds(settings)
    except CheckpointError:
        said += ", whose weights are not here"
        settings = settings.with_thresholds(THRESHOLDS[model.name])
    names = ("pred_iou_thresh", "stability_score_thresh")
    return to_yaml(
        settings, {f"generator.{name}": said for name in names if getattr(generator, name) is None}
    )


def _workers(text: str) -> list[str]:
    """`N` or `MIN:MAX` as values of the configuration."""
    if text.isdecimal():
        return [f"workers={text}"]
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise UsageError(f"--workers: expected N, or MIN:MAX with 1 ≤ MIN ≤ MAX, got {text}")
    return [f"cluster.min_workers={least}", f"workers={most}"]

"""Making a corpus, resuming it, verifying it, and showing its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    CpusPerWorker,
    Device,
    Extend,
    GpusPerWorker,
    LogJson,
    Model,
    Moved,
    Overwrite,
    PointsPerSide,
    PredIouThresh,
    Quiet,
    RayAddress,
    RetryRejects,
    Set,
    StabilityScoreThresh,
    Verbose,
    Workers,
    generator_settings,
    mode_of,
    model_settings,
    moved_places,
)
from .terminal import bar, say

if TYPE_CHECKING:
    from ..config.run import RunConfig


def generate(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT…", help="Folders, globs, file lists (.txt), image, tar or Parquet files."
        ),
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
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    ray: RayAddress = None,
    overwrite: Overwrite = False,
    extend: Extend = False,
    retry_rejects: RetryRejects = None,
    log_json: LogJson = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole configuration as YAML and exit.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a corpus of masks from images, or continue where the last run stopped."""
    from ..config.run import load_config

    overrides = [
        *(set_ or ()),
        *model_settings(model, checkpoint, device),
        *generator_settings(points_per_side, pred_iou_thresh, stability_score_thresh),
        *_placement(workers, gpus_per_worker, cpus_per_worker),
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
    context.obj.offer_resume(out, _resume_options(ray, log_json, retry, quiet, verbose))
    from ..generation.event_log import opened
    from ..generation.generate import Call
    from ..generation.generate import generate as run
    from ..writing.progress import Display

    with opened(log_json) as events:
        call = Call(ray, retry, context.obj, events, Display(quiet, verbose))
        run(inputs, out, settings, call, mode=mode)


def resume(
    context: typer.Context,
    corpus: CorpusArgument,
    set_: Set = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    ray: RayAddress = None,
    retry_rejects: RetryRejects = None,
    moved: Moved = None,
    log_json: LogJson = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Continue a corpus where its last run stopped, with the inputs and options that it recorded."""
    changes = [*(set_ or ()), *_placement(workers, gpus_per_worker, cpus_per_worker)]
    from ..generation.event_log import opened
    from ..generation.generate import Call
    from ..generation.generate import resume as run
    from ..writing.progress import Display

    with opened(log_json) as events:
        call = Call(ray, retry_rejects or (), context.obj, events, Display(quiet, verbose))
        run(corpus, changes, call, moved=moved_places(moved))


def verify(
    corpus: CorpusArgument,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Shards to check at a time; default: one per core.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Recompute everything that a corpus states; list all problems, and exit with code 3 if there are any."""
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
    """Show a run's progress from the corpus alone, at any time: shards, rate, time left, rejected images."""
    from ..generation.status import status_of

    found = status_of(corpus)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
        return
    from rich.console import Console

    from ..generation.status import status_table

    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(status_table(found))
    if found.resume is not None:
        console.print(f"go on with: {visible(found.resume)}")


def _counts(counts: Mapping[str, int]) -> str:
    """`8 images (7 ok, 1 empty, 0 rejected), 195 masks, 2 shards, 6 files`."""
    statuses = ", ".join(f"{counts[name]} {name}" for name in ("ok", "empty", "rejected"))
    rest = (counted(counts[f"{noun}s"], noun) for noun in ("mask", "shard", "file"))
    return f"{counted(counts['images'], 'image')} ({statuses}), {', '.join(rest)}"


def _printed(settings: RunConfig) -> str:
    """The configuration as YAML, with a note at each threshold that comes from the model."""
    from ...model.checkpoints.errors import CheckpointError
    from ...model.config import THRESHOLDS
    from ..config.loading import to_yaml
    from ..config.run import AUTO
    from ..workers.loading import with_thresholds

    model, generator = settings.model, settings.generator
    said = f"recommended for {model.name}"
    try:
        settings = with_thresholds(settings)
    except CheckpointError:
        said += ", whose weights are not here"
        settings = settings.with_thresholds(THRESHOLDS[model.name])
    names = ("pred_iou_thresh", "stability_score_thresh")
    notes = {f"generator.{name}": said for name in names if getattr(generator, name) is None}
    if settings.shard_size == AUTO:
        notes["shard_size"] = "decided when the corpus is planned, from the numbers of images and workers"
    return to_yaml(settings, notes)


def _resume_options(
    ray: str | None, log_json: str | None, retry: Sequence[str], quiet: bool, verbose: bool
) -> list[str]:
    """Those of `generate` that `resume` takes too and a corpus does not remember, as they are typed."""
    given = [("--ray", ray), ("--log-json", log_json), *(("--retry-rejects", name) for name in retry)]
    flags = [name for name, is_given in (("--quiet", quiet), ("--verbose", verbose)) if is_given]
    return [*(word for name, value in given if value is not None for word in (name, value)), *flags]


def _placement(workers: str | None, gpus: str | None, cpus: str | None) -> list[str]:
    """The options that say how many workers there are, and how large, as values of the configuration."""
    overrides = [] if workers is None else _workers(workers)
    overrides += [] if gpus is None else [f"cluster.gpus_per_worker={gpus}"]
    overrides += [] if cpus is None else [f"threads_per_worker={cpus}"]
    return overrides


def _workers(text: str) -> list[str]:
    """`N` or `MIN:MAX` as values of the configuration."""
    if text.isdecimal():
        return [f"workers={text}"]
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise UsageError(f"--workers: expected N, or MIN:MAX with 1 ≤ MIN ≤ MAX, got {text}")
    return [f"cluster.min_workers={least}", f"workers={most}"]

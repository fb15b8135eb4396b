"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.shipped import shipped_for
from ..errors import UsageError
from ..storage.paths import place, scheme_of
from ..text import redacted

if TYPE_CHECKING:
    from ..writing.open import Mode

MODEL, WORKERS = "Model and masks", "Workers"
"""Headings of options in a command's help."""


def config_for(command: str) -> Any:
    """The `--config` of a command, with the names of the shipped configurations that fit it."""
    names = shipped_for(command)
    return typer.Option(
        "--config",
        metavar="FILE",
        help=f"A YAML file, or a shipped configuration: {', '.join(names)}.",
        autocompletion=lambda: list(names),
    )


Config = Annotated[str | None, config_for("generate")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one configuration value, as a.b=value. Repeatable."),
]
Moved = Annotated[
    list[str] | None,
    typer.Option("--moved", metavar="OLD=NEW", help="Look for images recorded under OLD at NEW. Repeatable."),
]
CorpusArgument = Annotated[Path, typer.Argument(metavar="CORPUS", help="The corpus's folder.", parser=place)]
CorpusOut = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="CORPUS", help="The corpus's folder.", parser=place)
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        rich_help_panel=MODEL,
        metavar="NAME",
        help="nano, vit_t, vit_b, vit_l, vit_h, or a name that `models` lists.",
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        rich_help_panel=MODEL,
        metavar="FILE",
        help="File of weights; default: the bundled or downloaded ones.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", rich_help_panel=MODEL, metavar="auto|cpu|cuda", help="Where the network runs."),
]
PointsPerSide = Annotated[
    int | None,
    typer.Option(
        "--points-per-side",
        rich_help_panel=MODEL,
        metavar="N",
        help="Points along each side of the point grid.",
    ),
]
PredIouThresh = Annotated[
    float | None,
    typer.Option(
        "--pred-iou-thresh",
        rich_help_panel=MODEL,
        metavar="IOU",
        help="Keep masks whose predicted IoU is above this.",
    ),
]
StabilityScoreThresh = Annotated[
    float | None,
    typer.Option(
        "--stability-score-thresh",
        rich_help_panel=MODEL,
        metavar="SCORE",
        help="Keep masks whose stability score is at least this.",
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|MIN:MAX",
        rich_help_panel=WORKERS,
        help="Number of workers (0: this process, without Ray); MIN:MAX starts when MIN are ready.",
    ),
]
GpusPerWorker = Annotated[
    str | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="F",
        rich_help_panel=WORKERS,
        help="GPUs per worker: 0, a fraction of one, or a whole number.",
    ),
]
CpusPerWorker = Annotated[
    str | None,
    typer.Option(
        "--cpus-per-worker", metavar="N", rich_help_panel=WORKERS, help="CPUs, and so threads, per worker."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        rich_help_panel=WORKERS,
        help="Address of a running Ray cluster (or auto) to use instead of starting one.",
    ),
]
RetryRejects = Annotated[
    list[str] | None,
    typer.Option(
        "--retry-rejects",
        metavar="CLASS",
        help="Re-run images rejected with this error class. Repeatable.",
    ),
]
LogJson = Annotated[
    str | None,
    typer.Option(
        "--log-json", metavar="FILE", help="Append a line of JSON for each event; - is standard output."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Add counts of candidate and dropped masks to the summary.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the corpus and start over.")]
Extend = Annotated[bool, typer.Option("--extend", help="Add inputs that the corpus does not have yet.")]


def moved_places(typed: Sequence[str] | None) -> dict[str, str]:
    """OLD and NEW of each `--moved`.

    Where there is more than one `=`, the first counts that has a place behind it which is no relative path.
    """
    places: dict[str, str] = {}
    for text in typed or ():
        splits = [at for at, letter in enumerate(text) if letter == "=" and 0 < at < len(text) - 1]
        if not splits:
            raise UsageError(f"--moved: expected OLD=NEW, got {redacted(text)}")
        at = next((at for at in splits if _is_absolute(text[at + 1 :])), splits[0])
        old, new = text[:at], text[at + 1 :]
        if places.setdefault(old, new) != new:
            raise UsageError(f"--moved: {redacted(old)} is given two new places")
    return places


def _is_absolute(text: str) -> bool:
    return text.startswith(("/", "~")) or scheme_of(text) is not None


def mode_of(overwrite: bool, extend: bool) -> Mode:
    """What to do with a corpus that is there already."""
    if overwrite and extend:
        raise UsageError("expected --overwrite or --extend, not both")
    return "overwrite" if overwrite else "extend" if extend else "resume"


def overrides_of(**options: str | float | None) -> list[str]:
    """Options as values of the configuration, as `--set` takes them; those that were not given are left out.

    A name has two underscores where the key has a dot: `generator__points_per_side`.
    """
    given = {name.replace("__", "."): value for name, value in options.items() if value is not None}
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def generator_settings(
    points_per_side: int | None, pred_iou_thresh: float | None, stability_score_thresh: float | None
) -> list[str]:
    """The generator's options as values of the configuration."""
    return overrides_of(
        generator__points_per_side=points_per_side,
        generator__pred_iou_thresh=pred_iou_thresh,
        generator__stability_score_thresh=stability_score_thresh,
    )


def model_settings(model: str | None, checkpoint: str | None, device: str | None) -> list[str]:
    """`--model`, `--checkpoint` and `--device` as values of the configuration.

    Raises UsageError for a model that is unknown, or is a public checkpoint that was not downloaded yet.
    """
    from ...model.checkpoints.zoo import CHECKPOINTS, cache_folder, cached, nearest
    from ...model.config import MODELS

    file = None
    if model in CHECKPOINTS:
        known = CHECKPOINTS[model]
        path = cache_folder() / known.file_name
        if checkpoint is None and not path.is_file():
            raise UsageError(
                f"--model {model}: its weights are not downloaded yet: maskmill models get {model}"
            )
        # Where it is the one that is taken anyway, its path is left open, since each machine has its own.
        file = None if path == cached(known.model) else str(path)
        model = known.model
    elif model is not None and model not in MODELS:
        raise UsageError(f"--model {model}: {nearest(model, [*MODELS, *CHECKPOINTS])}")
    return overrides_of(model__name=model, model__checkpoint=checkpoint or file, model__device=device)

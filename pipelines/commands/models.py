"""The network: `train`, `pretrain`, `evaluate`, `bench`, `models`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..storage.paths import place
from .options import Config, Set


def train(config: Config = None, set_: Set = None) -> None:
    """Train the model on labelled masks; goes on from the last checkpoint in the output folder."""
    from ..training.config import TrainConfig
    from ..training.train import train as run

    typer.echo(run(_schedule(TrainConfig, config, set_, "train_nano")))


def pretrain(config: Config = None, set_: Set = None) -> None:
    """Teach the encoder to fill in plain photographs, no masks needed; `train` starts from what it gives."""
    from ..training.pretrain import PretrainConfig
    from ..training.pretrain import pretrain as run

    typer.echo(run(_schedule(PretrainConfig, config, set_, "pretrain_nano")))


def _schedule(kind: Any, config: str | None, set_: list[str] | None, example: str) -> Any:
    from ..config.loading import load_settings

    if config is None:
        raise UsageError(f"expected --config FILE, for example --config {example}")
    settings = load_settings(kind, config, list(set_ or ()))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return settings


def evaluate(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Labelled images: tables, a COCO JSON, SA-1B, or a corpus.",
            parser=place,
        ),
    ] = None,
    photographs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Photographs of a COCO JSON; default: beside it.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Size of the network.")] = "nano",
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights to score.")] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Only the images that training sets aside.")
    ] = False,
    masks_per_image: Annotated[
        int, typer.Option(metavar="N", min=1, help="Masks an image that are asked for.")
    ] = 20,
    mask_prompts: Annotated[
        bool, typer.Option("--mask-prompts", help="Give further clicks with the last answer as a mask.")
    ] = False,
    config: Config = None,
    set_: Set = None,
    automatic: Annotated[
        bool, typer.Option(help="Score the masks of a grid too, by --config's thresholds (default: nano's).")
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CORPUS", help="No model: compare the corpus --data with this one.", parser=place
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw how far predicted IoU can be believed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON in place of the table.")] = False,
) -> None:
    """Score a model against labelled masks: clicks, a box, its predicted IoU, and its automatic masks."""
    if data is None:
        raise UsageError("expected --data FOLDER, the labelled images to score against")
    from ..evaluation import scoring

    if against is not None:
        _refuse_options_of_a_model(context)
        result, tables = scoring.score_corpora(data, against)
    else:
        what = scoring.Wanted(
            data, photographs, model, checkpoint, validation, masks_per_image, mask_prompts, automatic, plot
        )
        result, tables = scoring.score_model(what, config, list(set_ or ()))
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console

    for table in tables:
        Console(markup=False).print(table)


def _refuse_options_of_a_model(context: typer.Context) -> None:
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        is_typed = given is not None and given.name == "COMMANDLINE"
        if is_typed and option.name not in ("data", "against", "as_json"):
            raise UsageError(f"--against compares two corpora and runs no model: leave out {option.opts[0]}")


def bench(
    config: Config = None,
    set_: Set = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="What to time: as for generate. Default: one of scikit-image's."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Bring the photographs to this size first.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="released", help="Time the released generator beside ours.")
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of ours; the median counts.")] = 3,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads of both.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Noise in place of weights that are not at hand.")
    ] = False,
) -> None:
    """Time this machine, stage by stage: a table, and JSON on the last line."""
    if against not in (None, "released"):
        raise UsageError(f"--against: expected released, got {against}")
    from rich.console import Console

    from ..bench.bench import bench as run
    from ..bench.bench import bench_tables, parse_size
    from ..config.run import load_config

    settings = load_config(config, list(set_ or ()))
    result = run(
        images or (),
        settings,
        size=None if size is None else parse_size(size),
        repeat=repeat,
        threads=threads,
        released=against is not None,
        random_weights=random_weights,
    )
    console = Console(markup=False)
    for table in bench_tables(result):
        console.print(table)
    typer.echo(json.dumps(result))


def models(context: typer.Context) -> None:
    """List the public checkpoints."""
    if context.invoked_subcommand is not None:
        return
    from ...model.checkpoints.zoo import CHECKPOINTS, cache_folder

    for checkpoint in CHECKPOINTS.values():
        size = f"{checkpoint.size / 1e6:.0f} MB" if checkpoint.size else "size not recorded"
        here = ", downloaded" if (cache_folder() / checkpoint.file_name).is_file() else ""
        typer.echo(f"{checkpoint.name}  ({checkpoint.model}, {size}, {checkpoint.licence}{here})")
        typer.echo(f"  {checkpoint.url}")
        typer.echo(f"  sha256 {checkpoint.sha256 or 'not recorded'}")


def models_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `maskmill models` lists it.")],
) -> None:
    """Download a public checkpoint into the cache folder; goes on with a download that was cut off."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from ...model.checkpoints.zoo import download

    columns = (BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=None)
        path = download(name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(path)

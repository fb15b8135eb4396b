"""The network: `train`, `pretrain`, `evaluate`, `bench`, `models`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.shipped import shipped_for
from ..errors import UsageError
from ..storage.paths import place
from .options import (
    AsJson,
    Checkpoint,
    Config,
    Device,
    Model,
    Moved,
    PointsPerSide,
    PredIouThresh,
    Quiet,
    Set,
    StabilityScoreThresh,
    config_for,
    generator_settings,
    model_settings,
    moved_places,
)
from .terminal import bar

if TYPE_CHECKING:
    from rich.table import Table


def train(config: Annotated[str | None, config_for("train")] = None, set_: Set = None) -> None:
    """Train the model on labelled masks, from the last checkpoint in the output folder if there is one."""
    from ..training.config import TrainConfig
    from ..training.train import train as run

    typer.echo(run(_schedule(TrainConfig, config, set_, "train_nano")))


def pretrain(config: Annotated[str | None, config_for("pretrain")] = None, set_: Set = None) -> None:
    """Pretrain the encoder on images without masks; `train` can start from the weights it writes."""
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
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of a COCO JSON's images; default: the JSON's folder."),
    ] = None,
    moved: Moved = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Score only the images that training sets aside.")
    ] = False,
    masks_per_image: Annotated[
        int, typer.Option(metavar="N", min=1, help="Masks to prompt for in each image.")
    ] = 20,
    mask_prompts: Annotated[
        bool,
        typer.Option(
            "--mask-prompts", help="Give the last predicted mask as a prompt with each further click."
        ),
    ] = False,
    config: Config = None,
    set_: Set = None,
    automatic: Annotated[
        bool, typer.Option(help="Score automatic masks, too, with the options of --config (default: nano).")
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="CORPUS", help="Compare the corpus --data with this one, without a model.", parser=place
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot the calibration of the predicted IoU.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model against labelled masks: clicks, a box, its predicted IoU, and its automatic masks."""
    if data is None:
        raise UsageError("expected --data FOLDER, the labelled images to score against")
    if against is not None:
        from ..evaluation.agreement import score_corpora

        _refuse_options_of_a_model(context)
        result, tables = score_corpora(data, against)
    else:
        from ..evaluation.scoring import Wanted, score_model

        what = Wanted(
            data,
            photographs,
            validation,
            masks_per_image,
            mask_prompts,
            automatic,
            plot,
            moved_places(moved),
        )
        overrides = [*(set_ or ()), *model_settings(model, checkpoint, None)]
        result, tables = score_model(what, config, overrides)
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
    model: Model = None,
    checkpoint: Checkpoint = None,
    device: Device = None,
    points_per_side: PointsPerSide = None,
    pred_iou_thresh: PredIouThresh = None,
    stability_score_thresh: StabilityScoreThresh = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT", help="Inputs to time, as for generate; default: one of scikit-image's images."
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Resize the images to this first.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="released", help="Time the released generator, too.")
    ] = None,
    repeat: Annotated[
        int, typer.Option(metavar="N", min=1, help="Timed runs of maskmill; the median is reported.")
    ] = 3,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads to use.")] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Use random weights, for a model whose weights are missing."),
    ] = False,
) -> None:
    """Time generation on this machine, stage by stage; print a table, and JSON on the last line."""
    if against not in (None, "released"):
        raise UsageError(f"--against: expected released, got {against}")
    from rich.console import Console

    from ..bench.bench import bench as run
    from ..bench.bench import bench_tables, parse_size
    from ..config.run import load_config

    overrides = [
        *(set_ or ()),
        *model_settings(model, checkpoint, device),
        *generator_settings(points_per_side, pred_iou_thresh, stability_score_thresh),
    ]
    settings = load_config(config, overrides)
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


def models(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Add URLs, digests and file paths.")
    ] = False,
) -> None:
    """List the weights: the bundled ones, and the public checkpoints that can be downloaded."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from ...model.checkpoints.zoo import CHECKPOINTS, cache_folder

    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(_table_of_models())
    for checkpoint in CHECKPOINTS.values() if verbose else ():
        console.print(
            f"{checkpoint.name}\n  {checkpoint.url}\n  sha256 {checkpoint.sha256 or 'not recorded'}\n"
            f"  {cache_folder() / checkpoint.file_name}"
        )
    console.print("maskmill models get NAME downloads one; maskmill generate … --model NAME uses it.")


def _table_of_models() -> Table:
    from rich.table import Column, Table

    from ...model.checkpoints.zoo import CHECKPOINTS, bundled, cache_folder
    from ...model.config import MODELS
    from ..config.run import load_config

    presets: dict[str, list[str]] = {}
    for name in shipped_for("generate"):
        presets.setdefault(load_config(name).model.name, []).append(name)
    table = Table(Column("name", no_wrap=True), "network", box=None, padding=(0, 2, 0, 0))
    table.add_column("size", justify="right")
    for name in ("here", "presets", "licence"):
        table.add_column(name)
    for name in MODELS:
        if path := bundled(name):
            size = _megabytes(path.stat().st_size)
            used = ", ".join(presets.get(name, ()))
            table.add_row(name, name, size, "bundled", used, "research")
    paths = {known.name: cache_folder() / known.file_name for known in CHECKPOINTS.values()}
    for model in dict.fromkeys(known.model for known in CHECKPOINTS.values()):
        alike = [known for known in CHECKPOINTS.values() if known.model == model]
        here = [known for known in alike if paths[known.name].is_file()]
        for known in alike:
            used = ", ".join(presets.get(model, ())) if known is (here or alike)[0] else ""
            is_here = "yes" if known in here else "no"
            table.add_row(known.name, model, _megabytes(known.size), is_here, used, known.licence)
    return table


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.0f} MB"


def models_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `maskmill models` lists.")],
    quiet: Quiet = False,
) -> None:
    """Download a public checkpoint into the cache folder, or the rest of one that was cut off."""
    from ...model.checkpoints.zoo import download

    with bar("bytes", quiet) as show:
        path = download(name, progress=show)
    typer.echo(path)

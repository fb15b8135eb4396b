"""The command line: what was typed becomes one call, and what went wrong one line and an exit code.

`main` is the one place that turns exceptions into exit codes: 0 done, 2 wrong use or configuration, 3
verification failed, 4 incomplete, 130 interrupted. A bug is left alone: Python prints its traceback and exits
with 1. Heavy imports happen inside the commands, so that `maskmill --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import exchange_commands
from pipelines.errors import (
    IncompleteRun,
    MaskmillError,
    UsageError,
    VerificationFailed,
    visible,
)
from pipelines.interrupts import INTERRUPTED, orderly
from pipelines.places import is_stores, place, redacted, store_code

if TYPE_CHECKING:
    from pipelines.plan import Mode

# typer carries its own click or uses the installed one, by version; this is the base of usage errors in
# either.
_ClickException: Any = typer.BadParameter.__mro__[2]

# Commands that go on where they stopped, and what is there by then.
_GO_ON = {
    "generate": "committed shards stay",
    "import": "committed shards stay",
    "export": "what is written stays",
}

app = typer.Typer(
    name="maskmill",
    help="Photographs in, an SA-1B-style corpus of segmentation masks out.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("export")(exchange_commands.export_corpus)
app.command("import")(exchange_commands.import_corpus)
models_app = typer.Typer(help="List the public checkpoints; `models get NAME` downloads one.")
app.add_typer(models_app, name="models")

Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="A YAML file, or a shipped configuration's name."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value: a.b=value. Repeatable."),
]
CorpusArgument = Annotated[Path, typer.Argument(metavar="CORPUS", help="The corpus's folder.", parser=place)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv`: the words after `maskmill`, else those typed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    again = _Again(arguments)
    try:
        with orderly(lambda: redacted(str(again))):
            code = app(args=arguments, prog_name="maskmill", standalone_mode=False, obj=again)
    except _ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except MaskmillError as error:
        goes_on = isinstance(error, IncompleteRun) and again.differs
        return _complain(f"{error}{again if goes_on else ''}", error.exit_code)
    except ValueError as error:
        from model.zoo import CheckpointError

        if not isinstance(error, CheckpointError):
            raise
        return _complain(str(error), UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if not (is_stores(error) or store_code(error)):
            raise
        return _complain(f"the store failed: {type(error).__name__}: {error}", UsageError.exit_code)
    if code == INTERRUPTED:  # which newer versions of typer return for a KeyboardInterrupt
        print(f"maskmill: interrupted{redacted(str(again))}", file=sys.stderr)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


class _Again:
    """The command that goes on after an interruption: the same one, as long as that means the same."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self.differs = False

    def without_overwrite(self) -> None:
        """From here on `--overwrite` would remove what this very command has made."""
        self.differs = "--overwrite" in self._words

    def __str__(self) -> str:
        if not self._words or self._words[0] not in _GO_ON:
            return ""
        words = [word for word in self._words if not (self.differs and word == "--overwrite")]
        stays = "the old corpus was not removed yet" if "--overwrite" in words else _GO_ON[words[0]]
        return f"; {stays}, go on with: {shlex.join(['maskmill', *words])}"


@app.callback(invoke_without_command=True)
def _maskmill(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
) -> None:
    if version:
        typer.echo(f"maskmill {metadata.version('maskmill')}")
    elif context.invoked_subcommand is None:
        raise UsageError("expected a command, see maskmill --help")


@app.command()
def generate(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT…", help="Folders, globs, file lists (.txt), image, tar or Parquet."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="CORPUS", help="The corpus's folder.", parser=place)
    ] = None,
    config: Config = None,
    set_: Set = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Worker processes; 0: this process, without Ray. Begin when MIN are ready.",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        str | None, typer.Option(metavar="F", help="GPUs of a worker: 0, a share of one, or some.")
    ] = None,
    cpus_per_worker: Annotated[
        str | None, typer.Option(metavar="N", help="CPUs, and threads, of a worker.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A running Ray cluster (or auto), not one of our own."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the corpus and start anew.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add inputs that the corpus does not have.")
    ] = False,
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
    from pipelines.config import load_config
    from pipelines.settings import to_yaml

    overrides = [] if workers is None else _workers(workers)
    overrides += [] if gpus_per_worker is None else [f"cluster.gpus_per_worker={gpus_per_worker}"]
    overrides += [] if cpus_per_worker is None else [f"threads_per_worker={cpus_per_worker}"]
    settings = load_config(config, [*(set_ or ()), *overrides])
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    if not inputs:
        from pipelines.sources import EXPECTED

        raise UsageError(f"expected at least one INPUT: {EXPECTED}")
    if out is None:
        raise UsageError("expected --out CORPUS, the folder to write")
    if ray is not None and settings.workers == 0:
        raise UsageError("expected --ray or --workers 0 (no Ray), not both")
    mode, retry = _mode(overwrite, extend, retry_rejects), retry_rejects or ()
    from pipelines.event_log import opened
    from pipelines.generate import generate as run

    cleared = context.obj.without_overwrite
    with opened(log_json) as events:
        run(inputs, out, settings, mode=mode, ray=ray, retry=retry, cleared=cleared, events=events)


@app.command()
def verify(
    corpus: CorpusArgument,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Shards checked at a time; default: all cores.")
    ] = None,
) -> None:
    """Recompute everything a corpus says; exit code 3 and a list where anything is off."""
    from pipelines.verify import verify as check

    report = check(corpus, workers)
    for problem in report.problems:
        typer.echo(visible(problem))
    if report.problems:
        raise VerificationFailed(f"{corpus}: {len(report.problems)} problem(s) found")
    typer.echo(f"{corpus}: verified, {', '.join(f'{count} {name}' for name, count in report.counts.items())}")


@app.command()
def status(
    corpus: CorpusArgument,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON in place of the table.")] = False,
) -> None:
    """How far a run is: shards, rate, time left, refusals; read from the corpus alone, at any time."""
    from pipelines.status import status_of

    found = status_of(corpus)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
        return
    from rich.console import Console

    from pipelines.report import status_table

    Console(markup=False, soft_wrap=True).print(status_table(found))


@app.command()
def report(
    corpus: CorpusArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="A page with pictures, .html; default: tables here.")
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
    from pipelines import looking

    looking.report(corpus, out, against, as_json, concavity, workers)


@app.command()
def gallery(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(metavar="PAGE", help="The page to write, .html.")],
    photographs: Annotated[int, typer.Option(metavar="N", min=1, help="The first so many are shown.")] = 2000,
) -> None:
    """Write a page that shows the masks over their photographs."""
    from pipelines import looking

    looking.gallery(corpus, out, photographs)


@app.command()
def view(
    corpus: CorpusArgument,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Of loopback; 0: any that is free.")
    ] = 0,
) -> None:
    """Serve that page over the whole corpus, on this machine only, until Ctrl-C."""
    from pipelines import looking

    looking.view(corpus, port)


@app.command()
def train(config: Config = None, set_: Set = None) -> None:
    """Train the model on labelled masks; goes on from the last checkpoint in the output folder."""
    from pipelines.train import train as run
    from pipelines.training_config import TrainConfig

    typer.echo(run(_schedule(TrainConfig, config, set_, "train_nano")))


@app.command()
def pretrain(config: Config = None, set_: Set = None) -> None:
    """Teach the encoder to fill in plain photographs, no masks needed; `train` starts from what it gives."""
    from pipelines.pretrain import PretrainConfig
    from pipelines.pretrain import pretrain as run

    typer.echo(run(_schedule(PretrainConfig, config, set_, "pretrain_nano")))


def _schedule(kind: Any, config: str | None, set_: list[str] | None, example: str) -> Any:
    from pipelines.settings import load_settings

    if config is None:
        raise UsageError(f"expected --config FILE, for example --config {example}")
    settings = load_settings(kind, config, list(set_ or ()))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return settings


@app.command()
def evaluate(
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Labelled images: tables, a COCO JSON, SA-1B, or a corpus."),
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
        typer.Option(metavar="CORPUS", help="No model: compare the corpus --data with this one."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw how far predicted IoU can be believed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON in place of the table.")] = False,
) -> None:
    """Score a model against labelled masks: clicks, a box, its predicted IoU, and its automatic masks."""
    if data is None:
        raise UsageError("expected --data FOLDER, the labelled images to score against")
    from pipelines import scoring

    if against is not None:
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


@app.command()
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

    from pipelines.bench import bench as run
    from pipelines.bench import parse_size
    from pipelines.config import load_config
    from pipelines.report import bench_tables

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


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List the public checkpoints."""
    if context.invoked_subcommand is not None:
        return
    from model.zoo import CHECKPOINTS, cache_folder

    for checkpoint in CHECKPOINTS.values():
        size = f"{checkpoint.size / 1e6:.0f} MB" if checkpoint.size else "size not recorded"
        here = ", downloaded" if (cache_folder() / checkpoint.file_name).is_file() else ""
        typer.echo(f"{checkpoint.name}  ({checkpoint.model}, {size}, {checkpoint.licence}{here})")
        typer.echo(f"  {checkpoint.url}")
        typer.echo(f"  sha256 {checkpoint.sha256 or 'not recorded'}")


@models_app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `maskmill models` lists it.")],
) -> None:
    """Download a public checkpoint into the cache folder; goes on with a download that was cut off."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from model.zoo import download

    columns = (BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=None)
        path = download(name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(path)


def _workers(text: str) -> list[str]:
    """`N` or `MIN:MAX` as values of the configuration."""
    if text.isdecimal():
        return [f"workers={text}"]
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise UsageError(f"--workers: expected N, or MIN:MAX with 1 ≤ MIN ≤ MAX, got {text}")
    return [f"cluster.min_workers={least}", f"workers={most}"]


def _mode(overwrite: bool, extend: bool, retry: list[str] | None) -> Mode:
    if overwrite and extend:
        raise UsageError("expected --overwrite or --extend, not both")
    if overwrite and retry:
        raise UsageError("expected --overwrite or --retry-rejects, not both")
    return "overwrite" if overwrite else "extend" if extend else "resume"


def _complain(message: str, code: int) -> int:
    print(f"maskmill: {visible(' '.join(redacted(message).split()))}", file=sys.stderr)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())

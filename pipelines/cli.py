"""The command line: what was typed becomes one call, and what went wrong one line and an exit code.

`main` is the one place that turns exceptions into exit codes: 0 done, 2 wrong use or configuration, 3
verification failed, 4 incomplete, 130 interrupted. A bug is left alone: Python prints its traceback and exits
with 1. Heavy imports happen inside the commands, so that `maskmill --help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from .commands import corpus, exchange, inspect, models
from .errors import IncompleteRun, MaskmillError, UsageError
from .signals import INTERRUPTED, orderly
from .storage.store_errors import is_stores, store_code
from .text import redacted, visible

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
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
models_app = typer.Typer()
for to, name, command, example in (
    (app, "generate", corpus.generate, "generate photos -o corpus"),
    (app, "verify", corpus.verify, "verify corpus"),
    (app, "status", corpus.status, "status corpus"),
    (app, "report", inspect.report, "report corpus -o report.html"),
    (app, "gallery", inspect.gallery, "gallery corpus -o gallery.html"),
    (app, "view", inspect.view, "view corpus"),
    (app, "export", exchange.export_corpus, "export corpus -o coco --format coco"),
    (app, "import", exchange.import_corpus, "import 'sa1b/*.tar' -o corpus"),
    (app, "train", models.train, "train --config train_nano --set data=FOLDER --set out=runs/nano"),
    (
        app,
        "pretrain",
        models.pretrain,
        "pretrain --config pretrain_nano --set data=photos --set out=runs/mae",
    ),
    (app, "evaluate", models.evaluate, "evaluate --data FOLDER --model mobile_sam"),
    (app, "bench", models.bench, "bench --images photos --model mobile_sam"),
    (models_app, "get", models.models_get, "models get mobile_sam"),
):
    to.command(name, epilog=f"Example: maskmill {example}")(command)
models_app.callback(invoke_without_command=True, epilog="Example: maskmill models --verbose")(models.models)
app.add_typer(models_app, name="models")


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
        from ..model.checkpoints.errors import CheckpointError

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
        typer.echo(f"maskmill {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _complain(message: str, code: int) -> int:
    from rich.console import Console

    line = visible(" ".join(redacted(message).split()))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("maskmill: ", style="bold red", end="")
    console.print(line, markup=False)
    return int(code)

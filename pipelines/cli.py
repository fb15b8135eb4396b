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
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(corpus.generate)
app.command()(corpus.verify)
app.command()(corpus.status)
app.command()(inspect.report)
app.command()(inspect.gallery)
app.command()(inspect.view)
app.command("export")(exchange.export_corpus)
app.command("import")(exchange.import_corpus)
app.command()(models.train)
app.command()(models.pretrain)
app.command()(models.evaluate)
app.command()(models.bench)
models_app = typer.Typer(help="List the public checkpoints; `models get NAME` downloads one.")
models_app.callback(invoke_without_command=True)(models.models)
models_app.command("get")(models.models_get)
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
        raise UsageError("expected a command, see maskmill --help")


def _complain(message: str, code: int) -> int:
    print(f"maskmill: {visible(' '.join(redacted(message).split()))}", file=sys.stderr)
    return int(code)

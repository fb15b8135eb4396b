"""The command line: what was typed becomes one call, and what went wrong one line and an exit code.

`main` is the one place that turns exceptions into exit codes: 0 done, 2 wrong use or configuration, 3
verification failed, 4 incomplete, 5 no image could be used, 130 interrupted. A bug is left alone: Python
prints its traceback and exits with 1. Heavy imports happen inside the commands, so that `maskmill --help`
answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from .commands import corpus, exchange, inspect, models
from .errors import IncompleteRun, MaskmillError, UsageError
from .process import guarded_streams, settle
from .signals import INTERRUPTED, orderly
from .storage.store_errors import is_stores, store_code
from .text import one_line, redacted, visible
from .writing.go_on import GoOn

# typer carries its own click or uses the installed one, by version; this is the base of usage errors in
# either.
_ClickException: Any = typer.BadParameter.__mro__[2]

_COMPUTE_NOTHING = ("--version", "status", "rejects", "models")

# What torch's allocators, Python's threads and a pool whose process was killed say by a plain RuntimeError.
_OUT_OF_RESOURCES = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "can't start new thread",
    "terminated abruptly",
)

app = typer.Typer(
    name="maskmill",
    help="Turn images into an SA-1B-style corpus of segmentation masks.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
models_app = typer.Typer()
for to, name, command, example in (
    (app, "generate", corpus.generate, "generate photos -o corpus"),
    (app, "resume", corpus.resume, "resume corpus"),
    (app, "verify", corpus.verify, "verify corpus"),
    (app, "status", corpus.status, "status corpus"),
    (app, "rejects", inspect.rejects, "rejects corpus --class Truncated"),
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
    with guarded_streams() as output:
        code = _run(list(sys.argv[1:] if argv is None else argv), ends=argv is None)
        output.flush()
        if output.failure is None or isinstance(output.failure, BrokenPipeError):  # as behind `| head`
            return code
        said = f"standard output: cannot be written: {output.failure.strerror}"
        return _complain(said, code or IncompleteRun.exit_code)


def _run(arguments: list[str], *, ends: bool) -> int:
    go_on = GoOn(arguments)
    try:
        asks = {"-h", "--help"} & set(arguments) or "_MASKMILL_COMPLETE" in os.environ
        settle(computes=bool(arguments) and arguments[0] not in _COMPUTE_NOTHING and not asks)
        with orderly(lambda: redacted(str(go_on)), ends=ends):
            code = app(args=arguments, prog_name="maskmill", standalone_mode=False, obj=go_on)
    except _ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except MaskmillError as error:
        goes_on = isinstance(error, IncompleteRun) and go_on.differs
        return _complain(f"{error}{go_on if goes_on else ''}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        message, code = _no_bug(error)
        if not message:
            raise
        return _complain(message, code)
    if code == INTERRUPTED:  # which newer versions of typer return for a KeyboardInterrupt
        print(f"maskmill: interrupted{redacted(str(go_on))}", file=sys.stderr)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _no_bug(error: Exception) -> tuple[str, int]:
    """What to say of an error that weights, storage, memory, threads or shared libraries raised, and the exit
    code; an empty text where it is a bug.
    """
    from ..model.checkpoints.errors import CheckpointError

    if isinstance(error, CheckpointError):
        return str(error), UsageError.exit_code
    if is_stores(error) or store_code(error):
        return f"the store failed: {one_line(error)}", UsageError.exit_code
    said = str(error)
    if (
        isinstance(error, ImportError | OSError)
        and re.search(r"\.so\b", said)
        and "cannot import name" not in said  # which names the library that it looked in
        and getattr(error, "errno", None) is None
    ):
        last = said.strip().splitlines()[-1]  # of numpy's page of advice
        return f"a shared library cannot be loaded: {last}", UsageError.exit_code
    if isinstance(error, OSError):
        return one_line(error), UsageError.exit_code
    if isinstance(error, MemoryError):
        return f"out of memory: {one_line(error)}", IncompleteRun.exit_code
    if isinstance(error, RuntimeError) and any(text in said for text in _OUT_OF_RESOURCES):
        return f"out of memory, threads or processes: {one_line(error)}", IncompleteRun.exit_code
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and error.encoding == encoding != "utf-8":
        name = f"this locale encodes file names in {encoding}, which cannot encode {error.object}"
        return f"{name}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1", UsageError.exit_code
    return "", 1


@app.callback(invoke_without_command=True)
def _maskmill(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
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

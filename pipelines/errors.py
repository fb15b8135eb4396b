"""What can go wrong, as one tree; `pipelines.cli.main` turns it into exit codes, in one place.

    MaskmillError            exit code
    ├── UsageError           2   wrong use: an input that is not there, two inputs with one key
    │   └── ConfigError      2   wrong configuration
    ├── CorpusError          2   a corpus that cannot be read, or is not the one this run would write
    │   └── CorpusUnavailable    its storage does not give it, for now; by a run tried again, then 4
    ├── VerificationFailed   3   `maskmill verify` found something
    ├── IncompleteRun        4   shards are left undone
    │   ├── BreakerTripped       by a run that got nowhere and stopped itself
    │   └── GpuFailed            by a GPU, in this process; a worker's only ends that worker
    ├── NothingUsable        5   a corpus is complete, and every image of it is rejected
    └── InputRejected        –   one image that cannot be used: it becomes a `rejected` row and stops nothing

What is not in the tree is either infrastructure (storage and memory, see
`pipelines.workers.shard.is_infrastructure`), which is tried again and then leaves a shard undone, or a bug
(exit code 1).
"""

from .text import visible


class MaskmillError(Exception):
    """Any error whose one-line message is meant for the person who typed the command."""

    exit_code = 1


class UsageError(MaskmillError):
    """The command cannot mean anything as it was given."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is not understood."""


class CorpusError(MaskmillError):
    """The folder is no corpus, cannot be read as one, or belongs to a different run."""

    exit_code = 2


class CorpusUnavailable(CorpusError, OSError):  # noqa: N818  (of the moment, not of the corpus)
    """A file of the corpus that could not be read though nothing is known against it: the storage failed, or
    memory ran out.

    An OSError too, so that whoever tries storage again that fails tries this again; with its number.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class VerificationFailed(MaskmillError):  # noqa: N818  (a finding, not an error of the program)
    """The corpus is not what its plan and its checksums say."""

    exit_code = 3


class IncompleteRun(MaskmillError):  # noqa: N818
    """The run ended with shards left undone; the same command goes on from there."""

    exit_code = 4


class BreakerTripped(IncompleteRun):
    """The run stopped itself, since it got nowhere."""


class GpuFailed(IncompleteRun):
    """A GPU failed, and not for want of memory: this process cannot use it any more."""


class NothingUsable(MaskmillError):  # noqa: N818
    """The run is done and its corpus complete, but not one image of it could be used."""

    exit_code = 5


class InputRejected(MaskmillError):  # noqa: N818
    """An image that becomes a `rejected` row, finally.

    Attributes:
        stage: where it failed: "read", "decode" or "generate".
        error_class: a stable name; `docs/format.md` lists them.
        message: what was wrong with this image, in one line.

    """

    def __init__(self, stage: str, error_class: str, message: str) -> None:
        super().__init__(stage, error_class, message)  # the arguments as they are, so that it pickles
        self.stage = stage
        self.error_class = error_class
        self.message = visible(" ".join(message.split()))

    def __str__(self) -> str:
        return f"{self.error_class} ({self.stage}): {self.message}"

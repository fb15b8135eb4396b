"""The line of progress, where it cannot be told."""

import errno
import io
import sys

from rich.console import Console

from pipelines.report import LiveLine
from pipelines.tasks import Tally


class FullDisk(io.StringIO):
    """A log that takes no more."""

    def write(self, _text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_is_full_costs_no_work(monkeypatch):
    monkeypatch.setattr("pipelines.report.PLAIN_LINE_SECONDS", 0)
    told = io.StringIO()
    for stream in (told, FullDisk()):
        monkeypatch.setattr(sys, "stderr", stream)
        with LiveLine(2, Console(file=io.StringIO())) as line:
            line.show(Tally(), 1)
    assert told.getvalue().startswith("0/2 images")

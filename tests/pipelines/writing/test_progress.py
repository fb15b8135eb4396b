"""What a person is told: the line of progress, where it cannot be told, and the scores."""

import errno
import io
import os
import pty
import re
import subprocess
import sys
import termios
from collections import Counter

import pytest
from rich.console import Console

from maskmill.pipelines.evaluation.scoring import evaluation_table
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.text import without_escapes
from maskmill.pipelines.writing.progress import Display, LiveLine, next_commands, progress_line, summary_table


class FullDisk(io.StringIO):
    """A log that takes no more."""

    def write(self, _text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_is_full_costs_no_work(monkeypatch):
    monkeypatch.setattr("maskmill.pipelines.writing.progress.PLAIN_LINE_SECONDS", 0)
    told = io.StringIO()
    for stream in (told, FullDisk()):
        monkeypatch.setattr(sys, "stderr", stream)
        with LiveLine(2, Console(file=io.StringIO())) as line:
            line.show(Tally(), 1)
    assert told.getvalue().startswith("0/2 images")


TALLY = Tally(
    statuses=Counter(ok=122_000, empty=1_400, rejected=56),
    masks=12_345_678,
    candidates=30_000_000,
    drops=Counter(predicted_iou=17_654_322),
    rejects=Counter(Truncated=56),
)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (None, "123456/1000000 images · 61.73 images/s · 6172.8 masks/s · 56 rejected · 3:56:40 left"),
        (80, "123456/1000000 images · 61.73 images/s · 56 rejected · 3:56:40 left"),
        (66, "123456/1000000 images · 61.73 images/s · 3:56:40 left"),
        (48, "123456/1000000 images · 3:56:40 left"),
        (30, "123456/1000000 images"),
    ],
)
def test_a_narrow_line_leaves_out_what_matters_least(room, expected):
    assert progress_line(TALLY, 1_000_000, 2000, 8, room) == expected


def test_the_bars_fit_a_terminal_of_sixty_columns():
    code = """
from maskmill.pipelines.commands.terminal import bar
from maskmill.pipelines.writing.progress import Display
from tests.pipelines.writing.test_progress import TALLY
with Display().live_line(1_000_000) as line:
    line.show(TALLY, 8)
for what in ("shards", "bytes"):
    with bar(what) as show:
        show(1_234_567, 2_564_550_879)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    env.pop("COLUMNS", None)
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 60))
    subprocess.run([sys.executable, "-c", code], stdout=end, stderr=end, env=env, check=True)
    shown = without_escapes(os.read(terminal, 99_999).decode())
    os.close(terminal)
    os.close(end)
    lines = [line for line in re.split(r"[\r\n]+", shown) if line]
    assert max(map(len, lines)) <= 60
    assert not [line for line in lines if "…" in line]
    assert [line for line in lines if "123456/1000000 images · " in line]
    assert [line for line in lines if "1234567/2564550879 shards" in line]
    assert [line for line in lines if "0.0/2.6 GB" in line]


def test_a_quiet_display_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr("maskmill.pipelines.writing.progress.PLAIN_LINE_SECONDS", 0)
    for quiet, lines in ((True, 0), (False, 2)):
        display = Display(quiet=quiet)
        with display.live_line(2) as line:
            line.show(Tally(), 1)
        display.console().print("done")
        shown = capsys.readouterr()
        assert len((shown.out + shown.err).splitlines()) == lines


def _rows(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip(" ─")]


def test_the_summary_begins_with_what_is_wanted_and_leaves_the_rest_for_verbose():
    first = [
        ["this", "run"],
        ["images", "123456"],
        ["masks", "12345678"],
        ["empty", "1400"],
        ["rejected", "56"],
        ["rejected:", "Truncated", "56"],
        ["time", "33:20"],
        ["images/s", "61.73"],
    ]
    assert _rows(summary_table(TALLY, 2000, None)) == first
    assert _rows(summary_table(TALLY, 2000, None, verbose=True)) == [
        *first,
        ["masks", "per", "image", "100.0"],
        ["candidates", "30000000"],
        ["dropped:", "predicted_iou", "17654322"],
    ]


def test_beside_a_run_that_went_on_stands_what_the_corpus_holds():
    corpus = Tally(Counter(ok=5, rejected=3), masks=40, rejects=Counter(Corrupt=1, Missing=2))
    done = Tally(Counter(ok=1, rejected=2), masks=8, rejects=Counter(Missing=2))
    assert _rows(summary_table(done, 3, corpus)) == [
        ["this", "run", "corpus"],
        ["images", "3", "8"],
        ["masks", "8", "40"],
        ["empty", "0", "0"],
        ["rejected", "2", "3"],
        ["rejected:", "Missing", "2", "2"],
        ["rejected:", "Corrupt", "0", "1"],
        ["time", "0:03"],
        ["images/s", "1.00"],
    ]
    assert _rows(summary_table(corpus, 3, corpus))[0] == ["this", "run"], "it made all of it"


def test_a_finished_run_ends_with_commands_that_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = next_commands(tmp_path / "my corpus").splitlines()
    assert lines[0].startswith("my corpus is complete.")
    assert lines[1:] == ["  maskmill view 'my corpus'", "  maskmill verify 'my corpus'"]


def test_all_of_the_evaluations_table_is_seen_in_eighty_columns():
    names = ["bsds500", "camvid", "ccp", "coco_instances", "coco_panoptic", "cwfid", "davis2016", "facades"]
    scores = {"iou_calibration_mae": 0.1234, "ar_1000": 0.0567, "masks_per_image": 123.46}
    sources = {name: scores | {"iou_calibration_mae": 0.2 + n / 100} for n, name in enumerate(names)}
    del sources["davis2016"]["ar_1000"]
    console = Console(file=io.StringIO(), width=80)
    console.print(evaluation_table(scores, sources))
    said = console.file.getvalue()
    assert "…" not in said
    rows = {words[0]: words[1:] for line in said.splitlines() if (words := line.split())}
    assert rows["iou_calibration_mae"] == ["0.123", *(f"{0.2 + n / 100:.3f}" for n in range(8))]
    assert rows["ar_1000"] == ["0.057"] * 7 + ["-", "0.057"]
    assert rows["masks_per_image"] == ["123.5"] * 9

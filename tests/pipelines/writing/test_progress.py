"""What a person is told: the line of progress, where it cannot be told, and the scores."""

import errno
import io
import sys

from rich.console import Console

from maskmill.pipelines.evaluation.scoring import evaluation_table
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.writing.progress import LiveLine


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

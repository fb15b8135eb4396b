"""`docs/observing.md`: its tables are the code's, its example is what a log holds."""

import io
import json
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from maskmill.engine.runtime.accounting import STAGES
from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import BreakerTripped, IncompleteRun
from maskmill.pipelines.format.tally import Tally
from maskmill.pipelines.generation.event_log import INPUTS_TOLD, EventLog
from maskmill.pipelines.generation.status import Status
from maskmill.pipelines.workers.events import Loss
from maskmill.pipelines.workers.metrics import METRICS
from maskmill.pipelines.workers.tasks import ShardFailure, ShardReceipt, WorkerPlace
from tests.support.commands import words

TEXT = (Path(__file__).parents[2] / "docs" / "observing.md").read_text(encoding="utf-8")


def table(heading):
    """The rows of the table that begins so: their cells."""
    head, rows = TEXT.index(f"| {heading} |"), []
    for line in TEXT[head:].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def quoted(text):
    return re.findall(r"`([\w-]+)`", text)


EVENTS = {quoted(name)[0]: quoted(re.sub(r"\([^()]*\)", "", told)) for name, _, told in table("event")}
EVERY = [quoted(name)[0] for name, _ in table("field")]


@pytest.fixture(scope="module")
def events(photos, tiny_settings, tmp_path_factory):
    """One of each: of a run, and of what a run does not do when it is asked."""
    out = tmp_path_factory.mktemp("observed") / "corpus"
    file = out.with_name("events.jsonl")
    assert main(words(photos, out, tiny_settings, "--workers", "0", "--log-json", str(file))) == 0
    others = io.StringIO()
    log = EventLog(others)
    log.identify(json.loads((out / "run.json").read_text())["run_digest"])
    log.worker_lost(Loss(WorkerPlace("node", "host", 1), "gone", (0,), starting=False))
    log.ended(ShardFailure(0, "gone", retries=Counter(read=3)))
    log.warned("warning", "take care")
    for error in (BreakerTripped("stopped"), KeyboardInterrupt()):
        with pytest.raises(type(error)), log.of_a_run():
            raise error
    lines = [*file.read_text().splitlines(), *others.getvalue().splitlines()]
    return [json.loads(line) for line in lines]


def test_the_table_has_every_event_with_its_fields_and_no_other(events):
    assert {event["event"]: list(event) for event in events} == {
        name: [*EVERY, *told] for name, told in EVENTS.items()
    }
    assert f"the first {'twenty' if INPUTS_TOLD == 20 else INPUTS_TOLD}" in TEXT


def test_the_example_is_lines_of_such_a_log(events):
    (block,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    example = [json.loads(line) for line in block.splitlines()]
    assert len({line["event"] for line in example}) == 7
    real = {event["event"]: event for event in events}
    for line in example:
        assert list(line) == [*EVERY, *EVENTS[line["event"]]]
        for name, value in line.items():
            was = real[line["event"]][name]
            assert type(value) is type(was) or None in (value, was), name
    assert [line["time"] for line in example] == sorted(line["time"] for line in example)
    assert len({(line["run"], line["attempt"]) for line in example}) == 1


def test_the_example_adds_up():
    (block,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    example = {line["event"]: line for line in map(json.loads, block.splitlines())}
    log = EventLog(io.StringIO())
    counts = {name: example["shard_committed"][name] for name in ("ok", "empty", "rejected")}
    log.worker_lost(Loss(None, "gone", (0, 1), starting=False))
    log.ended(ShardReceipt(0, True, Tally(Counter(counts), masks=example["shard_committed"]["masks"])))
    log.ended(ShardFailure(1, example["shard_failed"]["reason"]))
    with pytest.raises(IncompleteRun), log.of_a_run():
        raise IncompleteRun(example["finished"]["reason"].removeprefix("IncompleteRun: "))
    (*_, finished) = map(json.loads, log._file.getvalue().splitlines())
    left_out = {"time", "run", "attempt", "seconds"}
    assert {name: value for name, value in finished.items() if name not in left_out} == {
        name: value for name, value in example["finished"].items() if name not in left_out
    }


def test_the_table_of_metrics_is_the_codes():
    rows = {quoted(name)[0]: (kind, labels) for name, kind, labels, _ in table("metric")}
    assert list(rows) == [f"ray_{metric.name}" for metric in METRICS]
    for metric in METRICS:
        kind, labels = rows[f"ray_{metric.name}"]
        assert kind == metric.kind
        assert tuple(quoted(labels)[:1]) == metric.labels
    stages = quoted(rows["ray_maskmill_stage_seconds_total"][1])[1:]
    assert stages == ["read", "decode", "wait", *STAGES, "table", "write"]


def test_what_the_queries_name_is_exported():
    named = set(re.findall(r"\bray_maskmill_\w+", TEXT))
    assert named == {f"ray_{metric.name}" for metric in METRICS}


def test_the_fields_of_the_status_are_named():
    told = TEXT[TEXT.index("With `--json`") : TEXT.index("## Log of events")]
    assert {field.name for field in fields(Status)} <= set(quoted(told))

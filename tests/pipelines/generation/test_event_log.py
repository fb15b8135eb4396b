"""The log of events: wrong targets, what a line may never hold, then runs that end in each way there is."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import BreakerTripped, CorpusError, IncompleteRun
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.generation.event_log import EventLog
from maskmill.pipelines.storage import retries
from maskmill.pipelines.workers import shard
from maskmill.pipelines.workers.events import Loss
from maskmill.pipelines.workers.tasks import ShardFailure, WorkerPlace
from tests.support.commands import start, words


def parsed(text):
    """Every line, as a collector reads it."""
    return [json.loads(line) for line in text.splitlines()]


def of(events, name):
    return [event for event in events if event["event"] == name]


def names(events):
    return [event["event"] for event in events]


@pytest.mark.parametrize("target", ["", ".", "no/such/folder/events.jsonl", "s3://user:secret@bucket/events"])
def test_what_cannot_be_appended_to_is_wrong_use_before_any_work(photos, tmp_path, capsys, target):
    out = tmp_path / "corpus"
    assert main(words(photos, out, [], "--workers", "0", "--log-json", target)) == 2
    said = capsys.readouterr().err
    assert "expected a local file in a folder that is there, or - for standard output" in said
    assert "secret" not in said
    assert not out.exists()


def test_a_line_is_one_line_without_credentials_and_any_json_reader_takes_it():
    file = io.StringIO()
    events = EventLog(file)
    reason = "read s3://me:pa55/w0rd@bucket/k?X-Amz-Signature=S1G&x=1\nand \udcff \u2028 \x1b[31m"
    events.ended(ShardFailure(3, reason, worker="host:1"))
    events.worker_lost(Loss(None, reason, (3,), starting=True))
    events.started(["https://me:pa55@host/a", *["photo.jpg"] * 99])
    text = file.getvalue()
    assert len(text.splitlines()) == 3
    assert not any(secret in text for secret in ("pa55", "w0rd", "S1G"))
    assert text.isascii()
    failed, lost, began = parsed(text)
    assert all(event["reason"].isprintable() for event in (failed, lost)), (
        "no escape codes, no half characters"
    )
    assert failed["reason"].startswith("read s3://***@bucket/k?X-Amz-Signature=***&x=1")
    assert (lost["worker"], lost["phase"]) == (None, "starting")
    assert (len(began["inputs"]), began["inputs_given"]) == (20, 100)


def test_a_log_that_cannot_be_written_ends_and_the_run_goes_on(caplog):
    class Full(io.StringIO):
        def write(self, _text):
            raise OSError("No space left on device")

    events = EventLog(Full())
    with events.of_a_run():
        events.started(["photo.jpg"])
        events.worker_ready(WorkerPlace("", "host", 1))
    assert caplog.messages == ["the log of events cannot be written and ends here: No space left on device"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), ["interrupted", "finished", "interrupted"]),
        (BreakerTripped("stopped: why"), ["breaker_tripped", "finished", "stopped"]),
        (IncompleteRun("2 shards"), ["finished", "incomplete"]),
        (CorpusError("another run's"), ["finished", "refused"]),
        (ZeroDivisionError("a bug"), ["finished", "failed"]),
    ],
)
def test_however_a_run_ends_the_last_line_says_so(raised, expected):
    file = io.StringIO()
    with pytest.raises(type(raised)), EventLog(file).of_a_run():
        raise raised
    events = parsed(file.getvalue())
    assert [*names(events), events[-1]["outcome"]] == expected
    assert str(raised) in str(events[-1]["reason"])
    assert all(event["level"] != "info" for event in events)


def test_what_a_module_warns_of_is_an_event_and_stays_on_standard_error():
    code = """
import logging, sys
from maskmill.pipelines.generation.event_log import EventLog
with EventLog(sys.stdout).of_a_run():
    logging.getLogger("maskmill.pipelines.storage.lease").warning("%s: cannot be renewed", "lease.json")
    logging.getLogger("maskmill.pipelines.storage.retries").info("trying again")
logging.getLogger("maskmill").warning("after")
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stderr == "lease.json: cannot be renewed\nafter\n"
    warned, ended = parsed(done.stdout)
    assert (warned["event"], warned["level"]) == ("warning", "warning")
    assert warned["message"] == "lease.json: cannot be renewed"
    assert ended["outcome"] == "complete"


def test_a_run_and_its_repetition_are_in_one_file_and_agree_with_the_corpus(
    photos, tiny_settings, tmp_path, capsys
):
    out, file = tmp_path / "corpus", tmp_path / "events.jsonl"
    for _ in range(2):
        assert main(words(photos, out, tiny_settings, "--workers", "0", "--log-json", str(file))) == 0
    printed = capsys.readouterr()
    assert "corpus is complete. " in printed.out, "what people read stays where it was"
    assert "{" not in printed.err
    events = parsed(file.read_text())
    run = json.loads((out / "run.json").read_text())
    assert {event["run"] for event in events} == {run["run_digest"]}
    first, second = ([e for e in events if e["attempt"] == attempt] for attempt in attempts(events))
    assert names(first) == ["run_started", "worker_ready", *["shard_committed"] * 6, "finished"]
    assert names(second) == ["run_started", "finished"]
    (began,), (ended,) = of(first, "run_started"), of(first, "finished")
    assert (began["inputs"], began["out"]) == ([str(photos)], str(out))
    assert (began["images_planned"], began["shards_left"], second[0]["shards_left"]) == (12, 6, 0)
    assert (began["config_digest"], began["model"]) == (run["config_digest"], "nano")
    (ready,) = of(first, "worker_ready")
    assert ready["worker"] == f"{ready['host']}:{os.getpid()}"
    for event in of(first, "shard_committed"):
        rows = pq.read_table(shard_path(out, event["shard"])).to_pylist()
        assert (event["images"], event["masks"]) == (len(rows), sum(len(row["annotations"]) for row in rows))
        assert (event["worker"], event["already_there"]) == (ready["worker"], False)
        assert 0 < event["commit_seconds"] < event["seconds"]
        footer = pq.read_metadata(shard_path(out, event["shard"])).metadata
        assert footer[b"maskmill.run_digest"].decode() == event["run"]
    corpus = Corpus(out)
    assert ended["masks"] == sum(len(row["annotations"]) for row in corpus)
    assert (ended["outcome"], ended["images"], ended["shards_committed"]) == ("complete", 12, 6)


def attempts(events):
    return dict.fromkeys(event["attempt"] for event in events)


def test_on_standard_output_there_is_nothing_but_events(photos, tiny_settings, tmp_path, capsys):
    out = tmp_path / "corpus"
    assert main(words(photos, out, tiny_settings, "--workers", "0", "--log-json", "-")) == 0
    printed = capsys.readouterr()
    assert names(parsed(printed.out))[-1] == "finished"
    assert "corpus is complete. " in printed.err


def test_a_run_that_cannot_begin_says_why(photos, tiny_settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    file = tmp_path / "events.jsonl"
    typed = words(photos, tmp_path / "file", tiny_settings, "--workers", "0", "--log-json", str(file))
    assert main(typed) == 2
    (event,) = parsed(file.read_text())
    assert (event["event"], event["outcome"]) == ("finished", "refused")
    assert "expected a folder for the corpus" in event["reason"]


def test_storage_that_fails_is_told_retry_by_retry_and_so_is_the_breaker(
    photos, tiny_settings, tmp_path, monkeypatch
):
    def fail(*_arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(shard, "commit_table", fail)
    file = tmp_path / "events.jsonl"
    typed = words(photos, tmp_path / "corpus", tiny_settings, "--workers", "0", "--log-json", str(file))
    assert main(typed) == 4
    events = parsed(file.read_text())
    assert names(events)[2:] == [
        *["storage_retried", "shard_failed"] * 3,
        "breaker_tripped",
        "finished",
    ]
    for event in of(events, "storage_retried"):
        assert (event["read"], event["write"]) == (0, retries.COMMIT_ATTEMPTS - 1)
    assert {event["reason"] for event in of(events, "shard_failed")} == {"OSError: the disk is full"}
    assert "the corpus's storage failed for the last 3 shards" in of(events, "breaker_tripped")[0]["reason"]
    assert (events[-1]["outcome"], events[-1]["shards_failed"]) == ("stopped", 3)


@pytest.mark.slow
def test_a_killed_worker_and_an_interruption_show_up(photos, tiny_settings, tmp_path):
    out, file = tmp_path / "corpus", tmp_path / "events.jsonl"
    settings = [*tiny_settings, "shard_size=1", "generator.points_per_side=24", "model.device=cpu"]
    typed = words(photos, out, settings, "--workers", "1", "--log-json", str(file))

    def events():
        lines = file.read_text() if file.exists() else ""
        return parsed(lines[: lines.rfind("\n") + 1])

    def wait_for(process, name, count=1):
        for _ in range(3000):
            found = of(events(), name)
            if len(found) >= count:
                return found
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        raise AssertionError(f"no {name} within five minutes: {names(events())}")

    process = start(typed)
    (ready,) = wait_for(process, "worker_ready")
    os.kill(int(ready["worker"].rpartition(":")[2]), signal.SIGKILL)
    (lost,) = wait_for(process, "worker_lost")
    assert (lost["worker"], lost["node"]) == (ready["worker"], ready["node"])
    assert lost["phase"] == "working"
    second = wait_for(process, "worker_ready", 2)[1]
    assert second["worker"] != ready["worker"]
    wait_for(process, "shard_committed", len(committed_shards(out)) + 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130, process.communicate()
    process.communicate()
    assert main(typed) == 0
    told = events()
    run = json.loads((out / "run.json").read_text())["run_digest"]
    assert {event["run"] for event in told} == {run}
    killed, whole = ([e for e in told if e["attempt"] == attempt] for attempt in attempts(told))
    assert names(killed)[-2:] == ["interrupted", "finished"]
    assert killed[-1]["workers_lost"] == 1
    assert any("shards in hand may finish" in event["message"] for event in of(killed, "warning"))
    assert whole[-1]["outcome"] == "complete"
    shards = sorted(event["shard"] for event in of(told, "shard_committed"))
    assert shards == list(range(12)), "each once, whatever was killed"

"""Ctrl-C and SIGTERM: what is noted, what ends at once, and what a run leaves behind."""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskmill.pipelines.cli import main
from maskmill.pipelines.format.shards import committed_shards
from maskmill.pipelines.signals import Interrupts, held_back, orderly
from maskmill.pipelines.storage import atomic
from tests.support import commands
from tests.support.commands import start, wait_for_a_shard

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_like_ctrl_c_and_the_handlers_are_put_back(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt), orderly():
        signal.raise_signal(number)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with orderly():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_only_noted_where_it_is_held_back():
    with orderly():
        with held_back() as signals:
            assert not signals.received
            signal.raise_signal(signal.SIGTERM)
            assert signals.received
        assert not signals.held_back


def test_without_a_command_around_it_nothing_is_noted():
    with held_back() as signals:
        assert isinstance(signals, Interrupts)
        assert not signals.received


@pytest.mark.parametrize("block", ["held_back()", "contextlib.suppress(KeyboardInterrupt)"])
def test_the_second_signal_ends_the_process_at_once(block):
    code = f"""
import contextlib, signal
from maskmill.pipelines.signals import held_back, orderly
with orderly(lambda: "; go on"):
    with {block}:
        signal.raise_signal(signal.SIGINT)
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        print("no time for this")
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "maskmill: ended at once; go on\n", "no escape codes: this is no terminal"


def test_the_second_signal_shows_the_cursor_that_a_progress_bar_has_hidden():
    code = """
import signal
from rich.console import Console
from maskmill.pipelines.signals import held_back, orderly
from maskmill.pipelines.writing.progress import LiveLine
with orderly(), LiveLine(9, Console(stderr=True)), held_back():
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    terminal, end = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=end, stderr=end, env=env, check=False)
    shown = os.read(terminal, 9999)
    os.close(terminal)
    os.close(end)
    assert done.returncode == 130
    assert 0 <= shown.rfind(b"\x1b[?25l") < shown.rfind(b"\x1b[?25h")


def words(photos, out, settings, *more):
    """Runs that leave time to interfere: one image a shard, many points."""
    return commands.words(photos, out, [*settings, "shard_size=1", "generator.points_per_side=6"], *more)


def processes_with(mark):
    """Processes, zombies aside, that inherited this from the environment of the command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] if mark.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


def assert_nothing_but_whole_files(out):
    assert not (out / "lease.json").exists()
    assert not (out / "corpus.json").exists()
    assert not [path for path in out.rglob("*") if atomic.is_temporary(path.name)]


def test_without_ray_it_is_refused_beside_another_and_sigint_prints_what_resumes(
    photos, tiny_settings, tmp_path, capsys
):
    out = tmp_path / "two  blanks and 'a quote'"
    arguments = words(photos, out, tiny_settings, "--workers", "0")
    process = start(arguments)
    wait_for_a_shard(process, out)
    assert main(arguments) == 4
    said = capsys.readouterr().err
    assert f"{' '.join(str(out).split())}: another run is at work on it" in said
    assert f"process {process.pid}, since 20" in said
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert_nothing_but_whole_files(out)
    command = errors.rpartition("; committed shards stay, go on with: ")[2]
    assert command == shlex.join(["maskmill", "resume", str(out)]) + "\n"
    assert main(shlex.split(command)[1:]) == 0
    assert main(["verify", str(out)]) == 0


def test_with_ray_sigint_finishes_what_is_in_hand_and_leaves_no_process(photos, tiny_settings, tmp_path):
    out, mark = tmp_path / "corpus", f"MASKMILL_TEST={tmp_path}"
    arguments = words(photos, out, tiny_settings, "--workers", "1")
    process = start(arguments, MASKMILL_TEST=str(tmp_path))
    wait_for_a_shard(process, out)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "shards in hand may finish within 20 s" in errors
    assert f"committed shards stay, go on with: maskmill resume {out}\n" in errors
    assert "Traceback" not in errors
    assert processes_with(mark) == []
    assert_nothing_but_whole_files(out)
    assert 0 < len(committed_shards(out)) < 12
    assert main([*arguments, "--workers", "0"]) == 0
    assert main(["verify", str(out)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["twice", "the group", "SIGINT while Ray starts", "SIGTERM while Ray starts"])
def test_with_ray_however_the_signal_comes_nothing_stays_running(photos, tiny_settings, tmp_path, how):
    out, mark = tmp_path / "corpus", f"MASKMILL_TEST={tmp_path}"
    arguments = words(photos, out, tiny_settings, "--workers", "1")
    process = start(arguments, MASKMILL_TEST=str(tmp_path))
    if how.endswith("while Ray starts"):
        while len(processes_with(mark)) < 2:
            time.sleep(0.05)
        process.send_signal(getattr(signal, how.split()[0]))
    elif how == "the group":
        wait_for_a_shard(process, out)
        os.killpg(process.pid, signal.SIGTERM)
    else:
        wait_for_a_shard(process, out)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    end = time.monotonic() + 20
    while processes_with(mark) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_with(mark) == []
    assert main([*arguments, "--workers", "0"]) == 0
    assert main(["verify", str(out)]) == 0

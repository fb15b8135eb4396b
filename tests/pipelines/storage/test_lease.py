"""Who may write a corpus: what is no lease, who is gone, who lives, whom clocks accuse, and two at once."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.errors import IncompleteRun, UsageError
from maskmill.pipelines.storage import atomic, lease
from maskmill.pipelines.storage.lease import LEASE, SECONDS, held
from maskmill.pipelines.verification.corpus import verify
from tests.support.corpora import make_corpus, make_photos, open_corpus


@pytest.fixture(autouse=True)
def watchful(monkeypatch):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)


def moment(from_now):
    return datetime.fromtimestamp(time.time() + from_now, UTC).isoformat()


def write_lease(out, **changes):
    """A lease of a machine that is not this one, with half its time left."""
    content = {
        "token": "t",
        "host": "elsewhere",
        "machine": "another boot",
        "pid": 7,
        "started": "1",
        "since": moment(-100),
        "expires": moment(SECONDS / 2),
    }
    out.mkdir(exist_ok=True)
    (out / LEASE).write_text(json.dumps({**content, **changes}))


def here(pid):
    """What a process of this machine writes of itself."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return {"host": socket.gethostname(), "machine": machine, "pid": pid, "started": stat[19]}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 0.8)


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "corpus"


def take(out):
    """Take and leave the lease; how long that took, and what was said."""
    said = []
    started = time.monotonic()
    with held(out, said.append):
        assert json.loads((out / LEASE).read_text())["pid"] == os.getpid()
    assert not (out / LEASE).exists()
    return time.monotonic() - started, said


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b'{"pid": 1}', b"\xff", b"{}" * 9, b'{"token": []}', b"[" * 99_999, b"7"],
)
def test_what_is_no_lease_holds_nobody_up(out, damage):
    out.mkdir()
    (out / LEASE).write_bytes(damage)
    assert take(out)[0] < 5


@pytest.mark.parametrize(
    "expires", [None, 9, "soon", "", "2026-13-45T00:00:00+00:00", "0001-01-01T00:00:00+23:00"]
)
def test_a_lease_that_ends_at_no_time_holds_nobody_up(out, expires):
    write_lease(out, expires=expires)
    assert take(out)[0] < 5


@pytest.mark.parametrize("images", [-1, 1.5, "many", None, [], True])
def test_a_lease_that_tells_no_number_of_images_holds_nobody_up(out, images):
    write_lease(out, images_in_hand=images)
    assert take(out)[0] < 5


def test_what_another_version_says_beside_it_is_passed_over(out):
    write_lease(out, mood="good", images_in_hand=3)
    assert lease.read_lease(out).images_in_hand == 3
    write_lease(out)
    assert lease.read_lease(out).images_in_hand == 0


@pytest.mark.parametrize(("seen", "gone"), [(None, True), ("2", True), ("1", False), ("", False)])
def test_a_process_whose_start_cannot_be_seen_counts_as_alive(monkeypatch, seen, gone):
    monkeypatch.setattr(lease, "_started", lambda _pid: seen)
    holder = lease.Holder(**{**here(os.getpid()), "started": "1"}, token="t", since="", expires=moment(9))
    assert holder.is_gone == gone


def test_a_place_that_cannot_be_written_is_wrong_use(out):
    out.write_text("a file")
    with pytest.raises(UsageError, match=f"^{out}: cannot be written: "), held(out, print):
        pass


@pytest.mark.parametrize("ago", [1, 10**6])
def test_a_lease_that_has_run_out_is_taken_over_after_two_renewals_time(out, quick, ago):
    write_lease(out, expires=moment(-ago))
    waited, (said,) = take(out)
    assert lease.SECONDS / 2 <= waited < 10
    assert "waiting for the lease of another run: elsewhere, process 7" in said


def test_a_lease_that_has_run_out_by_a_wrong_clock_is_renewed_before_it_is_taken(out, quick):
    """This machine's clock is an hour ahead of the holder's."""
    write_lease(out, expires=moment(-3600))
    renewal = threading.Timer(0.2, write_lease, (out,), {"expires": moment(-3599)})
    renewal.start()
    with pytest.raises(IncompleteRun, match="at work on it: elsewhere, process 7"), held(out, print):
        pass
    assert json.loads((out / LEASE).read_text())["host"] == "elsewhere"


def test_a_process_of_this_machine_that_lives_and_sleeps_past_its_end_is_watched_too(out, quick, sleeper):
    write_lease(out, **here(sleeper.pid), expires=moment(-1))
    assert take(out)[0] >= lease.SECONDS / 2


@pytest.mark.parametrize("call", ["create", "replace"])
def test_a_starter_whose_temporary_file_is_swept_away_is_told_who_was_faster(out, quick, monkeypatch, call):
    """The faster one sweeps its folder as it starts, and holds the lease by then."""
    fsync = os.fsync
    if call == "replace":
        write_lease(out, expires=moment(-1))

    def swept(descriptor):
        fsync(descriptor)
        monkeypatch.setattr(os, "fsync", fsync)
        write_lease(out, expires=moment(-1))
        threading.Timer(0.2, write_lease, (out,)).start()
        assert atomic.sweep(out) == 1

    monkeypatch.setattr(os, "fsync", swept)
    with pytest.raises(IncompleteRun, match="at work on it: elsewhere, process 7"), held(out, print):
        pass


def test_a_store_that_two_ask_at_once_names_the_one_that_was_faster(out, sleeper, monkeypatch):
    def busy(path, write):
        write_lease(out, **here(sleeper.pid))
        monkeypatch.undo()
        raise OSError(errno.EBUSY, "another writer is at it")

    monkeypatch.setattr(atomic, "create", busy)
    with pytest.raises(IncompleteRun, match=f"process {sleeper.pid}"), held(out, print):
        pass


def test_a_process_of_this_machine_that_lives_is_named_and_the_lease_left_alone(out, sleeper):
    write_lease(out, **here(sleeper.pid))
    before = (out / LEASE).read_bytes()
    with pytest.raises(IncompleteRun) as caught, held(out, print):
        pass
    told = str(caught.value)
    for part in (socket.gethostname(), f"process {sleeper.pid}", json.loads(before)["since"], "in 30 s"):
        assert part in told
    assert (out / LEASE).read_bytes() == before


def test_a_process_that_was_killed_is_taken_over_at_once_though_nobody_waited_for_it(out, sleeper):
    write_lease(out, **here(sleeper.pid), expires=moment(10**6))
    sleeper.kill()
    while Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert take(out)[0] < 5


def test_a_later_process_with_the_same_number_is_another(out, sleeper):
    write_lease(out, **{**here(sleeper.pid), "started": "12"})
    assert take(out)[0] < 5


def test_two_of_one_process_are_two(out):
    with held(out, print), pytest.raises(IncompleteRun, match="at work on it"), held(out, print):
        pass


def test_another_machine_is_waited_for_until_its_lease_runs_out(out, quick):
    write_lease(out, expires=moment(0.8))
    waited, (said,) = take(out)
    assert 0.5 < waited < 10
    assert "waiting for the lease of another run: elsewhere, process 7, since" in said


def test_another_machine_that_renews_its_lease_is_at_work(out):
    write_lease(out)
    threading.Timer(0.2, write_lease, (out,), {"expires": moment(SECONDS)}).start()
    with pytest.raises(IncompleteRun, match="at work on it: elsewhere, process 7"), held(out, print):
        pass


def test_another_machine_that_ends_lets_this_one_on(out):
    write_lease(out)
    threading.Timer(0.2, (out / LEASE).unlink).start()
    assert take(out)[0] < 10


@pytest.mark.parametrize("ahead", [3600, 10**9])
def test_an_end_too_far_off_is_not_believed(out, monkeypatch, ahead):
    monkeypatch.setattr(lease, "SECONDS", 0.3)
    write_lease(out, expires=moment(ahead))
    assert take(out)[0] < 5


def test_it_is_renewed_while_it_is_held(out, quick):
    with held(out, print) as mine:
        time.sleep(1.1)
        left = datetime.fromisoformat(json.loads((out / LEASE).read_text())["expires"]).timestamp()
        assert left > time.time()
        mine.check()


def test_a_renewal_says_how_many_images_are_in_hand(out, quick):
    with held(out, print) as mine:
        mine.images_in_hand = 7
        end = time.monotonic() + 5
        while lease.read_lease(out).images_in_hand != 7:
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.mark.parametrize("jump", [-86400, 86400])
def test_a_clock_that_jumps_does_not_end_it(out, quick, monkeypatch, jump):
    really = time.time
    with held(out, print) as mine:
        monkeypatch.setattr(time, "time", lambda: really() + jump)
        time.sleep(0.6)
        mine.check()
    assert not (out / LEASE).exists()


def test_who_slept_while_another_came_and_went_learns_of_it(out, quick):
    with held(out, print) as mine:
        (out / LEASE).unlink()
        time.sleep(0.6)
        with pytest.raises(IncompleteRun, match="it has ended already, and its lease with it"):
            mine.check()
    assert not (out / LEASE).exists()


def test_who_slept_past_its_end_learns_that_another_has_it_and_leaves_it_alone(out, quick):
    with held(out, print) as mine:
        write_lease(out)
        time.sleep(0.6)
        with pytest.raises(IncompleteRun, match="another run has taken over, this one ends: elsewhere"):
            mine.check()
    assert json.loads((out / LEASE).read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("error", [OSError("gone"), MemoryError()])
def test_a_storage_or_a_memory_that_fails_for_a_while_is_outlived(out, quick, monkeypatch, caplog, error):
    def fail(_path):
        raise error

    caplog.set_level(logging.INFO)
    with held(out, print) as mine:
        with monkeypatch.context() as broken:
            broken.setattr(Path, "read_bytes", fail)
            time.sleep(0.5)
        time.sleep(0.5)
        mine.check()
    assert "cannot be renewed" in caplog.text
    assert not (out / LEASE).exists()


def test_verify_and_readers_pass_over_it(out, tmp_path):
    make_corpus(make_photos(tmp_path / "photos"), out)
    with held(out, print):
        assert verify(out).problems == []
        assert len(Corpus(out)) == 7
    write_lease(out)
    assert verify(out).problems == []


def test_a_folder_with_a_lease_alone_may_become_a_corpus(out, tmp_path):
    write_lease(out)
    assert len(open_corpus(make_photos(tmp_path / "photos"), out).todo()) == 3


RACER = """
import sys, time
from pathlib import Path
from maskmill.pipelines.errors import IncompleteRun
from maskmill.pipelines.storage.lease import held
out, begin = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, begin - time.time()))
try:
    with held(out, print):
        print("held", flush=True)
        sys.stdin.read()
except IncompleteRun as error:
    print("refused", error, flush=True)
"""


def test_of_many_at_once_one_holds_it_and_the_others_are_told_who(out):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    begin = time.time() + 1
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(out), str(begin)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for _ in range(4)
    ]
    said = [racer.stdout.readline() for racer in racers]
    (holder,) = (racer.pid for racer, line in zip(racers, said, strict=True) if line == "held\n")
    assert sum(f"process {holder}" in line for line in said) == 3
    for racer in racers:
        racer.communicate()
    assert list(out.iterdir()) == []


def test_kill_9_leaves_a_lease_that_the_next_one_takes_at_once(out):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    racer = subprocess.Popen(
        [sys.executable, "-c", RACER, str(out), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert racer.stdout.readline() == "held\n"
    racer.send_signal(signal.SIGKILL)
    time.sleep(0.2)
    assert (out / LEASE).exists()
    assert take(out)[0] < 5
    racer.communicate()

"""What a user's machine lacks: each command works without it, or ends with one line and code 2 or 4."""

import os
import shutil
import subprocess
import sys

import pytest

from maskmill.model.checkpoints.zoo import cache_folder
from maskmill.pipelines.cli import main
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.storage.paths import place
from tests.support.corpora import make_corpus, make_photos

MASKMILL = (sys.executable, "-m", "maskmill")
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return make_corpus(make_photos(folder / "photos"), folder / "corpus")


def run(*words, cwd=None, stdout=subprocess.PIPE, **environment):
    """A command in a process of its own: its exit code, and what it says on standard error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, cwd=cwd, env=environment, check=False)
    return done.returncode, done.stderr.decode()


def shell(command, **environment):
    """The same, as bash reads it; `$0` is our program."""
    return run("bash", "-c", command.replace("maskmill", " ".join(MASKMILL)), **environment)


def can_mount():
    """Whether this process may have a view of the file system of its own."""
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and run(*tried)[0] == 0


@pytest.mark.parametrize("words", ["--help", "status {corpus}"])
def test_a_full_standard_output_is_one_line(words, corpus):
    said = "maskmill: standard output: cannot be written: No space left on device\n"
    assert shell(f"maskmill {words} > /dev/full".format(corpus=corpus)) == (4, said)


def test_a_reader_that_has_gone_is_no_error(corpus):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(*MASKMILL, "status", str(corpus), stdout=writing) == (0, "")
    finally:
        os.close(writing)


def test_standard_error_may_be_closed_and_names_may_be_any(corpus, tmp_path):
    page = tmp_path / os.fsdecode(b"\xf0\x9f\x98\x80 \xff.html")
    command = 'maskmill gallery "$CORPUS" --out "$PAGE" 2>&-'
    assert shell(command, CORPUS=str(corpus), PAGE=str(page), PYTHONIOENCODING="ascii") == (0, "")
    assert page.is_file()


def test_standard_error_may_be_full():
    assert shell("maskmill verify /nothing/here 2> /dev/full") == (2, "")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    code = (
        "from maskmill.pipelines.process import guarded_streams\n"
        "with guarded_streams(): print(open('first', 'w').fileno() > 2, file=open('said', 'w'))"
    )
    assert run("bash", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-', cwd=tmp_path)[0] == 0
    assert (tmp_path / "said").read_text() == "True\n"


def test_what_an_encoding_lacks_is_written_out():
    done = subprocess.run(
        [*MASKMILL, "generate", "--help"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"INPUT\\u2026" in done.stdout


def test_a_folder_that_was_removed_is_one_line(tmp_path):
    code, said = shell(
        f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; maskmill report c --out p.html"
    )
    assert code == 2
    assert said.endswith("change to one that exists\n")
    assert said.count("\n") == 1


LIMITED = """
import os, resource, sys
from maskmill.pipelines.cli import main
main(["models"])  # loads all that it needs, which another user may not be allowed to read
{before}
os.getuid() or os.setuid(54321)
sys.exit(main({words}))
"""


@AS_ROOT
def test_a_user_without_a_home_needs_none():
    code = LIMITED.format(before="os.environ.pop('HOME')", words=["models"])
    assert run(sys.executable, "-c", code) == (0, "")


def test_threads_that_cannot_be_started_are_one_line():
    """Where OpenBLAS would interrupt the process, and OpenMP end it."""
    few = "os.environ.pop('HOME'); resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))"
    code, said = run(sys.executable, "-c", LIMITED.format(before=few, words=["verify", "/nothing/here"]))
    assert code == 4
    assert said.startswith("maskmill: this process can start only 0 of the ")
    assert said.count("\n") == 1
    assert run(sys.executable, "-c", LIMITED.format(before=few, words=["models"])) == (0, "")


def test_home_folders_are_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MASKMILL_CACHE", "~/cache")
    assert place("~/corpus") == tmp_path / "corpus"
    assert cache_folder() == tmp_path / "cache"
    (tmp_path / "mine.yaml").write_text("shard_size: 7\n")
    assert main(["generate", "--config", "~/mine.yaml", "--print-config"]) == 0
    assert "shard_size: 7\n" in capsys.readouterr().out
    photos = make_photos(tmp_path / "photos")
    (lists := tmp_path / "lists").mkdir()
    name = min(photos.glob("*.*")).name
    (lists / "all.txt").write_text(f"~/photos/{name}\n~nobodyhere/x.jpg\n")
    listed = list_inputs(["~/lists/all.txt"], (".jpg", ".png")).column("uri").to_pylist()
    assert sorted(listed) == sorted([f"{photos}/{name}", f"{lists}/~nobodyhere/x.jpg"])


@pytest.mark.parametrize(
    "words",
    [
        "generate ~nobodyhere/x --out {tmp}/c",
        "generate {tmp} --out ~nobodyhere/c",
        "generate {tmp} --out {tmp}/c --workers 0 --log-json ~nobodyhere/log",
        "generate {tmp} --out {tmp}/c --workers 0 --config ~nobodyhere/x.yaml",
        "generate {tmp} --out {tmp}/c --workers 0 --set model.checkpoint=~nobodyhere/x.pth",
    ],
)
def test_a_user_whom_nobody_knows_is_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.format(tmp=tmp_path).split()) == 2
    said = capsys.readouterr().err
    assert "~nobodyhere" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_called_like_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~1.jpg").touch()
    assert place("~1.jpg").is_file()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(28, "No space left on device", "/tmp/x"), 2, "OSError: [Errno 28] No space left on device"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 2, "No usable temporary"),
        (MemoryError("Unable to allocate 3 GiB"), 4, "out of memory: MemoryError: Unable to allocate 3 GiB"),
        (RuntimeError("can't start new thread"), 4, "out of memory, threads or processes: "),
        (
            ImportError("advice\nlibGL.so.1: cannot open shared object file"),
            2,
            "be loaded: libGL.so.1: cannot",
        ),
    ],
)
def test_what_no_code_of_ours_can_mend_is_one_line(monkeypatch, capsys, raised, code, said):
    def app(**_options):
        raise raised

    monkeypatch.setattr("maskmill.pipelines.cli.app", app)
    assert main(["models"]) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.slow
def test_a_run_needs_nothing_but_a_place_for_its_corpus(photos, tiny_settings, tmp_path):
    """No other folder can be written; no shared memory, home or standard error; standard output is full."""
    if not can_mount():
        pytest.skip("this machine allows no mounts")
    out = tmp_path / "out"
    out.mkdir()
    read_only = (
        f"mount --bind {out} {out}; mount -t tmpfs -o ro none /dev/shm; mount -o remount,ro,bind /; cd /"
    )
    settings = " ".join(f"--set '{setting}'" for setting in tiny_settings)
    generate = f"maskmill generate {photos} --out {out}/corpus --workers 0 {settings} > /dev/full 2>&-"
    command = f"{read_only}; unset HOME; export TMPDIR=/nonexistent; {generate}".replace(
        "maskmill", " ".join(MASKMILL)
    )
    assert run("unshare", "-m", "bash", "-c", command) == (4, "")
    assert len(list(Corpus(out / "corpus").rows(status="ok"))) == 12
    command = f"{read_only}; {' '.join(MASKMILL)} report {out}/corpus --workers 2"
    code, said = run("unshare", "-m", "bash", "-c", command)
    assert code == 0
    assert "no shared memory for processes" in said
    assert "Traceback" not in said

"""The command line: everything that can be typed wrongly ends with exit code 2 and one line."""

import os
import pty
import shlex
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from maskmill.pipelines import cli
from maskmill.pipelines.cli import main
from maskmill.pipelines.errors import IncompleteRun, MaskmillError
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.schema import ROW_SCHEMA
from tests.support.corpora import make_corpus, make_photos


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("genrate", "No such command 'genrate'"),
        ("--colour", "No such option"),
        ("generate", "expected at least one INPUT"),
        ("generate photos", "expected --out CORPUS"),
        ("generate photos --out", "requires an argument"),
        ("generate photos --out c --outt x", "No such option: --outt"),
        ("generate photos --out c --overwrite --extend", "expected --overwrite or --extend, not both"),
        ("generate photos --out c --ray auto --workers 0", "expected --ray or --workers 0"),
        ("generate photos --out c --workers many", "--workers: expected N, or MIN:MAX"),
        ("generate photos --out c --workers -1", "--workers: expected N, or MIN:MAX"),
        ("generate photos --out c --config nanoo", "--config nanoo: expected a YAML file"),
        ("generate photos -o c --model vit_x", "--model vit_x: known: nano, vit_t, vit_b"),
        ("generate photos -o c --points-per-side many", "Invalid value for '--points-per-side'"),
        ("generate photos -o c --points-per-side 0", "generator.points_per_side: should be greater"),
        ("generate photos -o c --pred-iou-thresh 2", "generator.pred_iou_thresh: should be less"),
        ("generate photos -o c --device tpu", "model.device: should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (
            "generate photos --out c --set generator.points_per_sid=3",
            "did you mean generator.points_per_side?",
        ),
        ("generate photos --out c --set workers", "expected key=value"),
        ("generate no-such-folder --out c --workers 0", "no-such-folder: there is no such file or folder"),
        ("verify", "Missing argument"),
        ("verify no-such-corpus", "no-such-corpus"),
        ("report", "Missing argument"),
        ("report no-such-corpus", "no-such-corpus"),
        ("gallery no-such-corpus", "Missing option"),
        ("models got sam_vit_b", "No such command"),
        ("models get", "Missing argument"),
        ("models get sam_vit_x", "did you mean"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_line(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    assert expected in shown.err
    assert shown.err.startswith("maskmill: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file.txt/corpus", "a file is in the place of a folder"),
        ("/proc/x/corpus", "No such file or directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_wrong_use(
    out, reason, photos, tiny_settings, corpus, capsys, tmp_path
):
    (tmp_path / "file.txt").touch()
    settings = [word for setting in tiny_settings for word in ("--set", setting)]
    for words in (["generate", str(photos), "--workers", "0", *settings], ["gallery", str(corpus)]):
        assert main([*words, "--out", str(tmp_path / out)]) == 2
        assert capsys.readouterr().err == f"maskmill: {tmp_path / out}: cannot be written: {reason}\n"


def test_report_takes_brackets_as_they_are(capsys, tmp_path):
    out = make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    path = shard_path(out, 0)
    rows = pq.read_table(path).to_pylist()
    rows[1]["error"]["class"] = "[/b]"
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "rejected: [/b]" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("│ masks per image") and "0.25" in line)
    assert line.split()[5::2] == ["0.25", "1", "1", "2.5", "3"]  # of 0, 1, 1, 1, 3, 3 masks


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return make_corpus(make_photos(folder / "photos"), folder / "corpus")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (MaskmillError("a\n  b"), 1, "maskmill: a b\n"),
        (IncompleteRun("later"), 4, "maskmill: later\n"),
        (KeyboardInterrupt(), 130, "maskmill: interrupted\n"),
    ],
)
def test_exceptions_become_exit_codes(monkeypatch, capsys, raised, code, said):
    def app(**_options):
        raise raised

    monkeypatch.setattr(cli, "app", app)
    assert main(["models"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "cleared", "hint"),
    [
        (["generate", "a b", "--out", "c"], False, "stay, go on with: maskmill generate 'a b' --out c\n"),
        (
            ["generate", "a", "--overwrite"],
            False,
            "not removed yet, go on with: maskmill generate a --overwrite\n",
        ),
        (["generate", "a", "--overwrite"], True, "committed shards stay, go on with: maskmill generate a\n"),
        (["verify", "generate"], False, "interrupted\n"),
        (["gallery", "generate", "--out", "page.html"], False, "interrupted\n"),
    ],
)
def test_only_generate_is_told_how_to_go_on(monkeypatch, capsys, words, cleared, hint):
    def app(obj, **_options):
        if cleared:
            obj.without_overwrite()
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    assert main(words) == 130
    assert capsys.readouterr().err.endswith(hint)


def test_a_bug_is_left_to_python(monkeypatch):
    def app(**_options):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def _commands():
    """Each command's words and click's object for it."""
    group = typer.main.get_command(cli.app)
    models = group.commands["models"]
    yield from ((name, command) for name, command in group.commands.items())
    yield from ((f"models {name}", command) for name, command in models.commands.items())


COMMANDS = dict(_commands())


def test_help_is_no_error(capsys):
    shown = set()
    for words in ("", "-h", "--help"):
        assert main(words.split()) == 0
        shown.add(capsys.readouterr().out)
    (page,) = shown
    assert "Usage: maskmill" in page
    assert not [name for name in COMMANDS if f"│ {name.split()[0]} " not in page]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_that_can_be_typed(name, capsys):
    assert main([*name.split(), "-h"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    at = next(number for number, line in enumerate(lines) if line.startswith("Example: "))
    words = shlex.split(" ".join(lines[at:]))[1:]
    assert words[: 1 + len(name.split())] == ["maskmill", *name.split()]
    assert COMMANDS[name].make_context(name, words[1 + len(name.split()) :], obj=None)


@pytest.mark.parametrize(
    ("command", "fitting"),
    [
        ("generate", ["mobile_sam", "nano", "sa1b", "sam_vit_h"]),
        ("bench", ["mobile_sam", "nano", "sa1b", "sam_vit_h"]),
        ("train", ["train_nano", "train_sam"]),
        ("pretrain", ["pretrain_nano"]),
    ],
)
def test_the_help_of_config_lists_the_shipped_names_that_fit(command, fitting):
    (option,) = (option for option in COMMANDS[command].params if option.name == "config")
    assert option.help.partition("configuration: ")[2] == f"{', '.join(fitting)}."


def test_words_and_names_can_be_completed():
    def completed(*words):
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "_MASKMILL_COMPLETE": "complete_bash",
            "COMP_WORDS": shlex.join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        code = "import sys; from maskmill.pipelines.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
        )
        return done.stdout.split()

    assert completed("maskmill", "gen") == ["generate"]
    assert completed("maskmill", "generate", "--config", "sa") == ["sa1b", "sam_vit_h"]


@pytest.mark.parametrize(("environment", "colour"), [({}, b"\x1b[1;31m"), ({"NO_COLOR": "1"}, b"\x1b[1m")])
def test_an_error_has_colours_where_the_terminal_does(environment, colour):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", **environment}
    terminal, end = pty.openpty()
    typed = [sys.executable, "-m", "maskmill", "genrate", "[red]"]
    done = subprocess.run(typed, stdout=end, stderr=end, env=env, check=False)
    shown = os.read(terminal, 9999)
    os.close(terminal)
    os.close(end)
    assert done.returncode == 2
    assert shown.startswith(colour + b"maskmill: \x1b[0mNo such command 'genrate'")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("maskmill ")


def test_models_says_which_are_here_and_which_preset_uses_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "sam-vit-huge.safetensors").touch()
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    rows = {words[0]: words[1:] for line in listed.splitlines() if (words := line.split())}
    assert rows["nano"] == ["nano", "10", "MB", "bundled", "nano", "research"]
    assert rows["mobile_sam"] == ["vit_t", "41", "MB", "no", "mobile_sam", "Apache-2.0"]
    assert rows["sam_vit_h"] == ["vit_h", "2,565", "MB", "no", "Apache-2.0"]
    assert rows["facebook/sam-vit-huge"] == ["vit_h", "?", "yes", "sa1b,", "sam_vit_h", "Apache-2.0"]
    assert "https" not in listed
    assert main(["models", "--verbose"]) == 0
    listed = capsys.readouterr().out
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth" in listed
    assert "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e" in listed


def test_a_model_is_named_by_its_size_or_by_its_checkpoint(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path))
    assert main(["generate", "photos", "-o", "c", "--model", "mobile_sam"]) == 2
    assert capsys.readouterr().err == (
        "maskmill: --model mobile_sam: its weights are not downloaded yet: maskmill models get mobile_sam\n"
    )
    (tmp_path / "sam-vit-base.safetensors").touch()
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    found = {}
    for name in ("vit_b", "sam_vit_b", "facebook/sam-vit-base"):
        assert main(["generate", "--model", name, "--print-config"]) == 0
        found[name] = yaml.safe_load(capsys.readouterr().out)["model"]
    assert found["vit_b"] == found["sam_vit_b"]
    assert (found["vit_b"]["name"], found["vit_b"]["checkpoint"]) == ("vit_b", None)
    other = found["facebook/sam-vit-base"]
    assert (other["name"], other["checkpoint"]) == ("vit_b", str(tmp_path / "sam-vit-base.safetensors"))


def test_options_of_the_model_are_values_of_the_configuration(capsys):
    words = "--model vit_b --device cpu --points-per-side 8 --pred-iou-thresh 0.5 --stability-score-thresh 0"
    typed = ["generate", *words.split(), "--checkpoint", "odd: #name.pth", "--print-config"]
    assert main([*typed, "--set", "generator.points_per_side=9"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    model, generator = printed["model"], printed["generator"]
    assert (model["name"], model["device"], model["checkpoint"]) == ("vit_b", "cpu", "odd: #name.pth")
    assert generator["points_per_side"] == 8, "what has an option of its own wins over --set"
    assert (generator["pred_iou_thresh"], generator["stability_score_thresh"]) == (0.5, 0)


def test_print_config_shows_what_would_run_and_needs_no_input(capsys):
    assert (
        main(["generate", "--config", "sa1b", "--set", "shard_size=9", "--workers", "3", "--print-config"])
        == 0
    )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["shard_size"], printed["workers"], printed["generator"]["crop_n_layers"]) == (9, 3, 2)


def test_options_of_the_workers_are_values_of_the_configuration(capsys):
    asked = ["--workers", "2:8", "--gpus-per-worker", "0.5", "--cpus-per-worker", "3"]
    assert main(["generate", *asked, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["workers"], printed["cluster"]["min_workers"]) == (8, 2)
    assert (printed["cluster"]["gpus_per_worker"], printed["threads_per_worker"]) == (0.5, 3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workers", "8:2"], "--workers: expected N, or MIN:MAX"),
        (["--workers", "0:3"], "--workers: expected N, or MIN:MAX"),
        (["--workers", ":3"], "--workers: expected N, or MIN:MAX"),
        (["--workers", "2:"], "--workers: expected N, or MIN:MAX"),
        (["--workers", "two"], "--workers: expected N, or MIN:MAX"),
        (["--workers", "-1"], "--workers: expected N, or MIN:MAX"),
        (["--gpus-per-worker", "many"], "cluster.gpus_per_worker"),
        (["--gpus-per-worker", "-1"], "cluster.gpus_per_worker"),
        (["--cpus-per-worker", "0"], "threads_per_worker"),
    ],
)
def test_wrong_options_of_the_workers_are_one_line(words, expected, capsys):
    assert main(["generate", *words, "--print-config"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.splitlines()) == 1


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys; from maskmill.pipelines.cli import main\n"
        "main(['--version']); main(['generate', '--help'])\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines()[-1] == "[]"

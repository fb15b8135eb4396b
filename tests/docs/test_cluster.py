"""`docs/cluster.md`: its commands are commands, its files are there, the messages it explains are given."""

import re
import shutil
from pathlib import Path

import pytest
from ray.scripts.scripts import cli as ray_cli

from tests.support.command_lines import check_maskmill, commands_in, parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^ *```\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL))
INLINE = "\n".join(re.findall(r"`([^`\n]+)`", TEXT))
TYPED = f"{SHELL}\n" + "\n".join(
    span for span in INLINE.splitlines() if span.count(" ") > 1
)  # not a mere name
MASKMILL = list(commands_in(TYPED, "maskmill"))
RAY = list(commands_in(TYPED, "ray"))


@pytest.mark.parametrize("words", MASKMILL, ids=" ".join)
def test_each_command_of_ours_has_options_that_there_are(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the page's own configuration lies
    shutil.copy(ROOT / "configs" / "sam_vit_h.yaml", "run.yaml")
    check_maskmill(words)


@pytest.mark.parametrize("words", RAY, ids=" ".join)
def test_each_command_of_rays_has_options_that_there_are(words):
    command, _ = parse(words, ray_cli)
    assert command.name not in ("cli", "job"), f"{words}: no such command"


def test_the_commands_were_found():
    assert {words[0] for words in MASKMILL} >= {"generate", "status", "verify", "bench", "models"}
    assert {words[0] for words in RAY} >= {
        "up",
        "down",
        "exec",
        "job",
        "start",
        "status",
        "monitor",
        "dashboard",
    }


def test_an_option_that_there_is_not_would_be_found():
    [words, *_] = commands_in("maskmill generate photos --out corpus --wrokers 3 | cat", "maskmill")
    assert words == ["generate", "photos", "--out", "corpus", "--wrokers", "3"]
    with pytest.raises(Exception, match="wrokers"):
        check_maskmill(words)


def test_each_link_and_each_file_is_there():
    links = re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", TEXT)
    assert links
    for path, anchor in links:
        page = ROOT / "docs" / path if path else ROOT / "docs" / "cluster.md"
        assert page.exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            named = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in named, f"{path}{anchor}"
    named = set(
        re.findall(r"(?:configs|examples|tests|docs)/[\w/.-]+\.\w+|\bcluster\.yaml", f"{SHELL}\n{INLINE}")
    )
    assert len(named) > 4
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize(
    ("message", "module"),
    [
        ("expected a running Ray cluster's address", "pipelines/workers/cluster/connect.py"),
        ("something answers there", "pipelines/workers/cluster/connect.py"),
        ("no node has room for a worker of", "pipelines/workers/cluster/connect.py"),
        ("a worker cannot import maskmill", "pipelines/workers/ray_actors.py"),
        ("expected cpu or auto, got cuda, and torch finds no GPU", "pipelines/workers/loading.py"),
        ("is not this run's corpus there", "pipelines/workers/loading.py"),
        ("expected the run's weights of", "pipelines/workers/loading.py"),
        ("no weights for", "model/checkpoints/finding.py"),
        ("another run is at work on it", "pipelines/storage/lease.py"),
    ],
)
def test_a_message_that_is_explained_is_one_that_is_given(message, module):
    assert message in TEXT
    assert message in (ROOT / module).read_text()

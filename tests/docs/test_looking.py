"""The page on looking: its commands are run as they stand there, over a small corpus."""

import shlex
from pathlib import Path

import pytest

from maskmill.pipelines.cli import main
from tests.support.corpora import make_corpus, make_photos

PAGE = Path(__file__).parents[2] / "docs" / "looking.md"
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("maskmill ") and not line.startswith("maskmill view ")  # test_view.py runs that one
]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_does_what_the_page_says(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_corpus(make_photos(tmp_path / "photos"), tmp_path / "corpus")
    make_corpus(make_photos(tmp_path / "more", 9), tmp_path / "other")
    assert main(words) == 0
    written = [word for word in words if word.endswith(".html")]
    assert all((tmp_path / name).is_file() for name in written)
    assert capsys.readouterr().err == ""


def test_the_page_has_commands_and_its_picture():
    assert {words[0] for words in COMMANDS} == {"gallery", "report"}
    assert (PAGE.parent / "looking.jpg").stat().st_size < 300_000

"""The hints that say what to install name the packages of pyproject.toml's extras."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from maskmill.pipelines import extras

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def normalised(requirement):
    name, rest = re.match(r"([\w.-]+)(.*)", requirement).groups()
    return re.sub(r"[-_.]+", "-", name).lower() + rest


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name not in ("dev", "readers")])
def test_a_hint_names_what_the_extra_has(extra):
    words = shlex.split(extras.pip_install(extra))
    assert words[:2] == ["pip", "install"]
    assert sorted(map(normalised, words[2:])) == sorted(map(normalised, EXTRAS[extra]))


def test_where_maskmill_is_not_installed_the_hint_is_for_a_checkout(monkeypatch):
    def requires(name):
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", requires)
    assert extras.pip_install("s3") == "pip install '.[s3]' in a checkout of maskmill"


def test_no_other_hint_names_an_extra():
    """`pip install maskmill[extra]` finds another project's package, or none."""
    sources = [path for folder in ("engine", "model", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = r"install\W+maskmill\b"
    assert [path for path in (*sources, *pages) if re.search(named, path.read_text())] == []

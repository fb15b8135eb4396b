"""The house: which way imports run, who may know Ray, and what stays unloaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "engine", "pipelines")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

THIRD_PARTY = {
    "model": {"torch", "numpy", "numba", "safetensors", "platformdirs"},
    "engine": {"numpy", "torch", "PIL", "pycocotools", "pydantic"},
}
# Read by whoever opens a corpus, or loaded before a worker has said what it needs.
LIGHT = (
    "corpus.reader",
    "corpus.images",
    "corpus.views",
    "decoding.image",
    "errors",
    "exchange.export",
    "exchange.sa1b_import",
    "format.manifest",
    "format.plan",
    "format.run_record",
    "format.schema",
    "format.shards",
    "inputs.listing",
    "storage.atomic",
    "verification.corpus",
)


def imports_of(path):
    """Packages a module imports, ours by their own names; `TYPE_CHECKING` blocks and functions included."""
    found = set()
    here = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else ()
            found.add([*above, *(node.module or "").split(".")][0])
    return found


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    later = set(PACKAGES[PACKAGES.index(package) + 1 :])
    assert not imports_of(path) & later, "model ← engine ← pipelines"


@pytest.mark.parametrize("path", [path for path in MODULES if "pipelines" not in named(path)], ids=named)
def test_model_and_engine_know_only_what_they_are_made_of(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = THIRD_PARTY[package] | set(PACKAGES) | sys.stdlib_module_names
    assert imports_of(path) <= allowed


def test_ray_is_imported_in_one_module():
    assert [named(path) for path in MODULES if "ray" in imports_of(path)] == [
        "pipelines/workers/ray_actors.py"
    ]


def loaded_by(statement):
    """Names of all modules that are loaded after the statement, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_lazy(package):
    loaded = loaded_by(f"import maskmill.{package}")
    assert not loaded & {"torch", "numpy", "ray", "pyarrow", "cv2"}
    assert {name.split(".")[1] for name in loaded if name.startswith("maskmill.")} == {package}


def test_what_reads_a_corpus_loads_neither_torch_nor_ray():
    loaded = loaded_by(f"import {', '.join(f'maskmill.pipelines.{name}' for name in LIGHT)}")
    assert not loaded & {
        "torch",
        "ray",
        "pandas",
        "maskmill.pipelines.workers.shard",
        "maskmill.pipelines.workers.ray_actors",
    }


def test_the_reader_is_light_by_pythons_own_account():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import maskmill.pipelines.corpus.reader"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pyarrow" in imported
    assert not imported & {"torch", "ray", "pandas"}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("maskmill.model", "load_sam"),
        ("maskmill.model", "Sam"),
        ("maskmill.model", "MODELS"),
        ("maskmill.engine", "MaskGenerator"),
        ("maskmill.engine", "GeneratorConfig"),
        ("maskmill.engine", "MaskRecord"),
        ("maskmill.pipelines.corpus.reader", "Corpus"),
    ],
)
def test_names_that_outside_code_imports(package, name):
    assert hasattr(__import__(package, fromlist=[name]), name)

"""The house: which way imports run, how full a folder is, who may know Ray, and what stays unloaded."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskmill

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "engine", "pipelines")

# A module imports from its own sub-package and from groups above its own. Names in a line are side by side:
# they do not import each other.
ORDER = {
    "model": """
        config failures
        kernels
        networks
        checkpoints
        training
    """,
    "engine": """
        config records
        codes grid runtime
        geometry resampling
        filters nms prepared small_regions
        candidates
        backends
        generator
    """,
    "pipelines": """
        text
        errors extras
        prefetch signals machine opencv
        process
        decoding storage
        inputs config pages
        format
        corpus writing
        labelled
        verification torch_dataset gallery report workers
        exchange bench generation evaluation
        training
        commands
        cli
    """,
}
MOST_MODULES = 13  # in a folder
THIRD_PARTY = {
    "model": {"torch", "numpy", "numba", "safetensors", "platformdirs"},
    "engine": {"numpy", "torch", "PIL", "pydantic"},
}
# Read by whoever opens a corpus, or loaded before a worker has said what it needs.
LIGHT = (
    "corpus.images",
    "corpus.masks",
    "corpus.reader",
    "corpus.views",
    "decoding.image",
    "errors",
    "exchange.export",
    "exchange.sa1b_import",
    "format.manifest",
    "format.plan",
    "format.schema",
    "format.shards",
    "inputs.listing",
    "inputs.reader",
    "machine",
    "storage.atomic",
    "verification.corpus",
    "writing.open",
)


def module_of(path):
    """`pipelines/format/schema.py` → `pipelines.format.schema`; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def homes_of(package):
    """The names that one of the lazy packages offers, and the modules of ours that they come from, as it says
    when it runs; and as it says to type checkers.
    """
    runs, checked = {}, {}
    path = ROOT / package / "__init__.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            checked |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            runs = {name: home.removeprefix(".") for name, home in ast.literal_eval(node.value).items()}
    return runs, checked


HOMES = {package: homes_of(package)[0] for package in ("model", "engine")}


def imports_of(module):
    """Modules of ours that a module imports, and names of other packages; anywhere in it, `TYPE_CHECKING`
    blocks and functions included. What a lazy package offers counts as imported from its home.
    """
    path, ours, others = MODULES[module], set(), set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            above = ["maskmill", *package.split(".")]
            parts = [*above[: len(above) - node.level + 1], *(node.module or "").split(".")]
            source = ".".join(part for part in parts[1:] if part)
            if source:  # else it is `__version__`, which stands in `maskmill/__init__.py`
                for alias in node.names:
                    full, home = f"{source}.{alias.name}", HOMES.get(source, {}).get(alias.name)
                    ours.add(full if full in MODULES else f"{source}.{home}" if home else source)
    return ours, others


IMPORTS = {module: imports_of(module) for module in MODULES}


def floor_of(module):
    """The line of ORDER that a module is in, and its name there; None for a package's own `__init__`."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    lines = [line.split() for line in ORDER[package].split("\n")]
    return next(((floor, name) for floor, line in enumerate(lines) if name in line), None)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_has_this_order(package):
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition(f"\n`{package}/`\n")[2].partition("\n\n`")[0].partition("\n\nRay")[0]
    lines = [
        re.findall(r"`(\w+)`", row.split(" | ")[0]) for row in table.splitlines() if row.startswith("| `")
    ]
    assert lines == [line.split() for line in ORDER[package].split("\n") if line.strip()]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    package = module.split(".")[0]
    allowed = set(PACKAGES[: PACKAGES.index(package) + 1])
    ours, others = IMPORTS[module]
    assert "maskmill" not in others, "modules import each other relatively: one path is true everywhere"
    assert not others & {*PACKAGES, "tests", "benchmarks"}
    assert {name.split(".")[0] for name in ours} <= allowed, "model ← engine ← pipelines"
    mine = floor_of(module)
    if mine is None:
        assert module == package, f"{module} stands in no line of ORDER"
        return
    for name in ours:
        if name.split(".")[0] == package:
            theirs = floor_of(name)
            assert theirs is not None, f"{module} imports all of {name}"
            assert theirs[1] == mine[1] or theirs[0] < mine[0], f"{module} may not import {name}"


def test_there_is_no_circle():
    """Not behind `TYPE_CHECKING` either."""
    done, way = set(), []

    def follow(module):
        assert module not in way, f"a circle: {' → '.join([*way[way.index(module) :], module])}"
        if module in done:
            return
        way.append(module)
        for name in sorted(IMPORTS[module][0]):
            follow(name)
        done.add(way.pop())

    for module in MODULES:
        if module not in HOMES:  # which name their classes for type checkers only
            follow(module)


def test_nothing_is_imported_by_a_name_made_up_at_run_time():
    """But for the lazy packages' own names; else what stands above would not be all."""
    found = [
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.Attribute | ast.alias)
        and {getattr(node, name, None) for name in ("id", "attr", "name")} & {"import_module", "__import__"}
    ]
    assert set(found) == {"model", "engine"}


@pytest.mark.parametrize("package", ["maskmill", "model", "engine"])
def test_a_lazy_package_says_the_same_to_type_checkers(package):
    runs, checked = homes_of(package)
    assert runs == checked
    module = importlib.import_module("maskmill" if package == "maskmill" else f"maskmill.{package}")
    assert set(runs) == {*module.__all__} - {"__version__"}


def test_what_is_imported_exists():
    assert {name for ours, _ in IMPORTS.values() for name in ours} <= MODULES.keys()


def test_folders_are_not_full():
    folders = [path.parent for path in MODULES.values()]
    assert [folder for folder in sorted(set(folders)) if folders.count(folder) > MOST_MODULES] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] in THIRD_PARTY])
def test_model_and_engine_know_only_what_they_are_made_of(module):
    assert IMPORTS[module][1] <= THIRD_PARTY[module.split(".")[0]] | sys.stdlib_module_names


def test_ray_is_imported_in_three_modules():
    importers = {module for module in MODULES if "ray" in IMPORTS[module][1]}
    assert importers == {
        f"pipelines.workers.{name}" for name in ("cluster.connect", "cluster.own_ray", "ray_actors")
    }


def test_opencv_is_imported_in_one_module_for_what_needs_it():
    """A bare server cannot load it, and runs everything else."""
    assert [module for module in MODULES if "cv2" in IMPORTS[module][1]] == ["pipelines.opencv"]
    users = {module.split(".")[1] for module in MODULES if "pipelines.opencv" in IMPORTS[module][0]}
    assert users == {"bench", "evaluation", "labelled", "training"}


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


def test_the_public_names():
    assert set(dir(maskmill)) == {
        "Corpus",
        "GeneratorConfig",
        "MaskGenerator",
        "View",
        "__version__",
        "load_sam",
        "open_image",
    }
    assert all(getattr(maskmill, name) for name in dir(maskmill))
    with pytest.raises(AttributeError, match="module 'maskmill' has no attribute 'Predicator'"):
        maskmill.Predicator  # noqa: B018


@pytest.mark.parametrize("package", ["", ".engine", ".model", ".pipelines"])
def test_packages_are_lazy(package):
    loaded = loaded_by(f"import maskmill{package}")
    assert not loaded & {"torch", "numpy", "ray", "pyarrow", "cv2", "pydantic"}
    ours = {name for name in loaded if name.split(".")[0] == "maskmill"}
    assert ours == {"maskmill", f"maskmill{package}"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_a_second_name(package):
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stderr.splitlines()[-1] == f"ImportError: import maskmill.{package}, not {package}"


def test_the_driver_of_workers_loads_no_torch():
    """A second of every run with Ray, beside the second that each worker takes."""
    loaded = loaded_by(
        "from maskmill.pipelines.config.run import load_config; "
        "from maskmill.pipelines.generation import generate; "
        "from maskmill.pipelines.workers import loading, placement, ray_actors; "
        "config = load_config('nano', []); placement.this_machine(config); "
        "loading.weights_sha256(loading.with_thresholds(config).model)"
    )
    assert "ray" in loaded
    assert not loaded & {"torch", "numba", "cv2"}


def test_what_reads_a_corpus_loads_neither_torch_nor_ray():
    for statement in (
        "from maskmill import Corpus, View, open_image",
        f"import {', '.join(f'maskmill.pipelines.{name}' for name in LIGHT)}",
    ):
        loaded = loaded_by(statement)
        assert "pyarrow" in loaded
        assert not loaded & {"torch", "ray", "pandas", "cv2"}
        assert not loaded & {"maskmill.pipelines.workers.shard", "maskmill.pipelines.workers.ray_actors"}


def test_the_reader_is_light_by_pythons_own_account():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from maskmill import Corpus"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pyarrow" in imported
    assert not imported & {"torch", "ray", "pandas"}


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("maskmill.model", ["CheckpointError", "MODELS", "Sam", "SamConfig", "load_sam"]),
        (
            "maskmill.engine",
            ["DROP_REASONS", "GeneratedMasks", "GeneratorConfig", "MaskGenerator", "MaskRecord", "Rle"],
        ),
        ("maskmill.pipelines.torch_dataset", ["CorpusImages", "CorpusStream", "for_detection"]),
    ],
)
def test_names_that_outside_code_imports(package, names):
    module = __import__(package, fromlist=names)
    assert sorted(module.__all__) == sorted(names)
    assert all(hasattr(module, name) for name in names)

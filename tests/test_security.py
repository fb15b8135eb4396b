"""What `docs/security.md` promises: nothing that is read runs code, and no secret is printed.

Elsewhere: a malicious checkpoint (`tests/model/checkpoints/test_loading.py`), tags in YAML
(`tests/pipelines/config/ test_config.py`), malformed run-length codes (`tests/engine/codes/test_single.py`),
names in a `corpus.json` that lead out of the corpus (`tests/pipelines/verification/test_corpus.py`),
addresses with passwords (`tests/pipelines/storage/test_s3.py`).
"""

import ast
import io
import tarfile
from pathlib import Path

import pytest

from maskmill.pipelines.inputs import reader
from maskmill.pipelines.inputs.listing import list_inputs
from maskmill.pipelines.text import redacted

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for package in ("model", "engine", "pipelines") for path in (ROOT / package).rglob("*.py")
)

NEVER = {
    "eval", "exec", "os.system", "os.popen", "marshal.load", "marshal.loads", "shelve.open",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
    "dill.load", "dill.loads", "joblib.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "ssl._create_unverified_context", "tempfile.mktemp", "shutil.unpack_archive", "subprocess.getoutput",
    "subprocess.getstatusoutput",
}  # fmt: skip
EXTRACTS = ("extract", "extractall")
"""Methods of tar and zip files, whatever the object is called."""


def unsafe_calls(source: str) -> list[str]:
    """The calls in a module that could run what it reads, or write where an archive says; a phrase each."""
    tree = ast.parse(source)
    full = {}  # a name in this module → what it is
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    own_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and {"yaml.SafeLoader"} & {dotted(base, full) for base in node.bases}
    }
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [f"line {call.lineno}: {fault}" for call in calls if (fault := fault_of(call, full, own_loaders))]


def dotted(node: ast.expr, full: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, full)}.{node.attr}"
    return full.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def fault_of(call: ast.Call, full: dict[str, str], own_loaders: set[str]) -> str | None:
    name = dotted(call.func, full)
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in NEVER or name.rpartition(".")[2] in EXTRACTS:
        return name
    if name == "yaml.load":
        loader = call.args[1] if len(call.args) > 1 else options.get("Loader")
        safe = {"yaml.SafeLoader", "yaml.CSafeLoader", *own_loaders}
        return None if loader and dotted(loader, full) in safe else "yaml.load without a safe loader"
    if name == "torch.load" and not is_literal(options.get("weights_only"), True):
        return "torch.load without weights_only=True"
    if name in ("numpy.load", "np.load") and not is_literal(options.get("allow_pickle", FALSE), False):
        return "numpy.load with pickles"
    if name.startswith("subprocess.") and not is_literal(options.get("shell", FALSE), False):
        return f"{name} with a shell"
    return None


FALSE = ast.Constant(False)


def is_literal(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path):
    assert unsafe_calls(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "from os import popen as p\np('ls')",
        "import pickle\npickle.load(file)",
        "import pickle as p\ndef f():\n    return p.loads(data)",
        "from pickle import loads\nloads(data)",
        "from pickle import Unpickler\nUnpickler(file).load()",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text, yaml.FullLoader)",
        "import yaml\nclass Mine(yaml.Loader): pass\nyaml.load(text, Loader=Mine)",
        "import yaml\nyaml.unsafe_load(text)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "from subprocess import Popen\nPopen(command, shell=really)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
    ],
)
def test_what_would_be_found(source):
    assert len(unsafe_calls(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nclass Mine(yaml.SafeLoader): pass\nyaml.load(text, Loader=Mine)",
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "import json\njson.load(file)",
    ],
)
def test_what_is_fine(source):
    assert unsafe_calls(source) == []


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIA:{}@bucket/photos/a.jpg",
        "https://user:{}@host/a.tar",
        "https://user:p@{}@host/a.tar",
        "https://{}@host/a.tar",
        "https://host/a.jpg?X-Amz-Credential=AKIA&X-Amz-Signature={}&X-Amz-Expires=60",
        "https://host/a.jpg?Expires=1&Signature={}",
        "https://storage.googleapis.com/b/a.jpg?X-Goog-Signature={}",
        "https://account.blob.core.windows.net/c/a.jpg?sv=2024&sig={}",
        "https://host/a.jpg?token={}",
        "could not read 's3://AKIA:{}@bucket/a' (twice: s3://AKIA:{}@bucket/a)",
    ],
)
def test_secrets_in_addresses_are_not_told(address):
    said = redacted(address.replace("{}", "hunter2"))
    assert "hunter2" not in said
    assert "***" in said


@pytest.mark.parametrize(
    "text", ["s3://bucket/a@b/c.jpg", "/photos/me@home/a.jpg", "gs://b/a.jpg?page=2", ""]
)
def test_what_is_no_secret_stays_readable(text):
    assert redacted(text) == text


def test_names_in_archives_lead_nowhere(tmp_path, monkeypatch):
    """Members are read in place: a name with `../`, or from the root, is a name."""
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "in" / "photos"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("../../stolen.png", "/stolen.png", "inside.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"PNG"))
    inputs = list_inputs([folder / "a.tar"], [".png"])
    assert [reader.read_input(uri) for uri in inputs["uri"].to_pylist()] == [b"PNG"] * 3
    assert all("#" in key for key in inputs["key"].to_pylist())
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts]
    assert outside == [folder / "a.tar"]
    assert not Path("/stolen.png").exists()

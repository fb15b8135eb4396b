"""What a user installs: one package, the same files however it was built, and right among files of the user's
own that have our folders' names.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOT_OURS = (".git", ".venv", "out", "runs", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
NO_PATHS = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
FOLDERS = ("configs", "engine", "model", "pipelines")


def build(kind, tree, out):
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The checkout, links and all, without what git does not know."""
    folder = tmp_path_factory.mktemp("tree") / "maskmill"
    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NOT_OURS)))


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel in it; what it depends on comes from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    for path in (packages / "maskmill").rglob("*.py"):
        take_along_what_is_compiled(ROOT / path.relative_to(packages / "maskmill"), path)
    return folder


def take_along_what_is_compiled(source, installed):
    """Numba's files of a module, whose source has to be as old: a quarter of a minute of compiling saved."""
    if source.exists():
        os.utime(installed, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        for kept in source.parent.glob(f"__pycache__/{source.stem}.*.nb[ic]"):
            (installed.parent / "__pycache__").mkdir(exist_ok=True)
            shutil.copy2(kept, installed.parent / "__pycache__")


def files_of(wheel):
    """Name and checksum of each file."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_is_one_package_with_every_file_in_it(wheel, tree):
    names = set(files_of(wheel))
    assert {name.split("/")[0] for name in names} == {"maskmill", "maskmill-0.1.0.dist-info"}
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "maskmill", *FOLDERS]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = {name.removeprefix("maskmill/") for name in listed if (ROOT / name).is_file()} - set(FOLDERS)
    assert {name.removeprefix("maskmill/") for name in names if name.startswith("maskmill/")} == wanted
    assert {"configs/nano.yaml", "model/weights/nano.safetensors", "pipelines/gallery/gallery.js"} <= wanted


def test_by_way_of_an_sdist_or_of_a_zip_download_it_is_the_same(wheel, tree, tmp_path):
    with tarfile.open(build("sdist", tree, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_of(build("wheel", unpacked, tmp_path / "from-sdist")) == files_of(wheel)

    zipped = Path(shutil.copytree(tree, tmp_path / "zipped", symlinks=True))
    links = [path for path in (zipped / "maskmill").iterdir() if path.is_symlink()]
    assert sorted(link.name for link in links) == sorted(FOLDERS)
    for link in links:  # as a zip of the tree has them: text files
        target = link.readlink()
        link.unlink()
        link.write_text(str(target))
    assert files_of(build("wheel", zipped, tmp_path / "from-zip")) == files_of(wheel)
    command = [sys.executable, "-c", "import maskmill"]  # from the tree itself, as an editable install has it
    done = subprocess.run(command, cwd=zipped, capture_output=True, text=True, env=NO_PATHS, check=False)
    assert "the symbolic links beside it, to engine, model, pipelines and configs, are missing" in done.stderr


@pytest.fixture
def hostile(tmp_path, photos) -> Path:
    """A folder of photographs, and of a user's own files that have names of ours; each says if it is run."""
    folder = tmp_path / "work"
    (folder / "photos").mkdir(parents=True)
    for number in range(2):
        shutil.copy(photos / "coffee" / f"{number}.png", folder / "photos")
    Image.open(photos / "coffee" / "0.png").convert("RGB").save(folder / "photo.jpg")
    own = 'open(__file__ + ".executed", "w").close()\nraise RuntimeError("the user\'s own file was run")\n'
    names = ["model.py", "engine/__init__.py", "pipelines.py", "configs/__init__.py", "antigravity.py"]
    for name in [*names, "text.py", "errors.py"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(own)
    (folder / "configs" / "nano.yaml").write_text("generator: {points_per_side: none of yours}\n")
    yield folder
    assert executed(folder) == []


def executed(folder):
    return list(folder.rglob("*.executed"))


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=NO_PATHS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


FEW_POINTS = ("generator.points_per_side=4", "generator.crop_n_layers=0", "generator.pred_iou_thresh=0.3")


def generate(*options):
    settings = [word for value in FEW_POINTS for word in ("--set", value)]
    return ["generate", "photos", "--out", "corpus", "--config", "nano", *settings, *options]


def test_the_command_has_two_ways_in(installed, tmp_path):
    assert run(tmp_path, installed / "bin/maskmill", "--version") == "maskmill 0.1.0\n"
    assert run(tmp_path, installed / "bin/python", "-m", "maskmill", "--version") == "maskmill 0.1.0\n"
    where = run(tmp_path, installed / "bin/python", "-c", "import maskmill; print(maskmill.__file__)")
    assert Path(where).is_relative_to(installed)


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--workers", "2"], marks=pytest.mark.slow)], ids=["default", "two workers"]
)
def test_a_run_among_files_with_our_names(installed, hostile, options):
    python = installed / "bin/python"  # -m puts the folder first, where the script `maskmill` does not
    run(hostile, python, "-m", "maskmill", *generate(*options))
    assert "corpus: verified, 2 images (2 ok, " in run(hostile, python, "-m", "maskmill", "verify", "corpus")
    assert executed(hostile) == []


@pytest.mark.slow
def test_a_run_in_a_folder_with_another_maskmill(installed, hostile):
    """The script's way in: workers have the maskmill of the command, not the one in the current folder."""
    shutil.copy(hostile / "model.py", hostile / "numpy.py")
    (hostile / "maskmill.py").write_text((hostile / "model.py").read_text() + "raise SystemExit('usage')\n")
    run(hostile, installed / "bin/maskmill", *generate())
    (hostile / "maskmill.py").unlink()
    package = Path(shutil.copytree(ROOT / "maskmill", hostile / "maskmill"))
    (package / "__init__.py").write_text((hostile / "model.py").read_text())
    run(hostile, installed / "bin/maskmill", *generate("--overwrite"))
    assert "corpus: verified, 2 images (2 ok, " in run(
        hostile, installed / "bin/maskmill", "verify", "corpus"
    )
    assert executed(hostile) == []


HIDE = """
import importlib.abc, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "maskmill":
            raise ModuleNotFoundError("No module named 'maskmill'")

if any("default_worker" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Hide())
"""


def test_a_worker_that_cannot_import_maskmill_says_so(installed, hostile, tmp_path):
    """And not that there is too little memory."""
    (tmp_path / "inject").mkdir()
    (tmp_path / "inject" / "sitecustomize.py").write_text(HIDE)
    environment = {**NO_PATHS, "PYTHONPATH": str(tmp_path / "inject")}
    command = [installed / "bin/maskmill", *generate()]
    done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "a worker cannot import maskmill: ModuleNotFoundError: No module named 'maskmill'" in line
    assert "memory" not in line
    assert "x1b" not in repr(line)


def test_python_among_files_with_our_names(installed, hostile):
    python = installed / "bin/python"
    run(hostile, python, "-m", "maskmill", *generate("--workers", "0"))
    readme = (ROOT / "README.md").read_text()
    first, second = re.findall(r"```python\n(from maskmill import .*?)```", readme, re.DOTALL)
    (hostile / "masks.py").write_text(first)
    assert re.search(r"^\d+ \(.*\) \d", run(hostile, python, "masks.py"), re.MULTILINE)
    (hostile / "rows.py").write_text(second + "    print(masks_HWN.shape)\n")
    assert "(120, 160, " in run(hostile, python, "rows.py")
    (hostile / "stream.py").write_text(
        "from torch.utils.data import DataLoader\n"
        "from maskmill.pipelines.torch_dataset import CorpusStream\n"
        "if __name__ == '__main__':\n"
        "    stream = CorpusStream('corpus', masks=True, images=True)\n"
        "    options = {'batch_size': None, 'num_workers': 1, 'multiprocessing_context': 'spawn'}\n"
        "    print(sorted(sample['key'] for sample in DataLoader(stream, **options)))\n"
    )
    assert run(hostile, python, "stream.py") == "['0.png', '1.png']\n"


USER = """
import numpy as np
import numpy.typing as npt

from maskmill import Corpus, GeneratorConfig, MaskGenerator, View, __version__, load_sam, open_image
from maskmill.engine import MaskRecord

image: npt.NDArray[np.uint8] = open_image("photo.jpg")
generator = MaskGenerator(load_sam("nano"), GeneratorConfig(pred_iou_thresh=0.7))
records: list[MaskRecord] = generator.generate(image)
masks: list[npt.NDArray[np.bool_]] = []
for row in Corpus("corpus").rows(status="ok", view=View(min_area=100)):
    masks.append(Corpus("corpus").masks(row))
print(__version__.upper(), records[0].predicted_iou + 1)
{mistake}
"""


@pytest.mark.slow
def test_a_users_script_is_checked_by_type(installed, tmp_path):
    script = tmp_path / "script.py"

    def checked(mistake):
        script.write_text(USER.format(mistake=mistake))
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "bin/python"]
        options = ["--cache-dir", tmp_path / "cache", script.name]
        words = [*command, *options]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=NO_PATHS, check=False)

    assert checked("").stdout == "Success: no issues found in 1 source file\n"
    for mistake, said in (
        ("open_image(3)", 'incompatible type "int"; expected "str | Path"'),
        ("Corpus('corpus').rowz()", '"Corpus" has no attribute "rowz"'),
        ("import maskmill; maskmill.Predicator", 'Module has no attribute "Predicator"'),
    ):
        found = checked(mistake)
        assert found.returncode == 1
        assert said in found.stdout


def test_the_demo_installs_no_developers_tools(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def installs(target):
        typed = ["make", "--dry-run", target]
        printed = subprocess.run(typed, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        return re.findall(r"install --quiet -c constraints.txt (?:-e )?(\S+)", printed)

    assert installs("demo") == ["torch", "'.[demo]'"]
    assert installs("test") == ["torch", "'.[demo]'", "'.[dev]'"]


def test_the_metadata_says_that_the_weights_have_terms_of_their_own(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = archive.read(name).decode().splitlines()
        (terms,) = (name for name in archive.namelist() if name.endswith("licenses/model/weights/LICENSE"))
        assert "research and for demonstration" in archive.read(terms).decode()
    assert "License-Expression: Apache-2.0 AND LicenseRef-maskmill-weights" in said
    assert "License-File: model/weights/LICENSE" in said
    assert [line for line in said if line.startswith("Classifier: ")]


def without_times(printed):
    """What a command printed, without what differs from run to run, and blanks at the ends of lines."""
    lines = [re.sub(r"\d+:\d\d$|\d+\.\d\d$", "N", line.rstrip()) for line in printed.splitlines()]
    return "\n".join(lines).strip("\n")


@pytest.mark.slow
def test_the_readme_prints_what_happens(installed, tmp_path):
    """Line by line, with the wheel, on the demo's images."""
    readme = (ROOT / "README.md").read_text()
    run(tmp_path, sys.executable, str(ROOT / "examples" / "sample_photos.py"), "photos")
    (block,) = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
    steps = [step.partition("\n") for step in block.split("$ ")[1:]]
    assert len(steps) > 1
    for typed, _, expected in steps:
        command = [installed / "bin/python", "-m", *shlex.split(typed)]
        assert without_times(run(tmp_path, *command)) == without_times(expected)
    (printed,) = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "row.py").write_text(
        "import json\n"
        "from maskmill import Corpus\n"
        "(row,) = [row for row in Corpus('corpus').rows() if row['key'].endswith('coffee.png')]\n"
        "print(json.dumps(min(row['annotations'], key=lambda a: len(a['segmentation']['counts']))))\n"
    )
    assert json.loads(run(tmp_path, installed / "bin/python", "row.py")) == json.loads(printed)

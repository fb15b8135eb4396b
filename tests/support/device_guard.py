"""Makes PyTorch's build for the CPU accept the device `cuda:0`: compiles and loads guard.cpp."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("guard.cpp")


class NoGuardError(RuntimeError):
    """The guard cannot be had here; the message says why."""


@cache
def load_guard() -> None:
    """Load the guard into this process, where it stays. Raises NoGuardError where there can be none."""
    if torch.version.cuda or torch.version.hip:
        raise NoGuardError("this PyTorch is built for GPUs and has a device guard of its own")
    torch.ops.load_library(str(_compiled()))


def _compiled() -> Path:
    """The library, compiled once for each PyTorch and source; kept in the system's folder for such things."""
    key = hashlib.sha256(f"{torch.__version__} {sys.platform} {SOURCE.read_text()}".encode()).hexdigest()[:16]
    library = _own_folder() / f"guard-{key}.so"
    if not library.exists():
        _compile(library)
    return library


def _own_folder() -> Path:
    """A folder that nobody else can put a library into; a new one where somebody else has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"maskmill-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if ours else Path(tempfile.mkdtemp(prefix="maskmill-tests-"))


def _compile(library: Path) -> None:
    """Raises NoGuardError without a compiler, and RuntimeError with what one says against the source."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise NoGuardError("there is no C++ compiler: neither c++, g++ nor clang++")
    torch_folder = Path(torch.__file__).parent
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-std=c++20", "-fPIC", "-shared", f"-I{torch_folder / 'include'}", str(SOURCE)]
    command += ["-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{compiler} does not compile {SOURCE.name}: {done.stderr}")
    unfinished.replace(library)

"""Loaded by every Python that has this folder on its path: kills the process at a chosen call, once.

`MASKMILL_CHAOS` says where: JSON with `point` (a key of `POINTS`), `call` (which call, 1 first), `mark` (a
file that is made when it fires, so that it fires once whatever process comes first), `workers` where only
Ray's workers are meant, and, for the point `clock`, `jump` in seconds. Nothing of the product knows about it.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
import json
import os
import signal
import sys
import time
from typing import Any

POINTS = {
    "plan": ("maskmill.pipelines.format.plan", "make_plan"),
    "decode": ("maskmill.pipelines.workers.shard", "decode_image"),
    "inference": ("maskmill.engine.generator", "MaskGenerator.generate_batch"),
    "clock": ("maskmill.pipelines.workers.shard", "decode_image"),
    # Of every process that loads the storage module: before a file is flushed, before and after it is named.
    "write": ("os", "fsync"),
    "before link": ("os", "link"),
    "after link": ("os", "link"),
    "rename": ("pathlib", "Path.replace"),
}


def injure(spec: dict[str, Any]) -> None:
    """Fire, unless another process has already."""
    try:
        os.close(os.open(spec["mark"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if spec["point"] == "clock":
        really = time.time
        time.time = lambda: really() + spec["jump"]
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def wrap(module: Any, spec: dict[str, Any]) -> None:
    """Put the injury in front of (or, for `after …`, behind) the function."""
    *owners, name = POINTS[spec["point"]][1].split(".")
    owner = module
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    calls = itertools.count(1)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        meant = not spec.get("workers") or "default_worker" in sys.argv[0]
        mine = meant and next(calls) == spec["call"]
        late = spec["point"].startswith("after")
        if mine and not late:
            injure(spec)
        result = function(*arguments, **options)
        if mine and late:
            injure(spec)
        return result

    setattr(owner, name, wrapped)


class WrapOnImport(importlib.abc.MetaPathFinder):
    """Wraps the function as soon as `trigger` is loaded."""

    def __init__(self, trigger: str, spec: dict[str, Any]) -> None:
        self.trigger, self.spec = trigger, spec

    def find_spec(self, fullname: str, *_: Any) -> Any:
        if fullname != self.trigger:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(fullname)
        assert found is not None
        assert found.loader is not None
        load = found.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            name = POINTS[self.spec["point"]][0]
            wrap(module if name == fullname else importlib.import_module(name), self.spec)

        found.loader.exec_module = exec_module  # type: ignore[method-assign]
        return found


if "MASKMILL_CHAOS" in os.environ:
    chaos = json.loads(os.environ["MASKMILL_CHAOS"])
    where = POINTS[chaos["point"]][0]
    trigger = where if "." in where else "maskmill.pipelines.storage.atomic"
    sys.meta_path.insert(0, WrapOnImport(trigger, chaos))

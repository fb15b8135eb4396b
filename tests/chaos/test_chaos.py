"""Exactly once, under attack: runs are killed, starved and confused, and the same command is given again.

The product runs whole: its command line, its Ray, a network of the bundled family. After each injury the
same command must end well, with one row for every input, every row the undisturbed run's, a clean `verify`,
nothing temporary left behind, and no shard touched that was committed before.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from tests.chaos.conftest import SURVIVED

pytestmark = pytest.mark.slow

IMAGES, SHARD = 240, 6
INJECT = Path(__file__).with_name("inject")
KILLED = -signal.SIGKILL
PATIENCE = 600  # seconds for one command: what is tested is what is left, not how fast a busy machine is


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Path:
    """240 small files: crops of four photographs, three of them damaged."""
    folder = tmp_path_factory.mktemp("chaos") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(11)
    pictures = [
        Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
    ]
    for number in range(IMAGES):
        picture = pictures[number % 4]
        width, height = (int(side) for side in rng.integers(40, 100, 2))
        left, top = int(rng.integers(picture.width - width)), int(rng.integers(picture.height - height))
        picture.crop((left, top, left + width, top + height)).save(folder / f"{number:03}.png")
    for number in (17, 100, 233):
        path = folder / f"{number:03}.png"
        path.write_bytes(path.read_bytes()[:200])
    return folder


@dataclass
class Scene:
    """One command, its output, and what the shards looked like when they were first seen."""

    photos: Path
    settings: list[str]
    out: Path
    options: list[str] = field(default_factory=lambda: ["--workers", "0"])
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self) -> list[str]:
        sets = [word for setting in self.settings for word in ("--set", setting)]
        program = [sys.executable, "-m", "maskmill", "generate", str(self.photos)]
        return [*program, "--out", str(self.out), *sets, "--set", f"shard_size={SHARD}", *self.options]

    def start(self, **chaos: object) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
        if chaos:
            chaos["mark"] = f"{self.out}.fired"
            environment["MASKMILL_CHAOS"] = json.dumps(chaos)
            environment["PYTHONPATH"] = str(INJECT)
        process = subprocess.Popen(
            self.command(),
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, **chaos: object) -> int:
        process = self.start(**chaos)
        self.said = process.communicate(timeout=PATIENCE)[0]
        end_group(process)
        return process.returncode

    def fired(self) -> bool:
        return Path(f"{self.out}.fired").exists()

    def shards(self) -> dict[str, tuple[int, str]]:
        """Each committed shard's time and digest."""
        return {
            path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted((self.out / "shards").glob("shard-*.parquet"))
        }

    def rows(self) -> pa.Table:
        tables = [pq.read_table(path) for path in sorted((self.out / "shards").glob("shard-*.parquet"))]
        return pa.concat_tables(tables).combine_chunks()


def end_group(process: subprocess.Popen[str]) -> None:
    """What the command started goes with it: the end of the machine, as far as it is concerned."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="session")
def undisturbed(collection, tiny_settings, tmp_path_factory) -> pa.Table:
    scene = Scene(collection, tiny_settings, tmp_path_factory.mktemp("undisturbed") / "corpus")
    assert scene.run() == 0, scene.said
    rows = scene.rows()
    assert rows.num_rows == IMAGES
    assert rows["status"].to_pylist().count("rejected") == 3
    return rows


@pytest.fixture
def scene(collection, tiny_settings, tmp_path) -> Iterator[Scene]:
    scene = Scene(collection, tiny_settings, tmp_path / "corpus")
    yield scene
    for process in scene.started:  # a test that fails leaves none to disturb the next
        if process.poll() is None:
            end_group(process)
            process.wait()


def recover(scene: Scene, undisturbed: pa.Table, injury: str, seed: int, ended: int) -> None:
    """Give the same command again, and hold everything against the undisturbed run."""
    before = scene.shards()
    for _ in range(2):
        if (code := scene.run()) == 0:
            break
    assert code == 0, scene.said
    after = scene.shards()
    assert before.items() <= after.items(), "a committed shard was touched"
    rows = scene.rows()
    assert rows["key"].to_pylist() == undisturbed["key"].to_pylist()
    assert rows.equals(undisturbed)
    verify = [sys.executable, "-m", "maskmill", "verify", str(scene.out)]
    checked = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    files = {path.relative_to(scene.out).as_posix() for path in scene.out.rglob("*") if path.is_file()}
    expected = {"run.json", "corpus.json", "plan/part-000000.parquet", *(f"shards/{name}" for name in after)}
    assert files == expected
    how = "killed" if ended == KILLED else f"exit {ended}"
    SURVIVED.append((injury, seed, how, f"{len(before)} of {len(after)} shards kept, {len(rows)} rows equal"))


CALLS = {  # as many as an undisturbed run of 40 shards makes, or fewer
    "plan": 1,
    "decode": IMAGES,
    "inference": IMAGES - 3,
    "write": 80,
    "before link": 40,
    "after link": 40,
    "rename": 1,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("point", CALLS)
def test_killed_at_a_point_of_the_run(scene, undisturbed, point, seed):
    call = random.Random(f"{point} {seed}").randint(1, CALLS[point])
    ended = scene.run(point=point, call=call)
    assert (ended, scene.fired()) == (KILLED, True), scene.said
    recover(scene, undisturbed, f"killed at {point}, call {call}", seed, ended)


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(scene, undisturbed, seed):
    rng = random.Random(seed)
    for _ in range(4):
        process = scene.start()
        time.sleep(rng.uniform(0.5, 7))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    recover(scene, undisturbed, "killed four times", seed, KILLED)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("point", ["decode", "inference", "write", "after link"])
def test_a_ray_worker_killed(scene, undisturbed, point, seed):
    scene.options = ["--workers", "2"]
    call = random.Random(f"ray {point} {seed}").randint(1, 20)
    ended = scene.run(point=point, call=call, workers=True)
    assert (ended, scene.fired()) == (0, True), scene.said
    recover(scene, undisturbed, f"Ray worker killed at {point}", seed, ended)


@pytest.mark.parametrize("seed", range(4))
def test_the_driver_of_a_ray_killed(scene, undisturbed, seed):
    scene.options = ["--workers", "2"]
    process = scene.start()
    wait_for_shards(scene, 1 + 6 * seed)
    process.kill()
    process.communicate()
    time.sleep(random.Random(seed).uniform(0, 2))  # its workers may still be at it
    recover(scene, undisturbed, "driver killed, workers left alone", seed, KILLED)
    end_group(process)


def wait_for_shards(scene: Scene, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while len(list((scene.out / "shards").glob("shard-*.parquet"))) < count:
        assert time.monotonic() < until, f"fewer than {count} shards after {PATIENCE} s"
        time.sleep(0.05)


@pytest.mark.parametrize("seed", range(4))
def test_a_node_of_three_killed(scene, undisturbed, seed):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        scene.options = ["--ray", cluster.address, "--workers", "2"]
        process = scene.start()
        wait_for_shards(scene, 2 + 4 * seed)
        cluster.remove_node(nodes[seed % 2], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        scene.said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, scene.said
        recover(scene, undisturbed, "a node of three killed", seed, process.returncode)
    finally:
        cluster.shutdown()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 6 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_that_is_full(scene, undisturbed, small_disk, seed):
    scene.out = small_disk / "corpus"
    free = (4 << 10, 40 << 10, 120 << 10, 240 << 10)[seed]
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((6 << 20) - free - (4 << 10)))
    ended = scene.run()
    assert ended in (2, 4), scene.said
    assert "No space left on device" in scene.said
    ballast.unlink()
    recover(scene, undisturbed, f"disk full after {free >> 10} KiB", seed, ended)


@pytest.mark.parametrize("seed", range(2))
def test_a_disk_that_turns_read_only(scene, undisturbed, small_disk, seed):
    scene.out = small_disk / "corpus"
    process = scene.start()
    wait_for_shards(scene, 3 + 10 * seed)
    while subprocess.run(
        ["mount", "-o", "remount,ro", small_disk], capture_output=True, check=False
    ).returncode:
        time.sleep(0.01)  # busy while a file is being written
    scene.said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode in (2, 4), scene.said
    assert "Read-only file system" in scene.said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    recover(scene, undisturbed, "disk turned read-only", seed, process.returncode)


@pytest.mark.parametrize("seed", range(4))
def test_a_clock_that_jumps(scene, undisturbed, seed):
    jump = (-86400, 86400, -10 * 365 * 86400, 10 * 365 * 86400)[seed]
    ended = scene.run(point="clock", call=60, jump=jump)
    assert (ended, scene.fired()) == (0, True), scene.said
    recover(scene, undisturbed, f"clock jumped {jump // 86400:+} days", seed, ended)


@pytest.mark.parametrize("seed", range(2))
def test_two_drivers_on_one_output(scene, undisturbed, seed):
    first = scene.start()
    if seed:
        wait_for_shards(scene, 3)
    second = scene.start()
    codes = []
    for process in (first, second):
        scene.said = process.communicate(timeout=PATIENCE)[0]
        codes.append(process.returncode)
    assert 0 in codes, scene.said
    recover(scene, undisturbed, f"two drivers, exits {codes[0]} and {codes[1]}", seed, max(codes))

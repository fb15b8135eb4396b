"""What `maskmill generate` costs beside the bare engine: seconds an image in steady state, three ways.

    python -m benchmarks.bench_overhead --images 64 --points 16

Copies of one photograph (scikit-image's `coffee` at 1500×2250, or --image) are turned into masks

    bare          by a loop in one process: read, decode, generate, one after the other, nothing written
    without Ray   by `maskmill generate --workers 0`
    with Ray      by `maskmill generate`, on a Ray of its own, one worker on all cores

with the same weights, options and threads. A corpus is timed between commits, by its shards' own times, so
that loading, planning and Ray's start do not count: from the commit that completes the first shards in
hand to the last one. (A worker has several shards in hand and serves them by turns: they end together, and
what came before is theirs.) The ways take turns, `--repeat` times; medians count. Prints a table for people
and JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least
from benchmarks.support.machine import Watch, versions
from benchmarks.support.photograph import read_photograph
from maskmill.engine import MaskGenerator
from maskmill.model import load_sam
from maskmill.pipelines.config.run import RunConfig, load_config
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.decoding.image import decode_image
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.format.parquet_files import open_parquet
from maskmill.pipelines.inputs.reader import read_input
from maskmill.pipelines.machine import hardware

ROOT = Path(__file__).parents[1]
PACKAGES = ("maskmill", "torch", "ray", "numpy", "numba", "opencv-python", "pyarrow")
SIZE = (1500, 2250)
WAYS = ("bare", "without Ray", "with Ray")


def main() -> None:
    given = arguments()
    overrides = (
        f"generator.points_per_side={given.points}",
        f"shard_size={given.shard_size}",
        f"threads_per_worker={given.threads}",
    )
    config = load_config("nano", overrides)
    torch.set_num_threads(given.threads)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="maskmill-overhead-") as folder:
        photographs = write_copies(Path(folder) / "photos", given)
        for _ in range(given.repeat):
            runs["bare"].append(time_bare(photographs, config))
            for way, workers in (("without Ray", 0), ("with Ray", 1)):
                out = Path(folder) / "corpus"
                make_corpus(photographs[0].parent, out, overrides, workers)
                in_hand = workers * config.cluster.shards_in_flight or 1
                runs[way].append(time_commits(out, config.shard_size, in_hand))
                shutil.rmtree(out)
    ways = {way: middle(runs[way]) for way in WAYS}
    result = {
        "ways": ways,
        "runs": dict(runs),
        "ratio_without_ray": ways["without Ray"]["seconds"] / ways["bare"]["seconds"],
        "ratio_with_ray": ways["with Ray"]["seconds"] / ways["bare"]["seconds"],
        "quiet": all_quiet(runs["bare"]),
        "config": {
            "overrides": overrides,
            "images": given.images,
            "size": given.photograph.size[::-1],
            "repeat": given.repeat,
        },
        "versions": versions(PACKAGES),
        "hardware": hardware(torch.device("cpu")),
    }
    show(result)
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    """The command line; ends with 2 where it is wrong."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=at_least(1), default=64, help="copies of the photograph")
    parser.add_argument("--points", type=at_least(1), default=16, help="points per side")
    parser.add_argument("--shard-size", type=at_least(1), default=8, help="images a shard")
    parser.add_argument("--threads", type=at_least(1), default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=at_least(1), default=1)
    parser.add_argument("--image", type=Path, metavar="FILE", help="another photograph, at its own size")
    given = parser.parse_args()
    # The first shards in hand end the start, and as many at least are timed.
    shard, least = given.shard_size, 2 * RunConfig().cluster.shards_in_flight * given.shard_size
    if given.images % shard or given.images < least:
        parser.error(f"expected --images of at least {least}, in whole shards of {shard}, got {given.images}")
    try:
        given.photograph = read_photograph(given.image, SIZE)
    except ImportError as error:
        parser.error(f"expected {error.name}: pip install '.[bench]'")
    except OSError as error:
        parser.error(f"--image: expected a photograph, got {given.image}: {error}")
    return given


def write_copies(folder: Path, given: argparse.Namespace) -> list[Path]:
    """The photograph as a JPEG, again and again."""
    folder.mkdir()
    paths = [folder / f"{number:05d}.jpg" for number in range(given.images)]
    given.photograph.save(paths[0], quality=95)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    return paths


def time_bare(photographs: Sequence[Path], config: RunConfig) -> dict[str, Any]:
    """Seconds an image of the engine by itself, after one image that does not count."""
    generator = MaskGenerator(load_sam(config.model.name), config.generator)

    def masks_of(path: Path) -> int:
        pixels_HW3 = decode_image(read_input(str(path)), config.input.max_pixels).pixels_HW3
        return len(generator.generate(pixels_HW3))

    masks_of(photographs[0])
    with Watch() as watch:
        start = time.perf_counter()
        masks = sum(masks_of(path) for path in photographs)
        seconds = time.perf_counter() - start
    timed = {"seconds": seconds / len(photographs), "images": len(photographs), "masks": masks}
    return timed | {"others_share": watch.others, "quiet": watch.quiet}


def make_corpus(photos: Path, out: Path, overrides: Sequence[str], workers: int) -> None:
    """`maskmill generate`, in a process of its own."""
    command = [sys.executable, "-m", "maskmill", "generate", str(photos), "--out", str(out)]
    command += ["--config", "nano", "--workers", str(workers)]
    command += [word for value in overrides for word in ("--set", value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")


def time_commits(out: Path, shard_size: int, in_hand: int) -> dict[str, Any]:
    """Seconds an image between the commit of the first shards in hand and that of the last shard."""
    corpus = Corpus(out)
    committed = sorted(shard_path(out, shard).stat().st_mtime_ns for shard in corpus.shards)
    images = (len(committed) - in_hand) * shard_size
    stages: defaultdict[str, float] = defaultdict(float)
    for shard in corpus.shards:
        with open_parquet(shard_path(out, shard)) as file:
            for stage, seconds in json.loads(file.metadata.metadata[b"maskmill.seconds"]).items():
                stages[stage] += seconds / len(corpus)
    return {
        "seconds": (committed[-1] - committed[in_hand - 1]) / 1e9 / images,
        "images": images,
        "masks": sum(len(row["annotations"]) for row in corpus),
        "stages": dict(stages),  # an image's, of all images
    }


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median run."""
    median = statistics.median_low([run["seconds"] for run in runs])
    return next(run for run in runs if run["seconds"] == median)


def all_quiet(bare: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the machine was ours; told by the bare runs, since Ray's processes would seem to be others'."""
    told = [run["quiet"] for run in bare]
    return None if None in told else all(told)


def show(result: Mapping[str, Any]) -> None:
    busy = "" if result["quiet"] else ", other programs at work"
    table = Table(title=f"{result['config']['images']} images, {result['hardware']['threads']} threads{busy}")
    for heading in ("", "s an image", "images a second", "beside bare", "timed"):
        table.add_column(heading, justify="right" if heading else "left")
    bare = result["ways"]["bare"]["seconds"]
    for way in WAYS:
        run = result["ways"][way]
        row = (f"{run['seconds']:.3f}", f"{1 / run['seconds']:.2f}", f"{run['seconds'] / bare - 1:+.1%}")
        table.add_row(way, *row, f"{run['images']} images")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()

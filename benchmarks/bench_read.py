"""How fast a corpus is read into PyTorch, beside what Parquet costs by itself.

    python -m benchmarks.bench_read --rows 2000 --masks 100

Builds a corpus of synthetic images as `bench_verify.py` does, in a temporary folder. Then, by turns and many
times over, so that what else runs on the machine hits all alike:

- `scan`: pyarrow reads the columns of a sample (ids, sizes, boxes, areas, scores) and makes nothing of them:
  `ParquetFile.iter_batches`, file after file, in all of pyarrow's threads, page checksums verified as they
  are whenever a corpus is read;
- `windows`: `Corpus.windows`, which reads the same ahead and in any order, and leaves it to Arrow;
- `batches`, `shuffled batches`: `CorpusStream`, in order and by a seed: the same columns as tensors, of 64
  images at a time;
- `stream`, `shuffled`: the same, image by image;
- `… with codes`: with the masks' run-length codes, which are not decoded;
- `scan with codes, unverified`: what the checksums cost;
- `rows`: `Corpus.rows`, everything as dicts.

Once: rows looked up by their id, and masks decoded. A rate is the best of the rounds, by elapsed time and by
processor time: what the machine does while others leave it alone. A ratio is the stream's rate over that of
the scan of the same columns. Prints a table for people and JSON on the last line. Files are in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.support.arguments import OneLineParser, at_least
from benchmarks.support.machine import Watch, processor, versions
from benchmarks.support.synthetic_corpus import build
from maskmill.pipelines.corpus.order import Order
from maskmill.pipelines.corpus.reader import Corpus
from maskmill.pipelines.format.layout import shard_path
from maskmill.pipelines.torch_dataset.samples import Wanted
from maskmill.pipelines.torch_dataset.stream import CorpusStream

PACKAGES = ("numpy", "pyarrow", "torch")
RATIOS = dict.fromkeys(
    ("windows", "batches", "shuffled batches", "stream", "shuffled"), "scan"
) | dict.fromkeys(("batches with codes", "stream with codes"), "scan with codes")
"""What is held against what."""

BATCH = 64

LOOKED_UP = 100
DECODED = 100


def main() -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=at_least(1), default=2000)
    parser.add_argument("--masks", type=at_least(1), default=100, help="of each row")
    parser.add_argument("--distinct", type=at_least(1), default=3000, help="masks that are drawn")
    parser.add_argument("--shard-size", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(1), default=15)
    given = parser.parse_args()
    shape = {name: getattr(given, name) for name in ("rows", "masks", "distinct", "shard_size")}
    with tempfile.TemporaryDirectory() as folder, Watch() as watch:
        result = measure(Corpus(build(Path(folder), **shape)), given)
    result |= {
        "others": watch.others,
        "quiet": watch.quiet,
        "config": vars(given),
        "versions": versions(PACKAGES),
        "hardware": processor(),
    }
    show(result)
    print(json.dumps(result))


def measure(corpus: Corpus, given: argparse.Namespace) -> dict[str, Any]:
    few = given.rows // 10 or 1
    sides: dict[str, Callable[[], int]] = {
        "scan": lambda: scan(corpus, Wanted().columns),
        "windows": lambda: sum(len(one.rows_K2) for one in corpus.windows(Order(), Wanted().columns)),
        "batches": lambda: batches(CorpusStream(corpus, batch_size=BATCH)),
        "shuffled batches": lambda: batches(CorpusStream(corpus, batch_size=BATCH, seed=0)),
        "stream": lambda: sum(1 for _ in CorpusStream(corpus)),
        "shuffled": lambda: sum(1 for _ in CorpusStream(corpus, seed=0)),
        "scan with codes": lambda: scan(corpus, Wanted(codes=True).columns),
        "batches with codes": lambda: batches(CorpusStream(corpus, batch_size=BATCH, codes=True)),
        "stream with codes": lambda: sum(1 for _ in CorpusStream(corpus, codes=True)),
        "scan with codes, unverified": lambda: scan(corpus, Wanted(codes=True).columns, verify=False),
        "rows": lambda: sum(1 for _ in islice(corpus.rows(), few)),
    }
    rounds = [take_turns(sides, number) for number in range(given.rounds + 1)][1:]  # one to warm up
    ids = np.random.default_rng(0).choice([row["image_id"] for row in corpus.rows(columns=[])], LOOKED_UP)
    corpus.row(int(ids[0]))
    looked_up = timed(lambda: sum(1 for image in ids if corpus.row(int(image), columns=["annotations.bbox"])))
    masks = timed(lambda: sum(len(s["masks"]) for s in islice(CorpusStream(corpus, masks=True), DECODED)))
    best = {
        unit: {name: max(one[name][unit] for one in rounds) for name in sides}
        for unit in ("per_s", "per_cpu_s")
    }
    return {
        "images_per_s": best["per_s"],
        "images_per_cpu_s": best["per_cpu_s"],
        "ratio": {name: best["per_s"][name] / best["per_s"][other] for name, other in RATIOS.items()},
        "cpu_ratio": {
            name: best["per_cpu_s"][name] / best["per_cpu_s"][other] for name, other in RATIOS.items()
        },
        "looked_up_per_s": looked_up["per_s"],
        "decoded_masks_per_s": masks["per_s"],
    }


def batches(stream: CorpusStream) -> int:
    """Read a stream to its end; how many images there were."""
    return sum(len(batch["count"]) for batch in stream)


def scan(corpus: Corpus, columns: Sequence[str], verify: bool = True) -> int:
    """Let pyarrow read the columns of every shard; how many rows there were."""
    rows = 0
    for shard in corpus.shards:
        path = shard_path(corpus.path, shard)
        with pq.ParquetFile(path, page_checksum_verification=verify) as file:
            rows += sum(batch.num_rows for batch in file.iter_batches(columns=columns))
    return rows


def take_turns(sides: Mapping[str, Callable[[], int]], number: int) -> dict[str, dict[str, float]]:
    """Each side once; another one is first in each round."""
    names = list(sides)
    first = number % len(names)
    return {name: timed(sides[name]) for name in names[first:] + names[:first]}


def timed(work: Callable[[], int]) -> dict[str, float]:
    """How many a second, by elapsed time and by this process's processor time."""
    start, cpu = time.perf_counter(), time.process_time()
    done = work()
    return {
        "per_s": done / (time.perf_counter() - start),
        "per_cpu_s": done / (time.process_time() - cpu),
    }


def show(result: Mapping[str, Any]) -> None:
    config = result["config"]
    table = Table(
        title=f"{config['rows']} images of {config['masks']} masks, best of {config['rounds']} rounds"
    )
    for heading in ("", "images a second", "of the scan", "a second of processor time", "of the scan"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, rate in result["images_per_s"].items():
        of_scan = [f"{result[key][name]:.0%}" if name in RATIOS else "" for key in ("ratio", "cpu_ratio")]
        cpu_rate = result["images_per_cpu_s"][name]
        table.add_row(name, f"{rate:,.0f}", of_scan[0], f"{cpu_rate:,.0f}", of_scan[1])
    table.add_section()
    table.add_row("looked up by id", f"{result['looked_up_per_s']:,.0f}", "", "", "")
    table.add_row("masks decoded, whole", f"{result['decoded_masks_per_s']:,.0f} masks", "", "", "")
    Console(file=sys.stdout, width=100).print(table)


if __name__ == "__main__":
    main()

"""What a batch of four photographs asks of a device, counted with shapes and without numbers, and its bounds.

    python -m tests.support.device_budget            # prints the tables, and JSON on the last line
    python -m tests.support.device_budget --write    # makes them the bounds that the tests hold

The bounds in device_budget.json may only fall; they are of the PyTorch that is named there, since each takes
its own operations apart in its own way. What a network would answer is made up: 600 of the 3,072 masks
of an image's grid are confident enough to be drawn, and about 100 are left without duplicates. Nothing here
was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskmill.engine import GeneratorConfig, MaskGenerator
from maskmill.model import MODELS, Sam

from .device_counts import MEASURES, Counts
from .pretend_cuda import PretendCuda

BOUNDS = Path(__file__).with_suffix(".json")
NAMES = ("nano", "vit_h")
IMAGES, HEIGHT, WIDTH = 4, 1500, 2250
DRAWN, SCORED, KEPT = 600, 3 * 32 * 32, 100  # masks of an image
EDGES = 0.1
"""Of a mask's tiles, those that its outline passes."""

Table = dict[str, dict[str, int]]
"""Launches, bytes and waits by stage."""


class MadeUp:
    """Answers of a network without numbers, and measures of its masks: for the same shape always the same."""

    def __init__(self) -> None:
        side = int(KEPT**0.5)
        corner_N2 = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
        corner_N2 = corner_N2 * np.array([WIDTH // side, HEIGHT // side])
        size_N2 = np.random.default_rng(0).uniform(50, 500, (KEPT, 2)).astype(np.int64)
        last_N2 = np.minimum(corner_N2 + size_N2, [WIDTH - 1, HEIGHT - 1])
        self.boxes_N4 = np.concatenate([corner_N2, last_N2], 1)

    def __call__(self, what: str, tensor: Tensor) -> Tensor:
        """See `PretendCuda`."""
        if what == "nonzero":  # tiles on edges; of the ends of runs none, which are too few to count
            found = int(EDGES * tensor.numel()) if tensor.dim() == 3 else 0
            return tensor.new_empty(found, tensor.dim(), dtype=torch.int64)
        if tensor.is_floating_point():
            return self._scores(tensor.shape).to(tensor.dtype)
        if tensor.dim() == 2 and tensor.shape[1] == 7:
            return torch.from_numpy(self._measures(len(tensor)))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def _scores(self, shape: torch.Size) -> Tensor:
        """Of each image evenly from 0 to 1, in an order without rule."""
        even_BN = np.tile((np.arange(shape[1:].numel()) + 0.5) / shape[1:].numel(), (shape[0], 1))
        return torch.from_numpy(np.random.default_rng(0).permuted(even_BN, axis=1)).reshape(shape)

    def _measures(self, masks: int) -> np.ndarray:
        """Of stable masks, each as large as one of the boxes: see `engine.resampling.tiles.Measures`."""
        box_K4 = self.boxes_N4[np.arange(masks) % KEPT]
        area_K = (box_K4[:, 2:] - box_K4[:, :2]).prod(1)
        return np.column_stack([area_K, area_K, area_K, box_K4])


def counted(name: str, dtype: torch.dtype = torch.bfloat16) -> Counts:
    """What a batch of photographs asks of the device, when it is not the first one."""
    config = GeneratorConfig(
        pred_iou_thresh=1 - DRAWN / SCORED, encode_batch=IMAGES, device_budget_bytes=16 << 30
    )
    with torch.device("meta"):
        sam = Sam(MODELS[name]).eval()
    images = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * IMAGES
    with PretendCuda(MadeUp()) as cuda:
        sam.to("cuda").in_precision(dtype)
        few_points = config.model_copy(update={"points_per_side": 2})
        MaskGenerator(sam, few_points).generate_batch(images[:1])  # makes what is kept for all batches
        cuda.counts.clear()
        MaskGenerator(sam, config).generate_batch(images)
    return cuda.counts


def pytorch() -> str:
    """The version, as far as it decides what operations are made of: 2.13."""
    return ".".join(torch.__version__.split(".")[:2])


def bounds() -> tuple[str, dict[str, Table]]:
    """The PyTorch that the bounds are of, and those of each network."""
    found = json.loads(BOUNDS.read_text())
    return found["torch"], found["networks"]


def beyond(counts: Counts, bound: Table) -> list[str]:
    """A line for each stage that asks for more than it may, with the line of code that asks for the most."""
    return [
        f"{stage}: {row[measure]:,} {measure}, and no more than {most:,} are allowed; "
        f"{counts.most(stage, measure)}"
        for stage, row in counts.by_stage().items()
        for measure in MEASURES
        if row[measure] > (most := bound.get(stage, {}).get(measure, 0))
    ]


def as_markdown(name: str, table: Table) -> str:
    """The table for people, an image."""
    lines = [f"| {name}, an image | launches | GB | waits |", "|---|--:|--:|--:|"]
    total = {measure: sum(row[measure] for row in table.values()) for measure in MEASURES}
    for stage, row in {**table, "all": total}.items():
        launches, nbytes, waits = (row[measure] / IMAGES for measure in MEASURES)
        lines.append(f"| {stage} | {launches:,.0f} | {nbytes / 1e9:.2f} | {waits:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make these counts the bounds")
    parser.add_argument(
        "--lines", type=int, default=0, metavar="N", help="the lines that ask for the most, too"
    )
    given = parser.parse_args()
    counts = {name: counted(name) for name in NAMES}
    tables = {name: each.by_stage() for name, each in counts.items()}
    for name, table in tables.items():
        print(as_markdown(name, table), end="\n\n")
        for measure in MEASURES if given.lines else ():
            for asked, number in getattr(counts[name], measure).most_common(given.lines):
                print(f"{number:>18,} {measure} {asked.stage} {asked.what} {asked.line}")
    found = {"torch": pytorch(), "networks": tables}
    if given.write:
        BOUNDS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

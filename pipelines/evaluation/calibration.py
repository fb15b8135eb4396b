"""How well the predicted IoU matches the true IoU: masks in bins of the predicted one, the mean of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, UsageError
from ..extras import pip_install
from ..storage import atomic

BINS = 10


def reliability(pairs_N2: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Bins of predicted IoU, those with masks: their edges, how many masks, mean predicted and true IoU.

    `pairs_N2` are (predicted, true). A prediction below 0 is in the first bin, one of 1 or more in the last.
    """
    bin_N = np.clip((pairs_N2[:, 0] * BINS).astype(int), 0, BINS - 1)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "masks": int((bin_N == number).sum()),
            "predicted": float(pairs_N2[bin_N == number, 0].mean()),
            "true": float(pairs_N2[bin_N == number, 1].mean()),
        }
        for number in np.unique(bin_N).tolist()
    ]


def plot_format(path: Path) -> str:
    """What matplotlib calls the format that the file's ending stands for.

    Raises UsageError where it stands for none, ConfigError where there is no matplotlib.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise ConfigError(f"--plot needs Matplotlib: {pip_install('train')}") from None
    ending, known = path.suffix.removeprefix(".").lower(), FigureCanvasBase.get_supported_filetypes()
    if ending not in known:
        raise UsageError(f"--plot {path}: expected a file that ends in one of {', '.join(sorted(known))}")
    return ending


def write_plot(pairs_N2: NDArray[np.float64], path: Path) -> None:
    """Draw the bins against the diagonal, and below how many masks each has, in the file's format.

    Raises what `plot_format` raises, and UsageError for a place that cannot be written.
    """
    ending = plot_format(path)
    from matplotlib.figure import Figure

    bins = reliability(pairs_N2)
    figure = Figure(figsize=(5, 6), layout="constrained")
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as predicted")
    curve.plot(
        [b["predicted"] for b in bins], [b["true"] for b in bins], "o-", color="#1f5fa8", label="model"
    )
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel="mean IoU with the labelled mask")
    curve.legend(loc="upper left", frameon=False)
    middles, masks = [(b["from"] + b["to"]) / 2 for b in bins], [b["masks"] for b in bins]
    counts.bar(middles, masks, width=0.9 / BINS, color="#9db8d6")
    counts.set(xlabel="predicted IoU", ylabel="masks")
    for axes in (curve, counts):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic.failing_as(UsageError, path):
        atomic.replace(path, lambda file: figure.savefig(file, format=ending, dpi=120))

"""The picture of what `bench_growth.py` measured, from its JSON: three curves beside their floors.

    python -m benchmarks.support.growth_plot benchmarks/results/growth-amd-epyc.json docs/growth.png

Colours are those of Okabe and Ito, which colour-blind people tell apart; lines differ in their dashes, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.support.arguments import OneLineParser

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "seconds": ("all of it", {"color": "black", "marker": "o", "linewidth": 2}),
    "network_seconds": ("network", {"color": "#0072B2", "marker": "s"}),
    "pixel_seconds": ("pixels and masks", {"color": "#D55E00", "marker": "^"}),
    "floor_seconds": ("floor of the network", {"color": "#0072B2", "linestyle": "--"}),
    "published_floor_seconds": (
        "floor of its published form",
        {"color": "#666666", "linestyle": ":", "linewidth": 2},
    ),
}


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="the JSON that bench_growth.py wrote")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    given = parser.parse_args()
    try:
        result = json.loads(given.result.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"expected the JSON that bench_growth.py wrote, got {given.result}: {error}")
    plot(result, given.picture)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Write the three panels as a PNG."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    draw_panel(panels[0], result, "points", "points_per_side", "points a side")
    draw_panel(panels[1], result, "pixels", "megapixels", "megapixels")
    draw_panel(panels[2], result, "masks", "masks", "masks in the image")
    panels[0].set_ylabel("seconds an image")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(LINES), frameon=False)
    figure.suptitle(title(result), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def title(result: Mapping[str, Any]) -> str:
    """What was measured on what, and whether it was alone."""
    rate, machine = result["matrix_flops_per_s"] / 1e9, result["hardware"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    busy = "" if result["quiet"] else "; other programs were at work"
    return (
        f"{result['config']['model']}, fp32, {threads} of {machine['processor']}, "
        f"{rate:.0f} GFLOP/s in matrix products{busy}"
    )


def draw_panel(axes: Axes, result: Mapping[str, Any], curve: str, across: str, label: str) -> None:
    """One curve, on logarithmic axes."""
    steps = sorted((step for step in result["steps"] if step["curve"] == curve), key=lambda s: s[across])
    x = [step[across] for step in steps]
    for name, (text, style) in LINES.items():
        axes.plot(x, [step[name] for step in steps], label=text, markersize=5, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_xticks(x, [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in x])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_title(held(steps, across), fontsize=9)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def held(steps: list[Mapping[str, Any]], across: str) -> str:
    """What stays the same along a curve."""
    first = steps[0]
    size = f"{first['height']}×{first['width']}"
    points = f"{first['points_per_side']}×{first['points_per_side']} points"
    return {"points_per_side": size, "megapixels": points, "masks": f"{size}, {points}, other thresholds"}[
        across
    ]


if __name__ == "__main__":
    main()

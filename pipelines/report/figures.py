"""The figures of a report, drawn by Matplotlib and put into the page as SVG.

They are SVG and not PNG so that they take the page's colours, light or dark, and stay sharp. Matplotlib knows
only fixed colours: it draws with a few that nothing else has, and in the SVG's text they are replaced by the
page's. A corpus's name never goes through Matplotlib, which would read a `$` in it as mathematics.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..extras import pip_install
from ..pages.template import text
from .histogram import Histogram
from .statistics import SIDE_OCTAVES, Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_COLOURS = {
    "#010203": "var(--ink)",
    "#040506": "var(--soft)",
    "#070809": "var(--accent)",
    "#0a0b0c": "var(--other)",
}
_INK, _SOFT, _OWN, _OTHER = _COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.linewidth": 0.6,
}
MASKS_PER_IMAGE = (0, 1, 11, 51, 101, 201)
"""Where the groups of the paper's figure begin; 0 is a group by itself."""


def check_can_draw() -> None:
    """Raise UsageError if Matplotlib is not installed; to be called before a corpus is counted."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"a page with figures needs Matplotlib: {pip_install('report')}")


Draw = Callable[["Axes", Sequence[Statistics]], None]


def figures_of(both: Sequence[Statistics]) -> list[tuple[str, str, Draw]]:
    """Title, explanation and drawing function of each figure that has something to show."""
    found = both[0]
    figures: list[tuple[str, str, Draw]] = [
        ("Masks per image", "share of images", _masks_per_image),
        (
            "Relative mask size",
            "√(mask area ∕ image area); share of masks, logarithmic",
            _histogram("relative_size", 50, log=True),
        ),
        (
            "Concavity",
            "1 − area over the area of the convex hull; share of masks",
            _histogram("concavity", 50),
        ),
        ("Predicted IoU", "share of masks", _histogram("predicted_iou", 60)),
        ("Stability", "share of masks", _histogram("stability", 50)),
        ("Sizes of images", "width and height in pixels, logarithmic; larger dots are more images", _sizes),
    ]
    figures = [figure for figure in figures if figure[0] != "Concavity" or found.concavity.total]
    for place, one in enumerate(both):
        title = "Centres of masks" + (f" · {one.name}" if len(both) > 1 else "")
        figures.append(
            (title, "centres of their boxes, each image as a square; warmer is more", _centres(place))
        )
    if any(one.drops.total() for one in both):
        figures.append(
            ("Dropped candidates", "by the first filter that they failed; logarithmic", _bars("drops"))
        )
    if any(one.rejects.total() for one in both):
        figures.append(("Rejected inputs", "by class", _bars("rejects")))
    if len(found.commits) > 1:
        figures.append(("Throughput", "images per second, by when shards were written", _throughput))
    if any(one.seconds.total() for one in both):
        figures.append(("Workers' time", "seconds by stage", _bars("seconds")))
    return figures


def as_svg(title: str, note: str, draw: Draw, both: Sequence[Statistics]) -> str:
    """A figure as HTML, with its drawing as SVG in it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    draw(axes, both)
    file = io.StringIO()
    with rc_context({"svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for fixed, named in _COLOURS.items():
        svg = svg.replace(fixed, named)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{text(title)}"', 1)
    return f"<figure><figcaption><b>{text(title)}</b><span>{text(note)}</span></figcaption>{svg}</figure>"


def _masks_per_image(axes: Axes, both: Sequence[Statistics]) -> None:
    ends = [*MASKS_PER_IMAGE[1:], np.inf]
    labels = ["0", "1–10", "11–50", "51–100", "101–200", "> 200"]
    for place, found in enumerate(both):
        counts = found.masks_per_image.counts
        heights = [
            sum(count for value, count in counts.items() if start <= value < end)
            for start, end in zip(MASKS_PER_IMAGE, ends, strict=True)
        ]
        width = 0.8 / len(both)
        xs = np.arange(len(labels)) + (place - (len(both) - 1) / 2) * width
        axes.bar(xs, np.divide(heights, max(1, sum(heights))), width * 0.94, color=(_OWN, _OTHER)[place])
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter(_percent())


def _histogram(name: str, bins: int, log: bool = False) -> Draw:
    def draw(axes: Axes, both: Sequence[Statistics]) -> None:
        spans = []
        for place, found in enumerate(both):
            histogram: Histogram = getattr(found, name)
            if not histogram.total:
                continue
            counts = histogram.counts.reshape(bins, -1).sum(axis=1) / histogram.total
            edges = histogram.edges[:: histogram.bins // bins]
            filled = np.flatnonzero(counts)
            spans.append((edges[filled[0]], edges[filled[-1] + 1]))
            colour = (_OWN, _OTHER)[place]
            if place == 0:
                axes.stairs(counts, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(counts, edges, color=colour, linewidth=1.4, baseline=None if log else 0)
        if spans:
            axes.set_xlim(min(low for low, _ in spans), max(high for _, high in spans))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("")
        axes.yaxis.set_major_formatter(_percent())

    return draw


def _sizes(axes: Axes, both: Sequence[Statistics]) -> None:
    low, high = SIDE_OCTAVES
    for place, found in enumerate(both):
        ys, xs = np.nonzero(found.sides_HW)
        counts = found.sides_HW[ys, xs]
        steps = (high - low) / len(found.sides_HW)
        width, height = 2.0 ** (low + (xs + 0.5) * steps), 2.0 ** (low + (ys + 0.5) * steps)
        share = counts / max(1, counts.max(initial=1))
        axes.scatter(width, height, s=12 + 90 * share, color=(_OWN, _OTHER)[place], alpha=0.55, linewidths=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.set_xlabel("width")
    axes.set_ylabel("height")


def _centres(place: int) -> Draw:
    def draw(axes: Axes, both: Sequence[Statistics]) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        counts_YX = both[place].centres_YX
        while len(counts_YX) > 16 and counts_YX.sum() < 16 * counts_YX.size:  # few masks: larger cells
            half = len(counts_YX) // 2
            counts_YX = counts_YX.reshape(half, 2, half, 2).sum(axis=(1, 3))
        colours = [(0.14, 0.34, 0.77, 0.0), (0.14, 0.34, 0.77, 0.55), (0.85, 0.35, 0.1, 1.0)]
        colour_map = LinearSegmentedColormap.from_list("middles", colours)
        axes.imshow(counts_YX, cmap=colour_map, vmin=0, extent=(0, 1, 1, 0), interpolation="nearest")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)

    return draw


def _bars(name: str) -> Draw:
    def draw(axes: Axes, both: Sequence[Statistics]) -> None:
        counted: list[Mapping[str, float]] = [getattr(found, name) for found in both]
        keys = {key for one in counted for key, value in one.items() if value}
        shown = sorted(keys, key=lambda key: max(one.get(key, 0) for one in counted))[-12:]
        height = 0.76 / len(both)
        for place, one in enumerate(counted):
            ys = np.arange(len(shown)) + ((len(both) - 1) / 2 - place) * height
            axes.barh(ys, [one.get(key, 0) for key in shown], height * 0.94, color=(_OWN, _OTHER)[place])
            for y, value in zip(ys, (one.get(key, 0) for key in shown), strict=True):
                told = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
                beside: dict[str, Any] = {
                    "xytext": (4, 0),
                    "textcoords": "offset points",
                    "va": "center",
                    "fontsize": 8,
                }
                axes.annotate(told, (max(value, 1 if name == "drops" else 0), y), color=_SOFT, **beside)
        axes.set_yticks(range(len(shown)), [_plain(key) for key in shown])
        axes.tick_params(axis="y", length=0)
        if name == "drops":
            axes.set_xscale("log")
            axes.set_xlim(left=0.8)
        axes.margins(x=0.15)

    return draw


def _throughput(axes: Axes, both: Sequence[Statistics]) -> None:
    times, images = np.array([commit[:2] for commit in sorted(both[0].commits)]).T
    span = max(times[-1] - times[0], 1.0)
    bins = int(np.clip(len(times) // 3, 1, 60))
    counts, edges = np.histogram(times - times[0], bins, (0, span), weights=images)
    unit, named = next(
        (size, word)
        for size, word in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        if span >= 2 * size or size == 1
    )
    axes.stairs(counts / np.diff(edges), edges / unit, fill=True, color=_OWN, alpha=0.3)
    axes.stairs(counts / np.diff(edges), edges / unit, color=_OWN, linewidth=1.4)
    axes.set_xlabel(f"{named} since the first shard")


def _plain(label: str) -> str:
    return label.replace("$", r"\$").replace("_", " ")


def _percent() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _place: f"{100 * value:g} %")

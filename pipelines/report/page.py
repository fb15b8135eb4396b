"""The statistics of a corpus as one HTML page, with numbers and figures (`report.figures`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UsageError
from ..pages.template import fill, part, policy, text
from ..storage import atomic
from .figures import STYLE, as_svg, check_can_draw, figures_of
from .histogram import SHARES, Histogram, Tallied
from .statistics import Statistics

_NOTHING = "–"
_HERE = Path(__file__).parent


def write_report(out: Path, found: Statistics, against: Statistics | None = None) -> None:
    """Write the page of a corpus's statistics, beside those of another corpus if one is given.

    Raises UsageError if it cannot be written, or if Matplotlib is not installed.
    """
    check_can_draw()
    import matplotlib

    both = [found] if against is None else [found, against]
    with matplotlib.rc_context(STYLE):
        figures = "".join(as_svg(title, note, draw, both) for title, note, draw in figures_of(both))
    parts = {
        "policy": policy(),
        "name": text(found.name),
        "against": "" if against is None else _legend(both),
        "style": part("look.css") + part("report.css", _HERE),
        "numbers": _numbers(both),
        "figures": figures,
    }
    page = fill(part("report.html", _HERE), parts).encode("utf-8", "backslashreplace")
    with atomic.failing_as(UsageError, out):
        atomic.replace(out, page)


def _legend(both: Sequence[Statistics]) -> str:
    names = "".join(
        f"<span>{_swatch(found, place)}<bdi>{text(found.name)}</bdi></span>"
        for place, found in enumerate(both)
    )
    return f'<p class="legend">{names}</p>'


def _numbers(both: Sequence[Statistics]) -> str:
    names = [_swatch(found, place) if len(both) > 1 else "" for place, found in enumerate(both)]
    counts = {name: [f"{found.counts[name]:,}" for found in both] for name in both[0].counts}
    means = {name: [_mean(found.distributions()[name]) for found in both] for name in both[0].distributions()}
    tables = [_table(["counts", *names], counts), _table(["means", *names], means)]
    for name, found in zip(names, both, strict=True):
        quantiles = {
            what: [f"{value:.3g}" for value in distribution.quantiles(SHARES)]
            for what, distribution in found.distributions().items()
        }
        tables.append(_table([f"quantiles {name}", *(f"{share:.0%}" for share in SHARES)], quantiles))
    return "".join(tables)


def _mean(distribution: Histogram | Tallied) -> str:
    return f"{distribution.mean:.4g}" if distribution.total else _NOTHING


def _swatch(found: Statistics, place: int) -> str:
    name = text(found.name)
    return f'<i class="{("own", "other")[place]}" role="img" title="{name}" aria-label="{name}"></i>'


def _table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    title, *columns = head
    cells = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>'
        for name, values in rows.items()
        if set(values) - {_NOTHING}
    )
    row = f'<tr><th scope="col">{title}</th>{cells}</tr>'
    return f"<div><table><thead>{row}</thead><tbody>{body}</tbody></table></div>"

"""Figures as inline SVG: text stays text, and colours are the page's, which follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# matplotlib does not support CSS variables: it draws in these colours, which are replaced in the SVG.
INK, GRID, SERIES = "#010101", "#020202", ("#030303", "#040404")
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--line)", SERIES[0]: "var(--series-1)", SERIES[1]: "var(--series-2)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tesserec",  # ids inside the SVG depend on its content alone
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # only for measuring; the page sets its own font
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def curves(
    x: Sequence[float], series: Mapping[str, Sequence[float]], *, x_label: str, mark: float | None = None
) -> Markup:
    """Draws lines over steps or epochs.

    Args:
        x: positions.
        series: at most two lines by name, as long as `x`.
        x_label: label of the positions.
        mark: position of a vertical line, such as the epoch that was kept.

    Returns:
        An inline SVG element.
    """

    def draw(axes: Axes) -> None:
        for (name, values), colour in zip(series.items(), SERIES, strict=False):
            axes.plot(x, values, color=colour, label=name, marker="o" if len(x) <= 30 else None, markersize=3)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), label="kept")
        if len(series) > 1 or mark is not None:
            axes.legend()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(draw, x_label, height=2.7)


def intervals(rows: Sequence[tuple[str, float, float, float]], *, x_label: str, mark: float | None = None) -> Markup:
    """Draws values with their intervals, one below the other.

    Args:
        rows: (name, value, low, high).
        x_label: label of the values.
        mark: position of a vertical line, such as no gain.

    Returns:
        An inline SVG element.
    """

    def draw(axes: Axes) -> None:
        names, values, low, high = zip(*rows, strict=True)
        at = range(len(rows))
        axes.hlines(at, low, high, color=SERIES[0], linewidth=5, alpha=0.35)
        axes.plot(values, at, "o", color=SERIES[0], markersize=6)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_yticks(list(at), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    return _svg(draw, x_label, height=0.7 + 0.4 * len(rows))


def band(
    x: Sequence[float],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    x_label: str,
    dots: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Draws a line within its intervals.

    Args:
        x: positions.
        values: the line, as long as `x`.
        low: lower ends of the intervals, as long as `x`.
        high: upper ends of the intervals, as long as `x`.
        x_label: label of the positions.
        dots: positions and values of the single results whose mean is the line.

    Returns:
        An inline SVG element.
    """

    def draw(axes: Axes) -> None:
        axes.fill_between(x, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
        axes.plot(x, values, color=SERIES[0], marker="o", markersize=3)
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=SERIES[1], markersize=3, alpha=0.7)
        axes.set_xticks(x)

    return _svg(draw, x_label, height=2.7)


def _svg(draw: Callable[[Axes], None], x_label: str, *, height: float) -> Markup:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, height), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x_label)
        draw(axes)
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]  # inline SVG has no XML prolog
    svg = re.sub(r' (?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # names of groups, repeated in every figure and never referenced
    for colour, page_colour in PAGE_COLOURS.items():
        svg = svg.replace(colour, page_colour)
    return Markup(svg)  # noqa: S704 - drawn here; names are escaped by the SVG writer

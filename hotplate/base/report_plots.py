"""Plots of reports as inline SVG, by matplotlib (`hotplate[bench]`)."""

import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from hotplate.base.report import Plot, format_value

INK, FAINT = "#010101", "#020202"
LINES = tuple(f"#0a000{number}" for number in range(1, 7))
# CSS variables that replace matplotlib's colours.
VARIABLES = {INK: "--ink", FAINT: "--faint"} | {colour: f"--line-{n}" for n, colour in enumerate(LINES, 1)}
STYLE: Any = {
    "axes.edgecolor": FAINT, "axes.grid": True, "axes.labelcolor": INK, "axes.spines.right": False,
    "axes.spines.top": False, "figure.facecolor": "none", "axes.facecolor": "none", "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"], "font.size": 10, "grid.color": FAINT, "grid.linewidth": 0.4,
    "legend.frameon": False, "legend.labelcolor": INK, "lines.linewidth": 1.6, "svg.fonttype": "none",
    "svg.hashsalt": "hotplate", "text.color": INK, "text.parse_math": False, "xtick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.color": FAINT, "ytick.labelcolor": INK,
}  # fmt: skip
# Inches of a plot, and of one on a phone.
WIDTH = 9.0
HEIGHT = 3.4
NARROW = 4.5
# Letters in a line of the legend of a plot of that width.
LETTERS = 110
# Distance of labels that stand one below the other.
LINE_POINTS = 13
# Least ratio of the ends of a log axis, for several labels; beyond the second, a label at each power of ten is enough.
LEAST_RATIO = 20
LARGE_RATIO = 500
# Space between the ends of a log axis and the values, as a factor.
LOG_MARGIN = 1.3


def draw(plot: Plot) -> str:
    """Return a plot as two SVG elements, of which the style sheet shows the one that fits the screen.

    Their colours are CSS variables of the page.
    """
    wide = _plot_as_svg(plot, WIDTH)
    narrow = _plot_as_svg(plot, NARROW)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _plot_as_svg(plot: Plot, width: float) -> str:
    """Return a plot as an SVG element of *width* inches."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, HEIGHT))
        axes = figure.subplots()
        _draw_curves(axes, plot)
        _draw_marks(axes, plot.marks)
        _draw_x_axis(axes.xaxis, plot)
        _draw_legend(axes, LETTERS * width / WIDTH)
        return _svg_of(figure, f"Plot: {plot.title}; {plot.y} over {plot.x}")


def _draw_curves(axes: Axes, plot: Plot) -> None:
    """Draw the curves of a plot and its y axis; a curve has a gap where its y is None.

    A single curve has no label, so that there is no legend.
    """
    marker: Any = "o" if plot.points else None
    has_legend = len(plot.curves) > 1
    for number, curve in enumerate(plot.curves):
        y = [math.nan if value is None else value for value in curve.y]
        label = curve.name if has_legend else None
        axes.plot(curve.x, y, color=LINES[number % len(LINES)], marker=marker, markersize=4, label=label)

    axes.set_ylabel(plot.y)
    values = [value for curve in plot.curves for value in curve.y if value is not None]
    _set_scale(axes.yaxis, values, plot.y_unit, is_log=plot.log_y)


def _draw_marks(axes: Axes, marks: Mapping[float, str]) -> None:
    """Draw a vertical line at each x of *marks*, with its label."""
    for number, (x, label) in enumerate(marks.items()):
        axes.axvline(x, color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)))
        offset = (4, -10 - LINE_POINTS * number)  # labels of near marks stand one below the other
        axes.annotate(
            label, (x, 1), xycoords=("data", "axes fraction"), xytext=offset, textcoords="offset points", color=INK
        )


def _draw_x_axis(axis: Axis, plot: Plot) -> None:
    """Draw the x axis of a plot, with its label, unit, scale and ticks."""
    axis.set_label_text(plot.x)
    values = [*plot.marks, *(x for curve in plot.curves for x in curve.x)]
    _set_scale(axis, values, plot.x_unit, is_log=plot.log_x)
    if plot.ticks:
        axis.set_major_locator(FixedLocator(list(plot.ticks)))
        axis.set_major_formatter(FixedFormatter(list(plot.ticks.values())))
        axis.set_minor_locator(NullLocator())


def _set_scale(axis: Axis, values: Iterable[float], unit: str, *, is_log: bool) -> None:
    """Set the scale, the ends and the labels of an axis, so that it shows *values*; labels have the *unit*.

    A linear axis begins at 0, or below for negative values. A logarithmic one shows positive values only, and spans at
    least a factor of `LEAST_RATIO`, for several labels; without positive values the axis is linear.
    """
    name = "x" if axis is axis.axes.xaxis else "y"
    finite = list(filter(math.isfinite, values))
    positive = [value for value in finite if value > 0]
    if is_log and positive:
        _set_log_scale(axis, name, positive)
    else:
        axis.axes.set(**{f"{name}lim": (min([0.0, *finite]), None)})
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, unit)))


def _set_log_scale(axis: Axis, name: str, positive: Sequence[float]) -> None:
    """Make an axis logarithmic, with ends around *positive* values, at least a factor of LEAST_RATIO apart.

    *name* is "x" or "y". Labels are at 1, 2 and 5 times the powers of ten, or over a large range at the powers only.
    """
    low = min(positive) / LOG_MARGIN
    high = max(positive) * LOG_MARGIN
    if high / low < LEAST_RATIO:
        low /= 2
        high *= 2
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})

    labelled_multiples = (1, 2, 5) if high / low < LARGE_RATIO else (1,)
    axis.set_major_locator(LogLocator(subs=labelled_multiples))
    axis.set_minor_formatter(NullFormatter())


def _draw_legend(axes: Axes, letters: float) -> None:
    """Draw the legend above the axes, if curves have labels, in as many columns as fit into *letters*."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        longest = max(map(len, labels)) + 6  # letters that the line and the space take
        columns = max(1, min(len(labels), int(letters / longest)))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0.2, handlelength=1.4)


def _svg_of(figure: Figure, description: str) -> str:
    """Return a figure as an SVG element that fits into the page: scalable, described, and in the page's colours.

    Ids are removed, since they must not repeat on a page; so are metadata and styles.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)

    svg = svg.replace("font-family: 'DejaVu Sans', sans-serif", "font-family: var(--font)")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    opening = rf'<svg viewBox="\1" role="img" aria-label="{html.escape(description)}">'
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opening, svg, count=1)

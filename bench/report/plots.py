"""Plots for a report, as SVG to stand inside a page: its colours are the page's own, so they follow light and dark.

Each is drawn twice, for a wide and a narrow page, because letters that shrink with a plot cannot be read on a phone.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from hotplate.bench.loadgen.capacity import PERCENTS
from hotplate.bench.report.report import Series
from hotplate.bench.report.text import escaped, format_us

INK = "#010101"
FAINT = "#020202"
BAD = "#030303"
LINES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")

# What matplotlib draws in, and the page's variable that takes its place.
VARIABLES = {INK: "--ink", FAINT: "--faint", BAD: "--bad"} | {
    colour: f"--line-{number}" for number, colour in enumerate(LINES, 1)
}

STYLE: Any = {  # of a type that would name every setting of matplotlib
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # measured with; shown in the page's own
    "font.size": 10,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "hotplate",
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
# Inches, by the class of the page's that shows it.
WIDTHS = {"wide": 9.0, "narrow": 4.4}
HIGH = 3.4
# Letters of a legend that fit into a line.
LETTERS = {"wide": 110, "narrow": 48}
TICKS = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
# The percentile from which on a spectrum begins: the few faster ones say little, and would stretch its axis.
FASTEST = 1.0

COUNT = "{x:,.0f}"

P = ParamSpec("P")
Frames = Sequence[Axes]


def plot(*ratios: int, high: float = 1.0) -> Callable[[Callable[Concatenate[Frames, P], None]], Callable[P, str]]:
    """Make a plot of a function that draws into frames, one above the other, as high by each other as *ratios* say."""

    def decorate(draw: Callable[Concatenate[Frames, P], None]) -> Callable[P, str]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
            made = list[str]()
            for kind, width in WIDTHS.items():
                with rc_context(STYLE):
                    figure = Figure(figsize=(width, HIGH * high))
                    rows = ratios or (1,)
                    grid = figure.subplots(
                        len(rows), 1, sharex=True, squeeze=False, height_ratios=rows, gridspec_kw={"hspace": 0.3}
                    )
                    frames = grid[:, 0].tolist()
                    draw(frames, *args, **kwargs)
                    for axes in frames:
                        _legend(axes, LETTERS[kind])
                    made.append(_svg(figure, kind, _described(frames)))
            return "".join(made)

        return drawn

    return decorate


@plot()
def spectrum(frames: Frames, shown: Sequence[Series], percentile: str = "") -> None:
    """Draw latency over percentile; the scale stretches towards 100 %, where the slow responses are.

    Dotted is the lower bound of latencies, where it differs; a line marks the *percentile* that decides.
    Nothing is drawn below what matters, because a lower bound falls to 1 µs if the generator was late.
    """
    (axes,) = frames
    most = max((each.histogram.count for each in shown), default=0)
    begins_us = [each.histogram.percentiles_us([FASTEST])[0] for each in shown]
    lowest_us = min(begins_us + [each.lower.percentiles_us([50])[0] for each in shown], default=0.0)
    for each, colour in zip(shown, LINES * len(shown), strict=False):
        both = (each.histogram, "solid", each.name), (each.lower, "dotted", None)
        for histogram, line, name in both[: 1 + (each.lower.mean_us < each.histogram.mean_us)]:
            points = [(percent, us) for percent, us in histogram.spectrum() if percent < 100 and us >= lowest_us]
            at, us = [100 / (100 - percent) for percent, _ in points], [us for _, us in points]
            axes.plot(at, us, color=colour, linestyle=line, label=name if len(shown) > 1 else None)
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    ticks = [percent for percent in TICKS if most * (100 - percent) / 100 >= 1] or [50.0]
    axes.xaxis.set_major_locator(FixedLocator([100 / (100 - percent) for percent in ticks]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 - 100 / x:g} %")
    axes.xaxis.set_minor_locator(NullLocator())
    latency_scale(axes)
    axes.set_xlabel("part of the requests that were at least this fast")
    if PERCENTS.get(percentile, 100) < 100:
        mark(axes, 100 / (100 - PERCENTS[percentile]), percentile, INK)


@plot(2, 1, high=1.35)
def timeline(frames: Frames, shown: Series) -> None:
    """Draw every second of every round: latencies above, good answers and failures below."""
    above, below = frames
    seconds = [second for each in shown.rounds for second in each.facts["seconds"]]
    at = list(range(1, len(seconds) + 1))
    for name, colour in (("max", LINES[2]), ("p99", LINES[1]), ("p50", LINES[0])):
        above.plot(at, [second[f"{name}_us"] or float("nan") for second in seconds], color=colour, label=name)
    latency_scale(above)
    below.step(at, [second["ok"] for second in seconds], where="mid", color=LINES[0], label="good answers/s")
    failed = [second["failed"] + second["dropped"] for second in seconds]
    if any(failed):
        below.step(at, failed, where="mid", color=BAD, label="errors and drops/s")
    count_scale(below)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_xlabel("second" if len(shown.rounds) == 1 else "second, all rounds one after the other")
    for begins in np.cumsum([len(each.facts["seconds"]) for each in shown.rounds[:-1]]):
        for axes in frames:
            axes.axvline(begins + 0.5, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))


@plot()
def search(frames: Frames, searches: Sequence[Mapping[str, Any]]) -> None:
    """Draw p99 over rate for each search; a line is the highest rate inside the objective."""
    (axes,) = frames
    for found, colour in zip(searches, LINES * len(searches), strict=False):
        points = sorted(found["points"], key=lambda each: float(each["at"]))
        valid = [each for each in points if not each["invalid_reasons"]]
        own = found["name"] if len(searches) > 1 else "p99"
        axes.plot([each["at"] for each in valid], [max(each["p99_us"], 1) for each in valid], color=colour, label=own)
        for each in points:
            inside = FAINT if each["invalid_reasons"] else BAD if each["broken"] else colour
            axes.plot([each["at"]], [max(each["p99_us"], 1)], marker="o", color=inside, linestyle="none")
        if found["highest"]:
            mark(axes, found["highest"], f"{found['highest']:,.0f}/s", colour)
    for label, colour in (("outside", BAD), ("invalid run", FAINT)):
        axes.plot([], [], color=colour, marker="o", linestyle="none", label=label)
    rate_axis(axes, "requests/s that fell due")
    latency_scale(axes)


@plot(1, 1, high=1.1)
def knee(frames: Frames, found: Mapping[str, Any]) -> None:
    """Draw the trials of a level of RU/s over the rate that was offered: latencies above, the share of 429s below."""
    above, below = frames
    points = sorted((each for each in found["trials"] if not each["invalid_reasons"]), key=lambda each: each["at"])
    at = [each["at"] for each in points]
    for name, colour in (("p50", LINES[0]), ("p99", LINES[1])):
        above.plot(at, [each[f"{name}_us"] for each in points], color=colour, marker="o", label=name)
    latency_scale(above)
    below.plot(at, [100 * each["throttled"] for each in points], color=BAD, marker="o", label="429s, measured")
    drawn = np.linspace(0, max(at, default=1.0), 200)[1:]
    expected = 100 * np.maximum(0, 1 - found["predicted"] / drawn)
    below.plot(drawn, expected, color=FAINT, label="429s, if all partitions refuse alike")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter("{x:g} %")
    rate_axis(below, "reads/s that fell due")
    if found["best"]:
        for axes in frames:
            axes.axvline(found["best"]["at"], color=LINES[3], linewidth=1)


def mark(axes: Axes, at: float, words: str = "", colour: str = LINES[3]) -> None:
    """Draw a line at a rate, or at what *words* name."""
    axes.axvline(at, color=colour, linewidth=0.8)
    axes.annotate(
        words or f"{at:,.0f}/s", (at, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
        textcoords="offset points", color=colour,
    )  # fmt: skip


def rate_axis(axes: Axes, label: str) -> None:
    """Let the axis of rates begin at zero, with thousands marked."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(COUNT)
    axes.set_xlabel(label)


def latency_scale(axes: Axes) -> None:
    """Scale to latencies, in microseconds; its ticks have units."""
    if not any((np.asarray(line.get_ydata(), dtype=float) > 0).any() for line in axes.lines):
        axes.set_ylim(1, 1000)  # nothing was answered: an empty frame, because there is no scale of nothing
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / max(low, 1e-9) < 20:  # a log scale of less than a decade has no label left
        axes.set_ylim(low / 2, high * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / max(low, 1e-9) < 500 else (1,)))
    axes.yaxis.set_major_formatter(lambda y, _: format_us(y))
    axes.yaxis.set_minor_formatter(NullFormatter())


def count_scale(axes: Axes) -> None:
    """Scale from zero, with thousands marked."""
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(COUNT)


def _legend(axes: Axes, letters: int) -> None:
    """Name the lines above the frame, where some have names, as many in a line as it has room for."""
    if labels := axes.get_legend_handles_labels()[1]:
        columns = max(1, min(len(labels), letters // (max(map(len, labels)) + 6)))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0.2, handlelength=1.4)


def _described(frames: Frames) -> str:
    """Say in words what a plot shows, for those who do not see it; its figures stand in tables, too."""
    names = [label for axes in frames for label in axes.get_legend_handles_labels()[1]]
    return f"Plot{' of' * bool(names)} {', '.join(dict.fromkeys(names))} over {frames[-1].get_xlabel() or 'rows'}"


def _svg(figure: Figure, kind: str, description: str) -> str:
    """Return the figure as an element of a page: the page's colours and font, and no ids that another plot has, too."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("font-family: 'DejaVu Sans', sans-serif", "font-family: var(--font)")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    opening = rf'<svg class="{kind}" viewBox="\1" role="img" aria-label="{escaped(description)}">'
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opening, text, count=1)

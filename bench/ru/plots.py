"""Plots of a sweep: what each level bears, and how refusals and latencies grow beyond its knee."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.report.plots import BAD, FAINT, HIGH, LINES, STYLE, WIDE, count_scale, latency_scale, legend, svg


def levels(found: Sequence[Mapping[str, Any]]) -> str:
    """Draw the best rate over RU/s: dots as measured, the line by arithmetic, both in RU spent a second."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDE, HIGH))
        axes = figure.subplots()
        at = [each["ru"] for each in found]
        axes.plot([0, max(at)], [0, max(at)], color=FAINT, label="all of it spent")
        best = [(each["ru"], each["best"]["rate"] * each["read_ru"]) for each in found if each["best"]]
        axes.plot(*zip(*best, strict=True), color=LINES[0], marker="o", linestyle="none", label="best rate, in RU/s")
        count_scale(axes)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("RU/s provisioned")
        legend(axes)
        return svg(figure)


def refusals(found: Mapping[str, Any]) -> str:
    """Draw one level's trials over the rate that was offered: latencies above, the share of 429s below."""
    points = sorted((each for each in found["trials"] if not each["doubts"]), key=lambda each: float(each["rate"]))
    at = [each["rate"] for each in points]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDE, HIGH * 1.1))
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.35})
        for name, colour in (("p50", LINES[0]), ("p99", LINES[1])):
            above.plot(at, [each[f"{name}_us"] for each in points], color=colour, marker="o", label=name)
        latency_scale(above)
        below.plot(at, [100 * each["throttled"] for each in points], color=BAD, marker="o", label="429s, measured")
        drawn = np.linspace(0, max(at, default=1.0), 200)[1:]
        expected = 100 * np.maximum(0, 1 - found["arithmetic"] / drawn)
        below.plot(drawn, expected, color=FAINT, label="429s, by arithmetic: 1 - RU/s ÷ RU asked for")
        below.set_ylim(bottom=0)
        below.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
        below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        below.set_xlim(left=0)
        below.set_xlabel("reads/s that fell due")
        for axes in (above, below):
            if found["best"]:
                axes.axvline(found["best"]["rate"], color=LINES[3], linewidth=1)
            legend(axes)
        return svg(figure)

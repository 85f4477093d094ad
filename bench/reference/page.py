"""What only the reference test has to show on its page: the table beside the published figures, and the knees."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.comparison_page import grouped
from bench.reference.lines import NOTE
from bench.reference.published import RATE
from bench.report import plots
from bench.report.plots import FAINT, HIGH, LINES, STYLE, WIDE, count_scale, legend, svg
from bench.report.text import escaped, section

LEAD = f"What was published beside what each store did here, on one machine. {NOTE}"
CLIMB = (
    "Users' own lists answered a second, over the requests/s that fell due. Where a line leaves the diagonal, a limit "
    "is reached."
)


def sections(found: Mapping[str, Any]) -> list[str]:
    """Lay the test out."""
    parts = [section("The reference's test, and the truth beside it", grouped(found["stores"], found["lines"]), LEAD)]
    reached = [each for each in found["knees"] if each["points"]]
    if reached:
        said = "".join(f"<p>{escaped(each)}.</p>" for each in found["endings"])
        parts.append(section("On up to the knee", climb(reached) + said, CLIMB))
    for each in reached:
        heading = f"Latency on the way to the knee: {each['name']}"
        if each["emulated"]:
            parts.append(section(heading, "", f"Not shown: {each['emulated']}."))
        else:
            parts.append(section(heading, plots.search(each)))
    return parts


def climb(knees: Sequence[Mapping[str, Any]]) -> str:
    """Draw the answers of all stores over the rate that was offered."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDE, HIGH))
        axes = figure.subplots()
        for each, colour in zip(knees, LINES * len(knees), strict=False):
            points = sorted((one["at"], one["own_rate"]) for one in each["points"] if not one["invalid_reasons"])
            name = f"{each['name']} ({each['emulated']})" if each["emulated"] else each["name"]
            axes.plot([at for at, _ in points], [rate for _, rate in points], color=colour, marker="o", label=name)
        most = max((one["at"] for each in knees for one in each["points"] if not one["invalid_reasons"]), default=RATE)
        axes.plot([0, most], [0, most], color=FAINT, linewidth=0.8)
        axes.axvline(RATE, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), label=f"{RATE:g}/s, the published load")
        count_scale(axes)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("requests/s that fell due")
        legend(axes)
        return svg(figure)

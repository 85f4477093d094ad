"""A report as a self-contained HTML page, with inline plots by matplotlib (`hotplate[bench]`)."""

import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from hotplate.base.report import (
    Column,
    Plot,
    Report,
    Row,
    TextTable,
    format_cell,
    format_row,
    format_value,
    to_json,
    write_file,
)

TEMPLATE = Path(__file__).with_name("report.html")
STYLE_SHEET = Path(__file__).with_name("report.css")
# Control characters, and bytes of a path that are not UTF-8.
NO_HTML = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
DETAILS = "All figures, configuration and machine"
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
# Longer tables of texts are folded.
OPEN_LINES = 30
# Least ratio of the ends of a log axis, for several labels; beyond the second, a label at each power of ten is enough.
LEAST_RATIO = 20
LARGE_RATIO = 500
# Space between the ends of a log axis and the values, as a factor.
LOG_MARGIN = 1.3


def save(report: Report, name: Path) -> None:
    """Write *name*.json and *name*.html, each atomically."""
    write_file(_json_path(name), json.dumps(to_json(report), indent=1))
    write_file(name.with_name(f"{name.name}.html"), page(report))


def is_saved(name: Path) -> bool:
    """Return whether there is a *name*.json, of an earlier report."""
    return _json_path(name).exists()


def _json_path(name: Path) -> Path:
    return name.with_name(f"{name.name}.json")


def page(report: Report) -> str:
    """Return a report as an HTML page: answer, problems, table, verdicts, notes, plots, method, and details."""
    parts = [f"<h1>{_prose(report.sentence)}</h1>", f'<p class="soft">{_escaped(_origin(report))}</p>']
    if report.complaints:
        reasons = "".join(f"<li>{_prose(complaint)}</li>" for complaint in report.complaints)
        parts.append(f'<div class="bad"><strong>Look out:</strong><ul>{reasons}</ul></div>')

    parts.append(summary(report))
    parts += [f'<p class="note">{_prose(note)}</p>' for note in report.notes]
    parts += [_figure(plot) for plot in report.plots]
    parts += [_text_table(table) for table in report.tables]
    parts += [f'<p class="note">{_prose(sentence)}</p>' for sentence in report.method]
    parts.append(_details(report))

    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=_escaped(report.sentence), style=STYLE_SHEET.read_text(encoding="utf-8"), body="\n".join(parts)
    )


def summary(report: Report) -> str:
    """Return the table, verdicts and origins as HTML, for pages with the style sheet."""
    parts = list[str]()
    main_rows = [row for row in report.rows if row.main]
    if report.columns and report.rows:
        parts.append(_columns_html(report))
        parts += [f'<p class="note">{_escaped(mark)} {_escaped(text)}</p>' for mark, text in report.used_marks.items()]
    elif main_rows:
        parts.append(_grouped_html(main_rows))

    lines = {**report.verdicts, **report.origins}
    terms = "".join(f"<dt>{_escaped(label)}</dt><dd>{_prose(text)}</dd>" for label, text in lines.items())
    parts.append(f"<dl>{terms}</dl>" if terms else "")
    return "\n".join(parts)


def other_figures(report: Report) -> str:
    """Return the figures outside of the table as HTML, for pages with the style sheet."""
    figures = {column.figure for column in report.columns}
    hidden = [row for row in report.rows if row.figure not in figures] if figures else []
    hidden = hidden or [row for row in report.rows if not row.main]
    return _grouped_html(hidden) if hidden else ""


def _figure(plot: Plot) -> str:
    return (
        f"<figure><h2>{_escaped(plot.title)}</h2>{draw(plot)}<figcaption>{_escaped(plot.caption)}</figcaption></figure>"
    )


def _details(report: Report) -> str:
    facts = "".join(
        f"<tr><th scope=row>{_escaped(name)}</th><td>{_escaped(_plain(value))}</td></tr>"
        for name, value in {**report.configuration, **report.machine}.items()
    )
    details = other_figures(report) + f'<div class="scroll"><table class="facts">{facts}</table></div>'
    return f"<details><summary>{DETAILS}</summary>{details}</details>"


def _origin(report: Report) -> str:
    """Return the line below the sentence: kind of report, date, CPU and commit, as far as they are known."""
    facts = report.machine
    date = str(facts.get("date", ""))[:16].replace("T", " ")
    known = filter(None, (date, facts.get("cpu"), facts.get("commit")))
    return " · ".join([f"hotplate {report.kind}", *map(str, known)])


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(member)}" for name, member in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _columns_html(report: Report) -> str:
    """Return a table with a line for each subject of a report, and the columns that the report declares."""
    # Lines of a heading are words, or parts of a word.
    texts = [re.sub(r"-\n|\n(?=[/@])", "", column.heading).replace("\n", " ") for column in report.columns]
    headings = [_escaped(text) for text in texts]
    head = "".join(f"<th scope=col>{heading}</th>" for heading in headings)
    lines = []
    for subject in report.subjects:
        line = f"<th scope=row>{_escaped(subject)}</th>"
        for heading, column in zip(headings, report.columns, strict=True):
            line += f'<td data-figure="{heading}">{_column_cell(report.row(subject, column.figure), column)}</td>'
        lines.append(f"<tr>{line}</tr>")
    return (
        '<div class="scroll" tabindex="0"><table class="matrix">'
        f"<thead><tr><td>{report.subject_heading}</td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _column_cell(row: Row | None, column: Column) -> str:
    """Return a cell of a column as HTML: the row's value, mark and interval, or its note; empty for no row.

    A mark is a sign that refers to an explanation below the table.
    """
    text = _escaped(format_cell(row, column)).replace(" ", "&nbsp;")
    if row is None or column.noted or row.value is None:
        return text

    mark = f"&nbsp;{_escaped(row.mark)}" if row.mark else ""
    if row.low is None or row.high is None:
        return f"{text}{mark}"

    low = format_cell(replace(row, value=row.low), column)
    high = format_cell(replace(row, value=row.high), column)
    return f"{text}{mark}<small>{low} … {high}</small>"


def _grouped_html(rows: Sequence[Row]) -> str:
    """Return a table with a line for each row, below the name of its subject, with interval and note in small."""
    bodies = []
    for subject, members in groupby(rows, key=lambda row: row.subject):
        lines = [f"<tr><th scope=rowgroup colspan=2>{_escaped(subject)}</th></tr>"]
        for row in members:
            value, interval = format_row(row)
            cell = _escaped(value).replace(" ", "&nbsp;")
            if interval:
                cell += f"<small>{_escaped(interval)}</small>"
            lines.append(f"<tr><th scope=row>{_escaped(row.figure)}</th><td>{cell}</td></tr>")
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return f'<div class="scroll" tabindex="0"><table class="grouped">{"".join(bodies)}</table></div>'


def _text_table(table: TextTable) -> str:
    """Return a table of texts below a title that opens and closes it."""
    head = "".join(f"<th scope=col>{_escaped(heading)}</th>" for heading in table.headings)
    lines = ("".join(f"<td>{_escaped(cell)}</td>" for cell in line) for line in table.lines)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    inside = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    caption = f'<p class="note">{_escaped(table.caption)}</p>' if table.caption else ""
    opened = " open" if len(table.lines) <= OPEN_LINES else ""
    return f"<details{opened}><summary>{_escaped(table.title)}</summary>{caption}{inside}</details>"


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
    opening = rf'<svg viewBox="\1" role="img" aria-label="{_escaped(description)}">'
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opening, svg, count=1)


def _prose(text: str) -> str:
    """Escape text, with options that no line breaks at their hyphens."""
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<span class="option">\g<0></span>', _escaped(text))


def _escaped(text: str) -> str:
    return html.escape(NO_HTML.sub("\ufffd", text))

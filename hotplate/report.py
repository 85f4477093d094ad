"""Reports of measurements, plans and evaluations: rows of figures, a sentence and plots, as text and as JSON.

Units are `us` (microseconds), `share` (0 to 1), or any text, printed unchanged. Also: generated tables in Markdown.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

FORMAT = 3
UNKNOWN = "—"
# Wider than any table.
ANY_WIDTH = 10_000
TUPLES = ("notes", "broken", "failures")
MARKDOWN_END = "<!-- up to here -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one subject.

    value      the headline, for percentiles over all rounds pooled; None if unknown
    values     by round
    low, high  95 % interval
    note       such as `assumed` or `COMPUTED`, or why the value is unknown
    main       whether the first table shows the row
    """

    subject: str
    figure: str
    unit: str = ""
    value: float | None = None
    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    note: str = ""
    main: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot; a y of None is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over one x axis, with labels `x` and `y`.

    marks   labels of vertical lines, by x
    ticks   labels of the x axis by x, instead of numbers
    below   another plot with the same x axis and legend
    """

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    x_unit: str = ""
    y_unit: str = ""
    log_x: bool = False
    log_y: bool = False
    points: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)
    ticks: Mapping[float, str] = field(default_factory=dict)
    caption: str = ""
    below: "Plot | None" = None


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts on the page."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one experiment.

    head      a heading, such as EMULATED
    failures  what could not be measured
    broken    what was measured and is not acceptable
    listed    one line for each row instead of a matrix
    extra     only in the JSON
    """

    kind: str
    sentence: str
    rows: tuple[Row, ...] = ()
    head: str = ""
    plots: tuple[Plot, ...] = ()
    tables: tuple[TextTable, ...] = ()
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    interrupted: bool = False
    listed: bool = False
    configuration: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done, 1 not completely measured, 3 not acceptable."""
        return 1 if self.failures or self.interrupted else 3 if self.broken else 0

    @property
    def complaints(self) -> list[str]:
        """Problems, the gravest first."""
        stopped = ["it was stopped before its end"] if self.interrupted else []
        return [*stopped, *self.failures, *self.broken]

    def row(self, subject: str, figure: str) -> Row | None:
        """Return one row, or None."""
        return next((row for row in self.rows if (row.subject, row.figure) == (subject, figure)), None)


def format_value(value: float, unit: str = "") -> str:
    """Format with three digits and a suitable unit."""
    match unit:
        case "us":
            return _time(value)
        case "share":
            return f"{_digits(100 * value)} %"
        case "/s":
            return f"{_digits(value)}/s"
        case _:
            return f"{_digits(value)} {unit}".rstrip()


def _time(us: float) -> str:
    for limit, scale, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if us < limit * 0.9995:
            return f"{_digits(us / scale)} {unit}"
    return f"{_digits(us / 1e6)} s"


def _digits(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_row(row: Row, *, unit: bool = True) -> tuple[str, str]:
    """Return a row's value, and its interval and note; without *unit* only times and shares have one."""
    shown = row.unit if unit or row.unit in {"us", "share"} else ""
    if row.value is None:
        return UNKNOWN, row.note
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{format_value(row.low, shown)} … {format_value(row.high, shown)}"
    return format_value(row.value, shown), ", ".join(each for each in (interval, row.note) if each)


def print_report(report: Report, console: Console) -> None:
    """Print head, sentence, main figures, notes and problems."""
    if report.head:
        console.print(escape(report.head), style="bold")
    console.print(escape(report.sentence))
    if rows := [row for row in report.rows if row.main]:
        matrix = _matrix(rows)
        fits = console.measure(matrix, options=console.options.update(max_width=ANY_WIDTH)).minimum <= console.width
        console.print(matrix if fits and not report.listed else _grouped(rows))
    for note in report.notes:
        console.print(escape(note))
    for complaint in report.complaints:
        console.print(escape(f"LOOK OUT: {complaint}"), style="bold red")


def _matrix(rows: Sequence[Row]) -> Table:
    columns = headings(rows)
    subjects = Column(overflow="fold")  # truncated, databases of one server would look the same
    made = Table(subjects, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in columns.values():
        made.add_column(heading, justify="right")
    cells = {(row.subject, row.figure): format_row(row, unit=False) for row in rows}
    for subject in dict.fromkeys(row.subject for row in rows):
        line = [cells.get((subject, figure), ("", "")) for figure in columns]
        made.add_row(escape(subject), *(escape(f"{value}\n{below}".rstrip()) for value, below in line))
    return made


def _grouped(rows: Sequence[Row]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for subject, members in groupby(rows, key=lambda row: row.subject):
        made.add_row(escape(subject), style="bold")
        for row in members:
            value, below = format_row(row)
            made.add_row(escape(row.figure), escape(value), escape(below))
    return made


def headings(rows: Iterable[Row]) -> dict[str, str]:
    """Return figures' headings, with the unit if the cells have none."""
    units = {row.figure: row.unit for row in rows}
    plain = {"", "us", "share"}
    return {name: name if unit in plain or unit in name else f"{name}, {unit}" for name, unit in units.items()}


def to_json(report: Report) -> dict[str, Any]:
    """Return plain JSON values."""
    facts = {"format": FORMAT, "exit_code": report.exit_code, **asdict(report), **report.extra}
    del facts["extra"]
    return facts


def from_json(facts: Mapping[str, Any]) -> Report:
    """Parse the result of `to_json`, without plots and tables; raises KeyError, TypeError or ValueError."""
    if facts["format"] != FORMAT:
        advice = "upgrade hotplate" if facts["format"] > FORMAT else "measure again"
        raise ValueError(f"its format is {facts['format']}, and this version reads {FORMAT}; {advice}")
    known = {name: facts[name] for name in Report.__dataclass_fields__ if name in facts}
    rows = tuple(Row(**{**each, "values": tuple(each["values"])}) for each in facts["rows"])
    tuples = {name: tuple(known[name]) for name in TUPLES}
    extra = {name: value for name, value in facts.items() if name not in {*known, "format", "exit_code"}}
    return Report(**{**known, **tuples, "plots": (), "tables": (), "rows": rows, "extra": extra})


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown_page(page: str, text: str, verb: str) -> str:
    """Replace the text between the marks of `make VERB`; ValueError without marks."""
    begin = f"<!-- written by make {verb} -->\n"
    before, mark, rest = page.partition(begin)
    _, end, after = rest.partition(MARKDOWN_END)
    if not (mark and end):
        raise ValueError(f"the page has no lines {begin.strip()} and {MARKDOWN_END.strip()}")
    return f"{before}{begin}{text}{MARKDOWN_END}{after}"

"""Reports of measurements, plans and evaluations: an answer, rows of figures and plots, as text and as JSON.

The first line is the answer. Then comes one table, a line for each subject: `Column` declares it. Without room for all
columns, several tables follow one another.
A subject is what was measured, such as a store; a figure is a number of it, such as p99; a round is one measurement.
Units are `us` (microseconds), `share` (0 to 1), or any text, printed unchanged. Also: generated tables in Markdown, and
how results are written to files.
"""

import math
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from hotplate.base.exit_codes import FAILED, REFUSED

FORMAT = 3
UNKNOWN = "—"
# Longer subjects are folded if the terminal is too narrow for all columns.
SUBJECT_WIDTH = 24
# Between columns of a table.
GAP = 2
# From here on, cells have no decimals.
WHOLE = 100
# Factors between the unit of rows and that of a column.
SCALES = {("us", "ms"): 1e-3, ("us", "µs"): 1.0, ("share", "%"): 100.0}
MARKDOWN_END = "<!-- up to here -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one subject; without both, an estimate that a report will name.

    value      the headline, for percentiles over all rounds pooled; None if unknown
    values     by round
    low, high  95 % interval
    note       such as `assumed`, or why the value is unknown
    main       whether the first table shows the row
    without    the value without each round, for comparisons
    mark       a letter beside the value, explained by the report's `marks`
    """

    subject: str = ""
    figure: str = ""
    unit: str = ""
    value: float | None = None
    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    note: str = ""
    main: bool = True
    without: tuple[float, ...] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the report's table.

    figure   of the rows that it shows
    heading  of at most two lines
    unit     of the cells, if other than the rows': ms for us, % for share
    digits   significant digits
    noted    whether it shows the rows' notes instead of their values
    """

    figure: str
    heading: str
    unit: str = ""
    digits: int = 2
    noted: bool = False


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

    sentence    the answer
    emulated    subjects of which the figures are those of an emulator
    columns     of the table; without, each main row has a line
    marks       explanations of the rows' marks
    verdicts    comparisons of figures, by name
    origins     what is measured, exact, assumed and priced
    method      how it was measured, on the page and in the JSON only
    failures    what could not be measured
    broken      what was measured and is not acceptable
    extra       only in the JSON
    """

    kind: str
    sentence: str
    emulated: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    columns: tuple[Column, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
    tables: tuple[TextTable, ...] = ()
    notes: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    interrupted: bool = False
    configuration: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done, 1 not completely measured, 3 not acceptable."""
        if self.failures or self.interrupted:
            return FAILED
        return REFUSED if self.broken else 0

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a figure nor a plot."""
        return not (self.rows or self.plots)

    @property
    def complaints(self) -> list[str]:
        """Problems, the gravest first."""
        stopped = ["it was stopped before its end"] if self.interrupted else []
        return [*stopped, *self.failures, *self.broken]

    def row(self, subject: str, figure: str) -> Row | None:
        """Return one row, or None."""
        return next((row for row in self.rows if (row.subject, row.figure) == (subject, figure)), None)

    @property
    def subjects(self) -> list[str]:
        """The subjects of the table's lines."""
        figures = {column.figure for column in self.columns}
        return list(dict.fromkeys(row.subject for row in self.rows if row.main and row.figure in figures))

    @property
    def subject_heading(self) -> str:
        """The heading of the subjects: empty unless all figures are those of an emulator."""
        return "emulated" if self.subjects and set(self.subjects) <= set(self.emulated) else ""

    @property
    def used_marks(self) -> dict[str, str]:
        """The explanations of marks in the table."""
        figures = {column.figure for column in self.columns}
        used = {row.mark for row in self.rows if row.figure in figures}
        return {mark: explanation for mark, explanation in self.marks.items() if mark in used}


def format_value(value: float, unit: str = "") -> str:
    """Format with three digits and a suitable unit."""
    match unit:
        case "us" if value < 999.5:  # more is rounded to 1 ms
            return f"{_digits(value)} µs"
        case "us" if value < 999_500:
            return f"{_digits(value / 1e3)} ms"
        case "us":
            return f"{_digits(value / 1e6)} s"
        case "share":
            return f"{_digits(100 * value)} %"
        case "/s":
            return f"{_digits(value)}/s"
        case _:
            is_plural = value != 1 or not unit.isalpha() or unit in {"s", "ms", "µs"}
            return f"{_digits(value)} {unit if is_plural else unit.removesuffix('s')}".rstrip()


def format_count(count: int, noun: str) -> str:
    """Return `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _digits(value: float) -> str:
    """Format with at least three significant digits, without zeros after the point: 0.125, 1.5, 12,346."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_cell(row: Row | None, column: Column) -> str:
    """Return a row's text in a column, without its mark."""
    if row is None:
        return ""
    if column.noted:
        return row.note
    if row.value is None:
        return UNKNOWN
    return rounded(row.value * SCALES.get((row.unit, column.unit), 1.0), column.digits)


def rounded(value: float, digits: int = 2) -> str:
    """Format with significant digits, as a whole number from 100 on: 0.37, 1.6, 12, 4,000."""
    nearest = float(f"{value:.{digits - 1}e}")
    if nearest == 0 or not math.isfinite(nearest):
        return f"{nearest:g}"
    if abs(nearest) >= WHOLE:
        return f"{nearest:,.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(nearest))))
    return f"{nearest:,.{decimals}f}"


def format_row(row: Row) -> tuple[str, str]:
    """Return the text of a row's value, as "1.3 ms", and that of its interval and note, as "1.2 ms … 1.4 ms, assumed".

    The second may be empty.
    """
    if row.value is None:
        return UNKNOWN, row.note

    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{format_value(row.low, row.unit)} … {format_value(row.high, row.unit)}"
    return format_value(row.value, row.unit), ", ".join(filter(None, (interval, row.note)))


def print_report(report: Report, console: Console) -> None:
    """Print a report: its answer, table, verdicts, origins of figures, notes, and problems.

    A problem with which the answer begins is not repeated.
    """
    _print_wrapped(report.sentence, console)
    _print_rows(report, console)

    texts_by_label = {**report.verdicts, **report.origins}
    if texts_by_label:
        console.print()
        indent = max(map(len, texts_by_label)) + 2
        for label, text in texts_by_label.items():
            _print_wrapped(f"{label:{indent}}{text}", console, indent)

    for note in report.notes:
        _print_wrapped(note, console)
    for complaint in report.complaints:
        if complaint[1:] in report.sentence:
            continue
        _print_wrapped(f"LOOK OUT: {complaint}", console, style="bold red")


def _print_rows(report: Report, console: Console) -> None:
    """Print the rows of a report as a table with its columns, and explain the marks in it.

    Without columns, there is a line for each main row.
    """
    if report.columns and report.rows:
        for columns in _blocks_of_columns(report, console.width):
            console.print()
            _print_stripped(_table_of_columns(columns), console)
        for mark, explanation in report.used_marks.items():
            _print_wrapped(f"{mark} {explanation}", console)
        return

    main_rows = [row for row in report.rows if row.main]
    if main_rows:
        _print_stripped(_table_of_rows(main_rows), console)


def _print_stripped(table: Table, console: Console) -> None:
    """Print a table without the spaces at the ends of its lines."""
    with console.capture() as printed:
        console.print(table)
    console.print(Text("\n".join(line.rstrip() for line in printed.get().splitlines())))


def _print_wrapped(text: str, console: Console, indent: int = 0, style: str = "") -> None:
    """Print without breaking words: paths and URLs stay whole."""
    wrapped = textwrap.wrap(
        text, console.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    console.print(Text("\n".join(wrapped), style))


@dataclass(frozen=True, slots=True)
class _TextColumn:
    """The heading and the cells of a column of the table, one for each subject."""

    heading: str
    cells: Sequence[str]
    noted: bool = False

    @property
    def width(self) -> int:
        """In characters of a terminal."""
        return max(cell_len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))


def _blocks_of_columns(report: Report, width: int) -> Iterator[list[_TextColumn]]:
    """Yield the columns of each table that a terminal of *width* characters needs for a report; the first has subjects.

    That is one table if all columns fit next to the subjects, which may be folded.
    """
    subjects = _TextColumn(report.subject_heading, report.subjects)
    figures = list[_TextColumn]()
    for column in report.columns:
        figures.append(_texts_of_column(column, [report.row(subject, column.figure) for subject in subjects.cells]))

    for block in blocks([column.width for column in figures], width - min(subjects.width, SUBJECT_WIDTH)):
        yield [subjects, *figures[block]]


def blocks(widths: Sequence[int], room: int) -> Iterator[slice]:
    """Yield the columns of each table, by the *widths* of all columns; at least one in a table.

    *room* is the width of a table without its first column, which all tables have.
    """
    begin = 0
    left = room
    for place, width in enumerate(widths):
        if GAP + width > left and place > begin:
            yield slice(begin, place)
            begin = place
            left = room
        left -= GAP + width
    yield slice(begin, len(widths))


def _table_of_columns(columns: Sequence[_TextColumn]) -> Table:
    """Return a table of *columns*; the first has the subjects, which are folded if the terminal is too narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="")
    subjects, *others = columns
    table.add_column(Text(subjects.heading), overflow="fold")
    for column in others:
        justify: JustifyMethod = "left" if column.noted else "right"
        table.add_column(
            Text(column.heading), justify=justify, vertical="bottom", no_wrap=not column.noted, overflow="fold"
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _texts_of_column(column: Column, rows: Sequence[Row | None]) -> _TextColumn:
    """Return the texts of a column, a cell for each of *rows*; None is an empty cell.

    If a row has a mark, a sign that refers to an explanation, all cells have room for one, so that figures are aligned.
    """
    has_marks = not column.noted and any(row.mark for row in rows if row)
    if not has_marks:
        return _TextColumn(column.heading, [format_cell(row, column) for row in rows], column.noted)

    heading = "\n".join(f"{line}  " for line in column.heading.split("\n"))  # spaces above the marks
    return _TextColumn(heading, [_marked_cell(row, column) for row in rows])


def _marked_cell(row: Row | None, column: Column) -> str:
    """Return a row's text with its mark, or with a space in its place."""
    mark = row.mark if row else ""
    return f"{format_cell(row, column)} {mark:1}"


def _table_of_rows(rows: Sequence[Row]) -> Table:
    """Return a table with a line for each row: its figure, value and interval, below the name of the subject.

    Rows of a subject must follow one another.
    """
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    for subject, rows_of_subject in groupby(rows, key=lambda row: row.subject):
        table.add_row(Text(subject), style="bold")
        for row in rows_of_subject:
            value, interval = format_row(row)
            table.add_row(Text(row.figure), Text(value), Text(interval))
    return table


def to_json(report: Report) -> dict[str, Any]:
    """Return plain JSON values."""
    facts = {"format": FORMAT, "exit_code": report.exit_code, **asdict(report), **report.extra}
    del facts["extra"]
    return facts


def from_json(facts: Mapping[str, Any]) -> Report:
    """Return the report that `to_json` made *facts* from, without plots and tables.

    Names that are no fields of a report become `extra`. Raises KeyError, TypeError or ValueError for another object,
    and ValueError for the format of another version.
    """
    if facts["format"] != FORMAT:
        advice = "upgrade hotplate" if facts["format"] > FORMAT else "measure again"
        raise ValueError(f"its format is {facts['format']}, and this version reads {FORMAT}; {advice}")

    fields = {name: facts[name] for name in Report.__dataclass_fields__ if name in facts}
    extra = {name: value for name, value in facts.items() if name not in {*fields, "format", "exit_code"}}
    try:
        return msgspec.convert({**fields, "plots": (), "tables": (), "extra": extra}, Report)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def write_file(file: Path, text: str) -> None:
    """Write *text* to a file in UTF-8, or to a device or pipe. Raises OSError.

    A file is replaced atomically, its mode and a link to it stay, and several processes may write it: each has a draft
    of its own, which `replace_durably` has not.
    """
    if file.exists() and not file.is_file():
        file.write_text(text, encoding="utf-8")
        return

    target = file.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        with suppress(FileNotFoundError):
            shutil.copymode(target, draft)
        draft.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error  # instead of the draft, or no file
    finally:
        draft.unlink(missing_ok=True)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown_page(page: str, text: str, verb: str) -> str:
    """Replace the text between the marks of `make VERB`; ValueError without marks."""
    begin = f"<!-- written by make {verb} -->\n"
    before, mark, written = page.partition(begin)
    _, end, after = written.partition(MARKDOWN_END)
    if not (mark and end):
        raise ValueError(f"the page has no lines {begin.strip()} and {MARKDOWN_END.strip()}")
    return f"{before}{begin}{text}{MARKDOWN_END}{after}"

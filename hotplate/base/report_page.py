"""A report as a self-contained HTML page; plots need matplotlib (`hotplate[bench]`)."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from string import Template

from hotplate.base.report import (
    Column,
    Plot,
    Report,
    Row,
    TextTable,
    format_cell,
    format_row,
    to_json,
    write_file,
)

TEMPLATE = Path(__file__).with_name("report.html")
STYLE_SHEET = Path(__file__).with_name("report.css")
# Control characters, and bytes of a path that are not UTF-8.
NO_HTML = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
DETAILS = "All figures, configuration and machine"
# Longer tables of texts are folded.
OPEN_LINES = 30


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
    parts.append(_paragraphs(report.notes))
    parts += [_figure(plot) for plot in report.plots]
    parts += [_text_table(table) for table in report.tables]
    parts.append(_paragraphs(report.method))
    parts.append(_details(report))

    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=_escaped(report.sentence), style=STYLE_SHEET.read_text(encoding="utf-8"), body="\n".join(parts)
    )


def brief(report: Report) -> str:
    """Return the answer, the table, verdicts and notes as HTML without the style sheet."""
    return f"<p>{_prose(report.sentence)}</p>{summary(report)}{_paragraphs(report.notes)}"


def _paragraphs(sentences: Iterable[str]) -> str:
    return "".join(f'<p class="note">{_prose(sentence)}</p>' for sentence in sentences)


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
    from hotplate.base.report_plots import draw  # noqa: PLC0415 -- an extra

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


def _prose(text: str) -> str:
    """Escape text, with options that no line breaks at their hyphens."""
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<span class="option">\g<0></span>', _escaped(text))


def _escaped(text: str) -> str:
    return html.escape(NO_HTML.sub("\ufffd", text))

"""How figures are written: quantities with units, the top of a report, and the few pieces of its HTML."""

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")
# From so many times on, both bounds of a latency are shown, and a latency is not known.
DIFFERENT = 1.1
APART = 10.0

NONE = "none"
UNKNOWN = "—"
TOO_FAR = "rounds differ too much for an interval"
TOO_FEW_BEYOND = "of too few samples beyond it"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

# A cell of a table: a text, or a figure and what stands smaller below it.
Cell = str | tuple[str, str]


class Footnotes(list[str]):
    """Why figures are unknown, each reason once; lives as long as a report is made."""

    def dash(self, reason: str) -> str:
        """Return what stands for an unknown figure: a dash, and the number of its reason."""
        if reason not in self:
            self.append(reason)
        return UNKNOWN + str(self.index(reason) + 1).translate(SUPERSCRIPTS)

    @property
    def lines(self) -> tuple[str, ...]:
        """The reasons, with their numbers."""
        return tuple(f"{str(number).translate(SUPERSCRIPTS)} {reason}" for number, reason in enumerate(self, 1))


@dataclass(frozen=True, slots=True)
class Summary:
    """The top of a report: one sentence, three figures of each subject after its name, and notes on them."""

    sentence: str
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    notes: tuple[str, ...] = ()
    percentile: str = ""
    """That of the objective, which the plot marks."""


NOTHING = Summary("Nothing was measured.")


def format_us(us: float) -> str:
    """Write microseconds with the unit that reads best."""
    if us < 1000:
        return f"{us:.0f} µs"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def format_short_us(us: float | None) -> str:
    """Write a time that may be short, absent or unknown, with three digits."""
    if us is None:
        return UNKNOWN
    if us == 0:
        return NONE
    return f"{_three_digits(us)} µs" if us < 1000 else format_us(us)


def format_bounds(least_us: float, most_us: float) -> str:
    """Write a time that lies between two: the longer one alone if they differ by little; not known if by much."""
    if most_us <= DIFFERENT * least_us:
        return format_us(most_us)
    between = f"{format_us(least_us)} to {format_us(most_us)}"
    return f"{UNKNOWN} ({between})" if most_us > APART * least_us else between


def latency_cell(found: Mapping[str, Any]) -> tuple[str, str]:
    """Write a latency's mean over rounds and its interval, as a series sums it up: both bounds if they differ."""
    mean, low, high, sent = found["mean"], found["low"], found["high"], found["sent"]
    both = mean > DIFFERENT * sent["mean"]
    shown = format_bounds(sent["mean"], mean) if both else format_short_us(mean)
    if not found["enough_samples"]:
        return shown, TOO_FEW_BEYOND
    if not both:
        return shown, _interval(mean, low, high)
    if sent["low"] is None:
        return shown, ""
    known = high <= APART * mean and sent["mean"] <= APART * sent["low"]
    return shown, f"{format_us(sent['low'])} … {format_us(high)}" if known else TOO_FAR


def format_interval(mean_us: float, low_us: float | None, high_us: float | None) -> str:
    """Write a time and its interval, all in the unit that suits the time."""
    return joined((format_short_us(mean_us), _interval(mean_us, low_us, high_us)))


def _interval(mean_us: float, low_us: float | None, high_us: float | None) -> str:
    if low_us is None or high_us is None:
        return ""
    if high_us > APART * mean_us or mean_us > APART * low_us:
        return TOO_FAR
    per = 1 if mean_us < 1000 else 1000
    return f"{_three_digits(low_us / per)} … {_three_digits(high_us / per)}"


def joined(cell: Cell) -> str:
    """Write a cell in one line."""
    return cell if isinstance(cell, str) else cell[0] + f" ({cell[1]})" * bool(cell[1])


def format_both_us(ours_us: float | None, server_us: float | None) -> str:
    """Write the CPU time of both sides."""
    if not server_us or ours_us is None:
        return format_short_us(ours_us)
    return f"{_three_digits(ours_us)} + {_three_digits(server_us)} µs"


def format_count(value: float | None) -> str:
    """Write a rate, to three digits."""
    return UNKNOWN if value is None else f"{float(f'{value:.3g}'):,.0f}"


def format_bytes(value: int | None) -> str:
    """Write bytes of memory."""
    if value is None:
        return UNKNOWN
    return f"{value / 1e6:,.0f} MB" if value else NONE


def _three_digits(value: float) -> str:
    """Write a number with three digits, or all of its whole ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def paragraphs(text: str) -> list[str]:
    """Split a text at its blank lines, and join the lines of each part."""
    return [" ".join(each.split()) for each in text.strip().split("\n\n")]


def escaped(value: object) -> str:
    """Write *value* so that it is text and nothing else."""
    return html.escape(str(value))


def section(heading: str, content: str, lead: str = "") -> str:
    """Put *content*, which is HTML, under a heading and a sentence."""
    above = f'<p class="soft">{escaped(lead)}</p>' if lead else ""
    return f"<section><h2>{escaped(heading)}</h2>{above}{content}</section>"


def html_paragraphs(texts: Iterable[str]) -> str:
    """Make a paragraph of each text."""
    return "".join(f"<p>{escaped(text)}</p>" for text in texts)


def folded(heading: str, parts: Iterable[str]) -> str:
    """Fold parts of a page away, below a heading that opens them."""
    return f"<details><summary>{escaped(heading)}</summary>{''.join(parts)}</details>"


def figure(plot: str, caption: str) -> str:
    """Put a plot above the sentence that explains it."""
    return f"<figure>{plot}<figcaption>{escaped(caption)}</figcaption></figure>"


def tiles(shown: Iterable[tuple[object, str]]) -> str:
    """Make a row of tiles, each of a figure and a few words below it."""
    made = (f'<div class="tile"><b>{escaped(figure)}</b><span>{escaped(words)}</span></div>' for figure, words in shown)
    return f'<div class="tiles">{"".join(made)}</div>'


def caution(heading: str, reasons: Iterable[str]) -> str:
    """Make a box of what to look out for."""
    listed = "".join(f"<li>{escaped(reason)}</li>" for reason in reasons)
    return f'<div class="verdict bad"><strong>{heading}</strong><ul>{listed}</ul></div>'


def whole_page(title: str, below: str, parts: Iterable[str]) -> str:
    """Make a page of its title, a line below that, and its parts, which are HTML."""
    body = [f"<h1>{escaped(title)}</h1>", f'<p class="soft">{escaped(below)}</p>', *parts]
    return Template(TEMPLATE.read_text()).substitute(title=escaped(title), body="\n".join(body))


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Iterable[int] = (), kind: str = "") -> str:
    """Make a table; the columns *numbers* are aligned as numbers are, and a row of one cell heads those below it.

    The first column names the rows if it has no heading itself.
    """
    right, named = set(numbers), not headings[0]

    def made(cell: Cell, column: int, heads: str = "") -> str:
        value, below = (cell, "") if isinstance(cell, str) else cell
        inside = escaped(value) + (f"<small>{escaped(below)}</small>" if below else "")
        opening = f'th scope="{heads}"' if heads and value else "td"
        return f"<{opening}{' class=n' * (column in right)}>{inside}</{opening[:2]}>"

    def line(row: Sequence[Cell]) -> str:
        if len(row) == 1:
            return f'<tr><th scope="rowgroup" colspan="{len(headings)}">{escaped(row[0])}</th></tr>'
        cells = (made(cell, column, "row" if named and not column else "") for column, cell in enumerate(row))
        return f"<tr>{''.join(cells)}</tr>"

    head = "".join(made(cell, column, "col") for column, cell in enumerate(headings))
    bodies = [list[str]()]
    for row in rows:
        if len(row) == 1:
            bodies.append([])
        bodies[-1].append(line(row))
    content = "".join(f"<tbody>{''.join(body)}</tbody>" for body in bodies if body)
    shown = f"<thead><tr>{head}</tr></thead>" if any(headings) else ""
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{shown}{content}</table></div>'


def grouped_table(names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """Make one table of lines, each with `group`, `name`, `cells` and maybe `verdict`, so all columns are aligned.

    The last column is for verdicts, where any line has one.
    """
    judged = any(line.get("verdict") for line in lines)
    rows = list[Sequence[Cell]]()
    for group, members in groupby(lines, key=lambda line: str(line["group"])):
        rows.append((group,))
        rows += [(line["name"], *line["cells"], *[line.get("verdict", "")] * judged) for line in members]
    return table(("", *names, *["verdict"] * judged), rows, range(1, len(names) + 1), "grouped")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all: until it is complete, readers see the old one, or none."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def write_report(name: Path, facts: Mapping[str, Any], page: str) -> None:
    """Write *name*.json and *name*.html, each whole or not at all."""
    for ending, text in {"json": json.dumps(facts, indent=1), "html": page}.items():
        write(name.with_name(f"{name.name}.{ending}"), text)

"""How figures are written: quantities with units, and the few pieces of HTML that a report is made of."""

import html
import re
from collections.abc import Iterable, Sequence

from bench.errors import BenchMisused

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6}
NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(\S*)\s*")


def parse_seconds(text: str) -> float:
    """Read a time; a bare number is seconds."""
    return _parse(text, SECONDS | {"": 1.0}, "a time such as 5ms or 30s")


def parse_rate(text: str) -> float:
    """Read a rate in requests/s: `2000`, `2k`."""
    return _parse(text, THOUSANDS, "a rate such as 500 or 2k")


def parse_share(text: str) -> float:
    """Read a part of a whole: `0.1%`, or `0.001`."""
    found = _parse(text, {"%": 0.01, "": 1.0}, "a share such as 0.1% or 0.001")
    if found > 1:
        raise BenchMisused(f"{text!r} is more than the whole")
    return found


def format_us(us: float) -> str:
    """Write microseconds with the unit that reads best."""
    if us < 1000:
        return f"{us:.0f} µs"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def _parse(text: str, units: dict[str, float], what: str) -> float:
    found = NUMBER.fullmatch(text)
    if not found or found[2] not in units:
        raise BenchMisused(f"{text!r} is not {what}")
    return float(found[1]) * units[found[2]]


def escaped(value: object) -> str:
    """Write *value* so that it is text and nothing else."""
    return html.escape(str(value))


def section(heading: str, content: str, lead: str = "") -> str:
    """Put *content*, which is HTML, under a heading and a sentence."""
    said = f'<p class="soft">{escaped(lead)}</p>' if lead else ""
    return f"<section><h2>{escaped(heading)}</h2>{said}{content}</section>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Make a table; the columns *numbers* are aligned as numbers are."""
    right = set(numbers)

    def line(kind: str, cells: Sequence[str]) -> str:
        made = (
            f"<{kind}{' class=n' if place in right else ''}>{escaped(cell)}</{kind}>"
            for place, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    head = f"<thead>{line('th', headings)}</thead>" if any(headings) else ""
    return f'<div class="scroll"><table>{head}<tbody>{"".join(line("td", row) for row in rows)}</tbody></table></div>'

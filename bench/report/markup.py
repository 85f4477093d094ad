"""The few pieces of HTML that a report is made of; whatever text comes in is escaped."""

import html
from collections.abc import Iterable, Sequence


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

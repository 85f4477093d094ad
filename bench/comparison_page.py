"""What only a comparison of stores has to show on its page: the table, and which differences are real."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.report.text import escaped, section

LEAD = (
    "The same release, users and schedule for each store. Means of rounds; in brackets the 95 % interval, where there "
    "are rounds enough for one."
)


def sections(compared: Mapping[str, Any]) -> list[str]:
    """Lay out the comparison, group by group, and what follows from it."""
    parts = [section("The comparison", grouped(compared["stores"], compared["lines"]), LEAD)]
    if said := [*compared["verdicts"], *compared["left_out"]]:
        parts.append(section("Which differences are real", "".join(f"<p>{escaped(each)}</p>" for each in said)))
    return parts


def grouped(names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """Make one table, so that the columns of all groups are in line."""
    bodies = list[str]()
    for group, found in groupby(lines, key=lambda line: str(line["group"])):
        rows = "".join(f"<tr><td>{escaped(line['name'])}</td>{_cells('td', line['cells'])}</tr>" for line in found)
        bodies.append(f'<tbody><tr><th colspan="{len(names) + 1}">{escaped(group)}</th></tr>{rows}</tbody>')
    head = f"<thead><tr><th></th>{_cells('th', names)}</tr></thead>"
    return f'<div class="scroll"><table class="grouped">{head}{"".join(bodies)}</table></div>'


def _cells(kind: str, cells: Sequence[str]) -> str:
    return "".join(f"<{kind} class=n>{escaped(cell)}</{kind}>" for cell in cells)

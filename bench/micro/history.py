"""The history of figures: what each run of `make bench` found, and the tables that are made of all of them.

A run is a line of bench/history.jsonl: when, on which machine, of which commit, and of each figure the median, the
least and the most of its rounds. One run says little: at another hour the same ratio is another. So a figure is
published from three runs that are an hour or a machine apart, and its bracket spans them; until then the table says
how many runs there are.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from hotplate.bench.machine import ROOT
from hotplate.bench.micro.harness import RATIO, UNITS, MeasuredFigure

HISTORY = ROOT / "bench" / "history.jsonl"
APART = timedelta(hours=1)
# Older ones are of another program.
LATEST = 5
TIMES = "×"  # noqa: RUF001 -- a factor
# Too few to be published without a word.
FEW = {1: "one run", 2: "two runs"}
END = "<!-- up to here -->\n"


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What one run found: of each figure the median, the least and the most of its rounds."""

    date: str
    machine: str
    commit: str | None
    figures: Mapping[str, tuple[float, float, float]]

    @property
    def at(self) -> datetime:
        """When it was; of a date alone its first moment, so all runs of a day without times are one."""
        at = datetime.fromisoformat(self.date)
        return at if at.tzinfo else at.replace(tzinfo=UTC)


def append(file: Path, described: Mapping[str, object], figures: Iterable[MeasuredFigure]) -> None:
    """Add a run on a machine, as `hotplate.bench.machine.describe` describes it."""
    machine = f"{described['cpu']}, {described['cores']} cores"
    spans = {one.name: _rounded(one.span) for one in figures}
    run = {"date": described["date"], "machine": machine, "commit": described["commit"], "figures": spans}
    with file.open("a") as opened:
        opened.write(json.dumps(run) + "\n")


def _rounded(span: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in span]


def read(file: Path) -> list[RecordedRun]:
    """Read all runs, the oldest first."""
    runs = [RecordedRun(**json.loads(line)) for line in file.read_text().splitlines()]
    return sorted(runs, key=lambda run: run.at)


def occasions(runs: Sequence[RecordedRun], figure: str) -> list[list[RecordedRun]]:
    """Group the runs that have a figure: those on one machine within an hour of the first of them are one occasion."""
    found: list[list[RecordedRun]] = []
    for run in runs:
        if figure in run.figures:
            same = (one for one in found if one[0].machine == run.machine and run.at - one[0].at < APART)
            if (group := next(same, None)) is None:
                found.append([run])
            else:
                group.append(run)
    return found[-LATEST:]


def shown(runs: Sequence[RecordedRun], figure: str) -> str:
    """Write a figure that there is: the median of its occasions, and what they span."""
    spans = [[run.figures[figure] for run in group] for group in occasions(runs, figure)]
    medians = [median(middle for middle, _, _ in group) for group in spans]
    inside = medians if spans[1:] else [value for span in spans[0] for value in span]
    sides, _, quantity = figure.rpartition(": ")
    unit = "ratio" if RATIO in sides else UNITS[quantity]
    span = f"{number(min(inside))} to {number(max(inside))}" if min(inside) < max(inside) else ""
    bracket = ": ".join(part for part in (FEW.get(len(spans), ""), span) if part)
    value = number(median(medians)) + {"ratio": f" {TIMES}", "/s": "/s"}.get(unit, f" {unit}")
    return value + (f" ({bracket})" if bracket else "")


def number(value: float) -> str:
    """Write a number with three digits that count."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(runs: Sequence[RecordedRun], rows: Mapping[str, str]) -> str:
    """Make a table of figures, by name with what they are of; those that no run has are left out."""
    lines = ["| what | compared with | measured |", "|---|---|---|"]
    for figure, row in rows.items():
        if occasions(runs, figure):
            what, _, peer = row.partition(", compared with ")
            peer, colon, quantity = peer.partition(": ")
            lines.append(f"| {what}{colon}{quantity} | {peer} | {shown(runs, figure)} |")
    return "\n".join(lines) + "\n"


def page_with(page: str, text: str, verb: str) -> str:
    """Return *page* with *text* between its two marks; ValueError if it has none."""
    begin = f"<!-- written by make {verb} -->\n"
    before, mark, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the page has no lines {begin.strip()} and {END.strip()}")
    return f"{before}{begin}{text}{END}{after}"

"""The comparison of two reports of `bench http`.

One figure decides, chosen beforehand: with four at 5 % each, one in six equal pairs would differ.
"""

import json
from pathlib import Path

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.process import describe
from hotplate.bench.statistics import Figure, compared
from hotplate.report import Column, Report, Row, format_value, from_json, rounded
from hotplate.stores.errors import reason_of

RATE = "rate"
COLUMNS = (
    Column("A", "A", "ms", digits=3),
    Column("B", "B", "ms", digits=3),
    Column("B / A", "B / A", digits=3),
    Column("interval", "interval of 95 %", noted=True),
)
ERRORS = "errors and drops"
MATTERS = 0.10  # smallest change
MORE_ERRORS = 0.001  # largest increase of the error share


def read(path: Path) -> Report:
    """Read a report. Raises BenchMisused for another file, BenchFailed for a missing one."""
    try:
        report = from_json(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise BenchFailed(
            f"{path} does not exist; name the .json of a report, which `hotplate bench http URL --out NAME` writes"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BenchMisused(f"{path} is not a report of hotplate bench http: {reason_of(error)}") from error
    if report.kind != "http" or not report.rows:
        raise BenchMisused(f"{path} holds no rounds of hotplate bench http")
    if unusable := [*report.complaints]:
        raise BenchMisused(f"{path} cannot be compared: {unusable[0]}")
    return report


def compare(first: Report, second: Report, decides: str = "p99") -> Report:
    """Compare two reports; a regression makes the result `broken`. Raises BenchMisused if they do not tell."""
    figures = {row.figure: _figure(row) for row in first.rows if row.unit in {"us", "/s"} and row.values}
    others = {row.figure: _figure(row) for row in second.rows}
    changes = {name: compared(one, others[name]) for name, one in figures.items() if name in others}
    if decides not in changes:
        raise BenchMisused(f"--metric {decides} is not in both reports; there are {', '.join(changes)}")
    rows = [row for name in changes for row in _rows(name, figures[name], others[name], changes[name], decides)]
    errors = _more_errors(first, second)
    sentence, regression = (f"A regression: {errors}.", errors) if errors else _verdict(decides, changes[decides])
    return Report(
        kind="compare",
        sentence=sentence,
        rows=tuple(rows),
        columns=COLUMNS,
        origins={"measured": f"all rounds of each; {decides} decides, and the others are for information"},
        broken=(regression,) if regression else (),
        machine=describe(),
        configuration={"A": first.configuration, "B": second.configuration},
    )


def _figure(row: Row) -> Figure:
    return Figure(row.value, row.values, row.low, row.high, row.note, row.without)


def _rows(name: str, first: Figure, second: Figure, change: Figure, decides: str) -> list[Row]:
    subject = "good answers/s" if name == RATE else f"{name}, ms"
    unit = "" if name == RATE else "us"
    main = name in {decides, RATE, "p50", "p99"}
    interval = change.note
    if change.low is not None and change.high is not None:
        interval = f"{rounded(change.low, 3)} to {rounded(change.high, 3)}"
    return [
        first.row(subject, "A", unit, main=main),
        second.row(subject, "B", unit, main=main),
        change.row(subject, "B / A", main=main),
        Row(subject, "interval", note=interval, main=main),
    ]


def _more_errors(first: Report, second: Report) -> str:
    before, after = (
        next((row.value or 0.0 for row in each.rows if row.figure == ERRORS), 0.0) for each in (first, second)
    )
    if after - before <= MORE_ERRORS:
        return ""
    return f"errors went from {format_value(before, 'share')} to {format_value(after, 'share')}"


def _verdict(name: str, change: Figure) -> tuple[str, str]:
    if change.value is None or change.low is None or change.high is None:
        raise BenchMisused(f"{name} cannot be compared: {change.note}; repeat both 5 times or more, or for longer")
    changed = f"{name} changed by {_percent(change.value)} ({_percent(change.low)} to {_percent(change.high)})"
    if change.low > 1 / (1 + MATTERS) and change.high < 1 + MATTERS:
        return f"No difference that matters: {changed}.", ""
    if change.low <= 1 <= change.high:
        return f"No difference is proven: {changed}. More or longer rounds narrow the interval.", ""
    if (change.value > 1) == (name == RATE):
        return f"An improvement: {changed}.", ""
    return f"A regression: {changed}.", f"a regression: {changed}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"

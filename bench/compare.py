"""The comparison of two reports of `bench http`.

One figure decides, chosen beforehand: with four at 5 % each, one in six equal pairs would differ.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hotplate.base.report import Column, Report, Row, format_value
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import LATENESS, P50, P99, RATE, read_report
from hotplate.bench.measure.statistics import PERCENTS, Portions, change_of, compared, is_significant_growth
from hotplate.bench.options import parse_seconds, parse_share
from hotplate.bench.verdict import Finding, Gravity, concluded

ADVICE = (
    "measure by `hotplate bench http URL --repeat 20` before and after a change; several stores are compared by one "
    "`hotplate bench stores`"
)
MATTERS = 0.10  # smallest change
MORE_ERRORS = 0.001  # largest increase of the error share that does not matter


def read(path: Path) -> Report:
    """Read a report of `bench http`. Raises BenchMisused for a missing file, or another one."""
    report = read_report(path)
    if report.kind != "http":
        raise BenchMisused(f"{path} is a report of kind {report.kind}, and compare takes those of bench http; {ADVICE}")
    try:
        _load_options(report)
        _failures(report)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise BenchMisused(f"{path} has no rounds at one rate, such as a sweep of --batch; {ADVICE}") from error
    if report.complaints:
        raise BenchMisused(f"{path} cannot be compared: {report.complaints[0]}")
    return report


def compare(first: Report, second: Report, decides: str = P99) -> Report:
    """Compare two reports of `bench http`, and report whether the second is better, worse or no different.

    The figure *decides* gives the verdict, unless the share of errors grew significantly, which is a regression, too.
    With a regression the result is `broken`. Raises BenchMisused if the reports are of different loads, or the figure
    is missing in one of them or has no interval.
    """
    _require_same_load(first, second)
    before = _figures(first)
    after = _figures(second)
    ratios = {name: compared(before[name], after[name]) for name in before if name in after}
    if decides not in ratios:
        raise BenchMisused(f"--metric {decides} is not in both reports; there are {', '.join(ratios)}")

    errors = _growth_of_errors(first, second)
    notes = list(_notes(first, second))
    if errors and is_significant_growth(_failures(first), _failures(second)):
        findings = [Finding(Gravity.ERRORS, f"a regression: {errors}")]
        answer = ""
    else:
        lateness_us = max(_value(first, LATENESS), _value(second, LATENESS))
        answer, findings = _judge(before[decides], after[decides], ratios[decides], lateness_us)
        if errors:
            notes.insert(0, f"{errors.capitalize()}, which may be chance.")

    rows = list[Row]()
    for name, ratio in ratios.items():
        rows += [
            replace(before[name], subject="A"),
            replace(after[name], subject="B"),
            replace(ratio, subject="B / A", figure=name),
        ]
    measured = Report(
        kind="compare",
        sentence="",
        rows=tuple(rows),
        columns=tuple(_column(name) for name in ratios if name in {decides, RATE, P50, P99}),
        origins={"measured": f"all rounds of each; {decides} decides, and the others are for information"},
        notes=tuple(notes),
        configuration={"A": first.configuration, "B": second.configuration},
    )
    return concluded(measured, findings, answer)


def _column(name: str) -> Column:
    return Column(name, "answers\n/s", digits=4) if name == RATE else Column(name, f"{name}\nms", "ms", digits=3)


def _require_same_load(first: Report, second: Report) -> None:
    loads = zip(_load_options(first).items(), _load_options(second).values(), strict=True)
    for (flag, before), after in loads:
        if before != after:
            differ = f"A was measured {_describe(flag, before)} and B {_describe(flag, after)}"
            raise BenchMisused(f"{differ}; only reports of one load can be compared, of --find-max only at one rate")


def _describe(flag: str, value: object) -> str:
    if not value:
        return f"without {flag}"
    return f"with {flag}" if value is True else f"with {flag} {value}"


def _load_options(report: Report) -> dict[str, object]:
    """Return the load of a report's rounds by flag, with an empty value for a flag that was not given.

    After a search, the rate is the highest that was found. Headers are compared by name, because reports do not keep
    their values. Raises a LookupError, TypeError, AttributeError or ValueError if the report has no such rounds.
    """
    rounds = report.extra["rounds"]
    if not rounds:
        raise ValueError("it has none")
    first_round = rounds[0]
    options = report.configuration
    return {
        "--rate": f"{first_round['requested_rate']:.10g}",
        "--connections": first_round["connections"],
        "--path": options.get("path"),
        "--poisson": options.get("poisson", False),
        "--users": options.get("users"),
        "--keys-file": options.get("keys_file"),
        "--zipf": options.get("zipf"),
        "--unknown": parse_share(options.get("unknown", "0%")),
        "--header": ", ".join(options.get("headers", ())),
        "--timeout": parse_seconds(options.get("timeout", "5s")),
    }


def _failures(report: Report) -> Portions:
    """Return the requests without a good answer, of those due. Raises a LookupError or TypeError without rounds."""
    rounds = report.extra["rounds"]
    return Portions(
        parts=[measured["due"] - measured["ok"] for measured in rounds],
        wholes=[measured["due"] for measured in rounds],
    )


def _figures(report: Report) -> dict[str, Row]:
    """Return the latencies and rates of a report by name; figures without values by round are left out."""
    return {row.figure: row for row in report.rows if row.unit in {"us", "/s"} and row.values}


def _growth_of_errors(first: Report, second: Report) -> str:
    """Return a sentence, without its full stop, if the share of errors grew by more than MORE_ERRORS; else nothing."""
    before = _failures(first).share
    after = _failures(second).share
    if after - before <= MORE_ERRORS:
        return ""
    return f"errors went from {format_value(before, 'share')} to {format_value(after, 'share')}"


def _value(report: Report, figure: str) -> float:
    return next((row.value or 0.0 for row in report.rows if row.figure == figure), 0.0)


def _notes(first: Report, second: Report) -> Iterator[str]:
    """Yield a note if the machines differ, by CPU and cores."""
    before, after = (
        f"{report.machine.get('cores')} cores of {report.machine.get('cpu')}" for report in (first, second)
    )
    if before != after:
        yield f"Measured on different machines, which may be the difference: A on {before}, B on {after}."


def _judge(before: Row, after: Row, ratio: Row, lateness_us: float) -> tuple[str, list[Finding]]:
    """Judge a change by the 95 % interval of its *ratio*, after / before: a sentence, or a regression.

    A rate is better if it grows, a latency if it falls. A p99 or higher percentile that changed by no more than
    *lateness_us*, the p99 of the load generator's delays, is not judged. Raises BenchMisused if the interval is
    unknown.
    """
    name = before.figure
    if ratio.value is None or ratio.low is None or ratio.high is None:
        raise BenchMisused(
            f"{name} cannot be compared: {ratio.note}; give both the same --repeat, 5 or more, and a longer --duration "
            "if answers are too few"
        )

    interval = f"{change_of(ratio.low)} to {change_of(ratio.high)}, 95 % interval over {len(ratio.without)} rounds"
    changed = f"{name} changed by {change_of(ratio.value)} ({interval})"
    if ratio.low > 1 / (1 + MATTERS) and ratio.high < 1 + MATTERS:
        return f"No difference that matters: {changed}.", []
    if ratio.low <= 1 <= ratio.high:
        return f"No difference is proven: {changed}. More or longer rounds narrow the interval.", []

    difference_us = abs((after.value or 0.0) - (before.value or 0.0))
    if PERCENTS.get(name, 0) >= PERCENTS[P99] and difference_us <= lateness_us:
        late = format_value(lateness_us, "us")
        return f"No difference is proven: {changed}, and the generator itself was up to {late} late.", []
    if (ratio.value > 1) == (name == RATE):
        return f"An improvement: {changed}.", []
    return "", [Finding(Gravity.OUTSIDE, f"a regression: {changed}")]

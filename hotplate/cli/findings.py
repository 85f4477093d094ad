"""What the bench found, printed for a person."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hotplate.cli.terminal import out, table

if TYPE_CHECKING:
    from bench.http import Measured
    from bench.report.comparison import Verdict
    from bench.report.report import Report


def show(measured: "Measured") -> None:
    """Print a measurement for a person."""
    from bench.report.text import format_us

    report = measured.report
    for _, result in measured.runs:
        out.print(result.to_text(), markup=False)
    several = [each for each in report.series if len(each.rounds) > 1]
    for each in several:
        rows = [
            (name, format_us(found["mean"]), f"{format_us(found['low'])} … {format_us(found['high'])}")
            for name, found in each.summary().items()
            if name != "rate" and found["low"] is not None
        ]
        out.print(table(("latency", "mean of rounds", "95 % interval (t)"), rows))
    for kind, answer in (("search", "highest"), ("sweep", "knee")):
        if found := report.extra.get(kind):
            headings = (
                *(("rate", "answers/s") if kind == "search" else ("batch", "users/s")),
                "p50",
                "p99",
                "errors",
                "popular",
                "",
            )
            out.print(table(headings, [_point(point) for point in found["points"]]))
            out.print(f"{answer}: {found[answer] or 'none'}", markup=False)
    if checked := report.extra.get("checked"):
        _show_checked(checked)
    if report.interrupted:
        out.print("stopped before its end", markup=False)


def _point(point: dict[str, object]) -> tuple[str, ...]:
    from bench.report.text import format_us

    times = (format_us(float(str(point[f"{name}_us"]))) for name in ("p50", "p99"))
    said = "; ".join([*map(str, point["invalid_reasons"]), *map(str, point["broken"])])  # type: ignore[call-overload]  # two tuples
    return (
        f"{point['at']:,.0f}",
        f"{point['per_s']:,.0f}",
        *times,
        f"{point['error_share']:.2%}",
        f"{point['popular']:.1%}",
        said,
    )


def show_comparison(report: "Report") -> None:
    """Print a comparison of stores for a person."""
    compared = report.extra["comparison"]
    group, rows = "", list[tuple[str, ...]]()
    for line in compared["lines"]:
        if line["group"] != group:
            group = line["group"]
            rows.append((group,))
        rows.append((f"  {line['name']}", *line["cells"]))
    width = len(compared["stores"]) + 1
    out.print(table(("", *compared["stores"]), [row + ("",) * (width - len(row)) for row in rows]))
    left_out = compared["left_out"]
    told = [f"{len(left_out)} rounds do not count; the first: {left_out[0]}"] if left_out else []
    for sentence in (*compared["verdicts"], *told, *(f"INVALID: {doubt}" for doubt in report.invalid_reasons)):
        out.print(sentence, markup=False)
    _show_checked(report.extra["checked"])
    if report.interrupted:
        out.print("stopped before its end", markup=False)


def _show_checked(checked: Mapping[str, Any]) -> None:
    told = f"{checked['wrong']} wrong, {checked['fallback']} fell back to the popular list"
    out.print(f"{checked['compared']} lists compared with the store's: {told}", markup=False)
    for example in checked["examples"]:
        out.print(f"  {example}", markup=False)


def show_verdict(verdict: "Verdict") -> None:
    """Print a comparison for a person."""
    from bench.report.text import format_us

    rows = []
    for each in verdict.changes:
        values = [
            f"{value:,.0f}/s" if each.metric == "rate" else format_us(value) for value in (each.before, each.after)
        ]
        told = f"{each.interval.mean:+.1%}", f"{each.interval.low:+.1%} … {each.interval.high:+.1%}"
        rows.append((each.metric, *values, *told, "decides" if each.metric == verdict.decides else ""))
    out.print(table(("", "A", "B", "change", "95 % interval (t)", ""), rows))
    left_out = f" ({verdict.left_out} left out, as invalid)" if verdict.left_out else ""
    out.print(f"{verdict.pairs} pairs of rounds{left_out}; {verdict.sentence}", markup=False)

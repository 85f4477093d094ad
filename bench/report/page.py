"""The files of a report: an HTML page that makes no requests, the JSON, and an HDR log."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.loadgen.capacity import PERCENTS, highest_text
from bench.loadgen.histogram import ENOUGH_SAMPLES, Histogram, log_of
from bench.loadgen.result import Result, at_least
from bench.report import plots
from bench.report.report import ERRORS, RATE, WHILE_WRITTEN, Report, Series, counted
from bench.report.text import (
    caution,
    escaped,
    format_bounds,
    format_latency,
    format_us,
    grouped_table,
    html_paragraphs,
    paragraphs,
    section,
    table,
    tiles,
    whole_page,
    write_report,
)  # fmt: skip

HEADLINES = ("p50", "p99", "p99.9")

# Runs, each with the epoch second of its start.
Runs = Sequence[tuple[float, Result]]

OPEN = (
    "Open loop: requests fall due by a schedule that does not wait for answers, and each latency runs from when its "
    "request was due, so what a stall kept waiting is charged to it."
)
CLOSED = (
    "Closed loop: each connection sends its next request only when the last one is answered. While the server stalls, "
    "nothing is sent and nothing is counted, so the latencies flatter; quote the rate of such a run, and nothing else."
)
COMPARED = (
    "The same release, users and schedule for each store. Means of rounds; in brackets the 95 % interval, where there "
    "are rounds enough for one."
)
CAPACITIES = (
    "Users' own lists answered a second, over the requests/s that fell due. Where a line leaves the diagonal, a limit "
    "is reached."
)
LIMITS = f"""
Latency is what the client sees, its own reading and the network's way included. Where the generator was late itself,
two times stand with "to" between them: from when requests were sent, without what kept the generator away, and from
when they were due. The truth lies between the two. Answers that were errors have no latency here, so look at errors and
percentiles together.

Histograms hold 3 digits from 1 µs to 60 s. A percentile with fewer than {ENOUGH_SAMPLES} samples beyond it is
marked, as it is an anecdote.

The mean of rounds is the geometric one of the middle three fifths, and an interval is that mean's, of 95 %. It speaks
of chance within this measurement, not of another machine, another day or another load.

Where generator and server share a machine, each takes CPU and cache from the other.
"""


def page(report: Report) -> str:
    """Lay out the whole file."""
    facts = report.machine
    compared = report.extra.get("comparison", {})
    names = [each["name"] for each in report.extra.get("stores", [])]
    subject = report.extra.get("subject") or report.configuration.get("url") or " and ".join(names)
    parts = [_verdict(report)]
    rounds = [each for each in report.series if each.rounds]
    if len(rounds) == 1:
        parts += [_tiles(rounds[0]), _percentiles(rounds[0])]
    if compared:
        parts += _comparison(compared)
    if swept := report.extra.get("ru"):
        from bench.ru.report import sections  # noqa: PLC0415 -- it takes the SDK of Azure, which nothing else does

        parts += sections(swept)
    parts += _knees(report.extra)
    if rounds:
        parts.append(section("Percentile spectrum", plots.spectrum(rounds)))
    if "sweep" not in report.extra:
        lasting = [each for each in rounds if not each.name.endswith(WHILE_WRITTEN)]
        parts += [section(f"Second by second{_of(each, rounds)}", plots.timeline(each)) for each in lasting]
    if rounds:
        parts.append(_outcomes(rounds, report.extra))
    parts += [_method(report), _setting(report)]
    below = f"{facts['date']} · {facts['cpu']}, {facts['cores']} cores"
    return whole_page(f"hotplate bench {report.kind}: {subject}", below, parts)


def _comparison(compared: Mapping[str, Any]) -> list[str]:
    """Lay out a comparison of stores, group by group, and what follows from it."""
    notes = html_paragraphs(compared["notes"])
    parts = [section("The comparison", grouped_table(compared["stores"], compared["lines"]) + notes, COMPARED)]
    if sentences := [*compared["verdicts"], *counted(compared["left_out"])]:
        parts.append(section("Which differences are real", html_paragraphs(sentences)))
    if searches := [each for each in compared["capacity"] if each["points"]]:
        endings = html_paragraphs(f"{each['ending']}." for each in searches)
        parts.append(section("The highest rate of each store", plots.capacities(searches) + endings, CAPACITIES))
    for each in searches:
        heading = f"Latency on the way to the highest rate: {each['name']}"
        hidden = each["emulated"]
        parts.append(section(heading, "" if hidden else plots.search(each), f"Not shown: {hidden}." if hidden else ""))
    return parts


def _verdict(report: Report) -> str:
    rounds = [each for series in report.series for each in series.rounds]
    reasons = [*counted(report.invalid_reasons), *report.failures, *report.broken]
    if report.interrupted:
        reasons.append("it was stopped before its end")
    if reasons:
        invalid = "Invalid: these figures do not measure the service."
        return caution(invalid if report.invalid_reasons else "Look out:", reasons)
    if holds := report.extra.get("holds"):
        return f'<div class="verdict"><strong>Valid.</strong> {escaped(holds)}</div>'
    lags = [each.facts["lag_us"]["p99"] for each in rounds if each.facts["lag_us"]]
    lag = f" Its lag was at most {format_us(max(lags))} at p99." if lags else ""
    left_out = len(report.extra.get("comparison", {}).get("left_out", []))
    which = f"every round that counts; left out, as they did not: {left_out}" if left_out else "every round"
    return f'<div class="verdict"><strong>Valid.</strong> The load was offered as planned in {which}.{lag}</div>'


def _tiles(shown: Series) -> str:
    summary, errors = shown.summary, fmean(shown.values(ERRORS))
    pooled = ((name, summary[name]["sent"]["pooled"], summary[name]["pooled"]) for name in HEADLINES)
    headlines = [(format_bounds(least_us, most_us), name) for name, least_us, most_us in pooled]
    failed = f"{errors:.3%}".replace("0.000%", "none")
    rate = f"{'at least ' if shown.at_least else ''}{summary[RATE]['mean']:,.0f}/s"
    return tiles([*headlines, (rate, "good answers"), (failed, "errors and drops")])


def _percentiles(shown: Series) -> str:
    summary, pooled = shown.summary, shown.histogram
    several = len(shown.rounds) > 1
    rows = []
    for name in PERCENTS:
        found = summary[name]
        note = "" if found["enough_samples"] else f"fewer than {ENOUGH_SAMPLES} samples beyond it"
        spread = [format_latency(found)] if several else []
        rows.append([name, format_bounds(found["sent"]["pooled"], found["pooled"]), *spread, note])
    rows.append(["mean", format_us(pooled.mean_us), *([""] if several else []), "says little about latencies"])
    headings = ["", "all rounds", *(["mean of rounds, 95 % interval"] if several else []), ""]
    return section(
        "Latency", table(headings, rows, numbers=range(1, len(headings) - 1)), f"{pooled.count:,} good answers."
    )


def _knees(extra: Mapping[str, Any]) -> list[str]:
    parts = []
    if found := extra.get("search"):
        text = f"Highest rate inside the objective ({found['objective']}), to 5 %: {highest_text(found)}."
        parts.append(section("The knee", plots.search(found), text))
    if found := extra.get("sweep"):
        text = (
            f"{found['parallel']} requests at a time, closed loop. The knee, the smallest batch that gives 90 % of the "
            f"most users/s: {found['knee'] or 'none'}. Larger ones add latency and hardly anything else. "
            "Users who were given the popular list do not count."
        )
        rows = [
            [
                f"{one['at']:,g}",
                f"{at_least(one)}{one['per_s']:,.0f}",
                *map(format_us, (one["p50_us"], one["p99_us"])),
                f"{one['popular']:.1%}",
            ]
            for one in found["points"]
        ]
        shown = table(["users in a request", "users/s", "p50", "p99", "popular"], rows, numbers=range(5))
        parts.append(section("By size of batch", plots.sweep(found) + shown, text))
    return parts


def _outcomes(rounds: Sequence[Series], extra: Mapping[str, Any]) -> str:
    facts = [each.facts for series in rounds for each in series.rounds]
    rows = [
        ["due, sent, good", " · ".join(f"{sum(each[name] for each in facts):,}" for name in ("due", "sent", "ok"))],
        ["errors", _counted(each["errors"] for each in facts)],
        ["dropped", f"{sum(each['dropped'] for each in facts):,}"],
        ["status codes", _counted(each["statuses"] for each in facts)],
    ]
    rows += [
        [name, _counted(each["seen"].get(name, {}) for each in facts)]
        for name in sorted({name for each in facts for name in each["seen"]})
    ]
    if checked := extra.get("checked"):
        fallback = f"{checked['fallback']:,} fell back to popular"
        counts = f"{checked['compared']:,} compared, {checked['wrong']:,} wrong, {fallback}"
        rows.append(["lists beside the store's", "; ".join([counts, *checked["examples"]])])
    lags = [each["lag_us"] for each in facts if each["lag_us"]]
    if lags:
        lag = [format_us(max(each[name] for each in lags)) for name in ("p50", "p99", "max")]
        rows.append(["lag of the generator, worst round", f"p50 {lag[0]}, p99 {lag[1]}, max {lag[2]}"])
    cpu = [each["cpu_us_per_request"] for each in facts]
    if cpu:
        rows.append(["CPU of the generator", f"{min(cpu):.1f} … {max(cpu):.1f} µs a request"])
    return section("What became of the requests", table(["", ""], rows))


def _counted(counts: Iterable[Mapping[str, int]]) -> str:
    total = sum(map(Counter, counts), Counter[str]())
    return ", ".join(f"{name or '(none)'} {count:,}" for name, count in sorted(total.items())) or "none"


def _method(report: Report) -> str:
    modes = {each.facts["mode"] for series in report.series for each in series.rounds}
    loops = [text for mode, text in (("open loop", OPEN), ("closed loop", CLOSED)) if mode in modes]
    own = report.extra.get("method") or report.extra.get("comparison", {}).get("method", [])
    return section("What is measured, and what is not", html_paragraphs([*own, *loops, *paragraphs(LIMITS)]))


def _setting(report: Report) -> str:
    shown = {**report.configuration, **report.machine}
    rows = [
        [name, ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, Mapping) else str(value)]
        for name, value in shown.items()
        if value not in (None, [], {}, "", False)
    ]
    return section("Configuration and machine", table(["", ""], rows))


def _of(shown: Series, among: Sequence[Series]) -> str:
    return f": {shown.name}" if len(among) > 1 else ""


def keep(report: Report, runs: Runs | None, name: Path) -> None:
    """Write *name*.json, *name*.html and, of runs of one subject, *name*.hdr, each whole or not at all."""
    write_report(name, report.to_json(), page(report), **({} if runs is None else {"hdr": hdr_log(runs)}))


def hdr_log(runs: Runs) -> str:
    """Write runs as an HDR log."""
    return log_of(
        (start_s + number, start_s + number + 1, Histogram.of(second.latencies_s))
        for start_s, result in runs
        for number, second in enumerate(result.seconds)
    )

"""The report of a measurement over HTTP: rounds at one rate, with the search for it, or a sweep of batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hotplate.base.report import Column, Curve, Plot, Report, Row, format_count, format_value
from hotplate.bench.figure_names import AT_LEAST, HIGHEST_RATE, LATENESS, P50, P99, P99_9, POPULAR_LISTS, RATE
from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.lists import CheckResult
from hotplate.bench.loadgen.result import ENOUGH_SAMPLES, Histogram, Result, lag_note
from hotplate.bench.objective import PERCENTS, format_bound, format_ms
from hotplate.bench.search import Trial, first_outside, highest, knee, users_per_s
from hotplate.bench.statistics import error_share, in_time, mean, percentile, popular_share
from hotplate.bench.verdict import NOT_LISTS, Finding, Gravity, concluded, findings_of, interrupted_report
from hotplate.stores.urls import redacted

PERCENTILES = (P50, P99, P99_9)
ERRORS_AND_DROPS = "errors and drops"
ERRORS = "errors"
USERS = "users"
AT_A_TIME = "batches at a time"
RATE_COLUMNS = (
    Column(P50, "p50\nms", "ms"),
    Column(P99, "p99\nms", "ms"),
    Column(P99_9, "p99.9\nms", "ms"),
    Column(RATE, "answers\n/s", digits=4),
    Column(ERRORS_AND_DROPS, "errors\n%", "%"),
    Column(POPULAR_LISTS, "popular\n%", "%"),
)
BATCH_COLUMNS = (
    Column(USERS, "users\n/s", digits=4),
    Column(P50, "p50\nms", "ms"),
    Column(P99, "p99\nms", "ms"),
    Column(AT_A_TIME, "batches\nat a time"),
    Column(ERRORS, "errors\n%", "%"),
    Column(POPULAR_LISTS, "popular\n%", "%"),
)
SHOWN_REASONS = 2
# Some seconds of a search may be left out.
SPARE = 1.6
LONGER = 3
BOUNDS = (Gravity.ERRORS, Gravity.OUTSIDE)
NOTHING_KNOWN = {Gravity.POPULAR, Gravity.UNMEASURED}
CLOSED_LOOP = (
    "closed loop: latency counts from sending; where the service refused more at a time (429, 503), fewer were sent"
)
# Percentiles at x = 1 / (1 - percentile), the usual axis of HDR plots.
SPECTRUM_TICKS = {2.0: "p50", 10.0: "p90", 100.0: "p99", 1_000.0: "p99.9", 10_000.0: "p99.99", 100_000.0: "p99.999"}
FEW_SECONDS = 30  # below it, a plot by second shows points


def _trial_json(trial: Trial) -> dict[str, Any]:
    """Return a point of the search or of the sweep, as in the JSON report."""
    result = trial.result
    latency = result.latency
    latencies = {f"{name}_us": latency.percentile_us(PERCENTS[name]) for name in PERCENTILES}
    return {
        "at": trial.offered,
        "inside": trial.is_inside,
        "broken": trial.broken,
        "doubts": trial.doubts,
        **latencies,
        "ok_rate": result.ok_rate,
        "error_share": result.error_share,
        "parallel": result.connections,
    }


@dataclass(frozen=True, slots=True)
class HttpRuns:
    """All runs, and the check of kept responses; without a store, nothing is checked."""

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool

    @property
    def rate(self) -> float:
        """The rate of the rounds or, before them, the highest one inside the objective; 0 if there is none."""
        if self.rounds:
            return self.rounds[0].requested_rate or 0.0
        best = highest(self.trials)
        return best.offered if best else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What rounds at one rate show, and the search for that rate, if there was one.

    findings all that is wrong
    timed    the rounds, without seconds that are left out of latencies
    best     the highest rate inside the objective; None without a search, or if there is none
    outside  a trial at the lowest rate outside, by which a complete search ended
    limit    why the highest rate may be higher; empty if the service ended the search
    """

    findings: Sequence[Finding]
    timed: Sequence[Result]
    best: float | None = None
    outside: Trial | None = None
    limit: str = ""

    @property
    def is_outside(self) -> bool:
        """Whether the service did not keep a bound."""
        return any(finding.gravity in BOUNDS for finding in self.findings)


def judge(runs: HttpRuns) -> Verdict:
    """Judge rounds at one rate, and the search for that rate."""
    plan = runs.plan
    rounds = runs.rounds
    outside = None
    if runs.trials and (rounds or not runs.interrupted):  # a search that was stopped did not end
        outside = first_outside(runs.trials, runs.rate)

    timed = [rounds[place] for place in in_time([[result] for result in rounds])]
    if plan.options.find_max:
        timed = plan.objective.without_pauses(rounds)
    findings = [*_list_findings(runs, rounds), *judge_rounds(plan, rounds, timed)]
    if outside and not runs.rate:
        findings.append(Finding(Gravity.OUTSIDE, _no_rate(runs, outside)))

    verdict = Verdict(findings=findings, timed=timed, outside=outside)
    if not runs.trials or not runs.rate or verdict.is_outside:
        return verdict
    limit = outside.doubts[0] if outside and outside.is_unclear else ""
    return replace(verdict, best=runs.rate, limit=limit)


def judge_rounds(plan: HttpPlan, rounds: Sequence[Result], timed: Sequence[Result]) -> list[Finding]:
    """Judge rounds at one rate by the objective, and their validity.

    *timed* are the rounds without seconds that are left out of latencies. A percentile with too few answers is only
    named if no bound is broken.
    """
    if not rounds:
        return []
    unknown = _unknown_percentiles(plan, timed)
    known = {name: bound_us for name, bound_us in plan.objective.latency_us.items() if name not in unknown}
    latency = replace(plan.objective, latency_us=known).judge_latency(timed)

    at = f"the rounds at {rounds[0].requested_rate:,.4g} requests/s: " if plan.options.find_max else ""
    errors = findings_of(Gravity.ERRORS, plan.objective.errors_beyond(rounds), at)
    broken = [*errors, *findings_of(Gravity.OUTSIDE, latency.broken, at)]
    few = [] if broken else [_too_few_answers(name, note, rounds) for name, note in unknown.items()]
    late = findings_of(Gravity.UNMEASURED, latency.doubts, "all rounds: ")
    return [*broken, *findings_of(Gravity.UNMEASURED, [*_invalid_rounds(timed), *few]), *late]


def _unknown_percentiles(plan: HttpPlan, rounds: Sequence[Result]) -> dict[str, str]:
    figures = {name: percentile(rounds, PERCENTS[name]) for name in plan.objective.latency_us}
    return {name: figure.note for name, figure in figures.items() if figure.value is None}


def _invalid_rounds(rounds: Sequence[Result]) -> list[str]:
    """Return why rounds are invalid, of which the first few are named."""
    reasons = [
        f"round {number}: {reason}" for number, result in enumerate(rounds, 1) for reason in result.invalid_reasons
    ]
    if len(reasons) <= SHOWN_REASONS:
        return reasons
    more = len(reasons) - SHOWN_REASONS
    return [*reasons[:SHOWN_REASONS], f"and {more} more like these, of {len(rounds)} rounds"]


def _too_few_answers(name: str, note: str, rounds: Sequence[Result]) -> str:
    """Return a sentence on a percentile that is not known, with the duration that gives enough answers."""
    rate = rounds[0].requested_rate or 0.0
    needed_s = math.ceil(SPARE * ENOUGH_SAMPLES / (1 - PERCENTS[name] / 100) / rate / len(rounds))
    return f"{name} is not known at {rate:,.4g} requests/s ({note}); give --duration {needed_s}s"


def _no_rate(runs: HttpRuns, outside: Trial) -> str:
    reasons = " and ".join(outside.broken or outside.doubts)
    return f"no rate was inside the objective {runs.plan.objective}: at {outside.offered:,.4g} requests/s {reasons}"


def _list_findings(runs: HttpRuns, results: Sequence[Result]) -> list[Finding]:
    """Return what is wrong with the lists: others than those of the store, and popular ones in all *results*."""
    popular = findings_of(Gravity.POPULAR, runs.plan.popular_complaint(results), lead=NOT_LISTS)
    if runs.checked is None:
        return popular
    wrong = findings_of(Gravity.WRONG, runs.checked.complaints)
    return [*popular, *wrong, *findings_of(Gravity.UNCOMPARED, runs.checked.failures)]


def report(runs: HttpRuns) -> Report:
    """Report a measurement over HTTP: its rounds at one rate, or a sweep of batches.

    *runs* may also have a comparison of sampled responses with the store.
    """
    if not runs.rounds and not runs.trials:
        return interrupted_report("http")

    return _batches_report(runs) if runs.plan.batches else _rounds_report(runs)


def _concluded(runs: HttpRuns, measured: Report, findings: Sequence[Finding], figures: str) -> Report:
    """Return a report with what all have, and its first sentence from *findings*; it has the answer without them.

    If too many answers were the popular list, and not the users' own, latencies and rates say nothing: only shares are
    left. The *figures* follow a finding unless nothing is known.
    """
    gravities = {finding.gravity for finding in findings}
    if Gravity.POPULAR in gravities:
        measured = replace(measured, rows=tuple(row for row in measured.rows if row.unit == "share"), plots=())
    if runs.checked:
        notes = (*measured.notes, *runs.checked.notes)
        measured = replace(measured, notes=notes, extra={**measured.extra, "checked": asdict(runs.checked)})
    complete = replace(
        measured,
        interrupted=runs.interrupted,
        configuration=runs.plan.options.to_json(),
    )
    if gravities & NOTHING_KNOWN:
        figures = ""
    return concluded(complete, findings, measured.sentence, figures=figures, answered=BOUNDS)


def report_popular(plan: HttpPlan, sample: Result) -> Report:
    """Report that nothing was measured, because a *sample* of users gets the popular list."""
    measured = Report(kind="http", sentence="", configuration=plan.options.to_json())
    return concluded(measured, findings_of(Gravity.POPULAR, plan.popular_complaint([sample]), lead=NOT_LISTS))


def _latency_rows(subject: str, results: Sequence[Result], names: Sequence[str]) -> list[Row]:
    """Return the rows of percentiles, of which the table shows all but p99.9."""
    return [percentile(results, PERCENTS[name]).row(subject, name, "us", main=name != P99_9) for name in names]


def _popular_rows(subject: str, results: Sequence[Result]) -> list[Row]:
    """Return the row of popular lists; none if no lists were seen."""
    popular = popular_share(results)
    return [] if popular.value is None else [popular.row(subject, POPULAR_LISTS, "share")]


def _rounds_report(runs: HttpRuns) -> Report:
    """Report rounds at one rate; without rounds, the search for it."""
    verdict = judge(runs)
    figures = _figures(runs, verdict) if runs.rounds else ""
    measured = Report(
        kind="http",
        sentence=_answer(runs, verdict, figures),
        rows=tuple(_rows(runs, verdict)) if runs.rounds else (),
        columns=RATE_COLUMNS,
        origins={"measured": _method(runs)},
        plots=tuple(_plots(runs, verdict)),
        notes=tuple(_notes(runs, verdict)),
        extra=_extra(runs, verdict),
    )
    return _concluded(runs, measured, verdict.findings, figures)


def _answer(runs: HttpRuns, verdict: Verdict, figures: str) -> str:
    """Return the highest rate inside the objective, if it was searched for; else whether the rounds keep it.

    Without an objective among the options, return the *figures*: p99 and the rate of good answers.
    """
    objective = runs.plan.objective
    if not runs.rounds:
        return _answer_without_rounds(runs, verdict)
    if verdict.best:
        latency = _latency(verdict.timed, objective.percentile)
        return (
            f"The highest rate inside {objective} is {_best_rate(verdict)}; there {objective.percentile} is {latency}."
        )
    if not runs.plan.options.slo and not runs.trials:
        return figures
    if runs.trials and verdict.is_outside:
        longer = f"--duration {LONGER * runs.plan.load.duration_s:g}s"
        return f"No rate was confirmed inside {objective}: {figures} Give {longer}, which evens out disturbances."
    return f"{'Outside' if verdict.is_outside else 'Within'} the objective: {figures}"


def _best_rate(verdict: Verdict) -> str:
    """Return the highest rate with the lowest one outside, as `900 requests/s (930 is outside)`."""
    rate = f"{verdict.best:,.0f} requests/s"
    if verdict.limit:
        return f"at least {rate}"
    return f"{rate} ({verdict.outside.offered:,.0f} is outside)" if verdict.outside else rate


def _answer_without_rounds(runs: HttpRuns, verdict: Verdict) -> str:
    objective = runs.plan.objective
    if not runs.interrupted:
        return f"No rate is inside {objective}."
    if verdict.best is None:
        return f"The search was stopped before a rate was inside {objective}."
    return f"The search was stopped: {verdict.best:,.0f} requests/s are inside {objective}, and perhaps more."


def _figures(runs: HttpRuns, verdict: Verdict) -> str:
    """Return the latencies beside their bounds, or p99, with the rate of good answers and the share of errors."""
    objective = runs.plan.objective
    rate = format_value(mean([result.ok_rate for result in runs.rounds]).value or 0)
    errors = error_share(runs.rounds).value
    failed = f"errors {format_value(errors, 'share')}" if errors else "no errors"
    if not runs.plan.options.slo and not runs.trials:
        return f"p99 is {_latency(verdict.timed, P99)} at {rate} answers/s, {failed}."

    if errors:
        failed += f" of {format_value(objective.errors, 'share')}"
    bounds = [
        f"{name} {_latency(verdict.timed, name)} of {format_bound(us)}" for name, us in objective.latency_us.items()
    ]
    latencies = ", ".join(bounds) or f"p99 {_latency(verdict.timed, P99)}"
    return f"{latencies} at {rate} answers/s, {failed}."


def _latency(rounds: Sequence[Result], name: str) -> str:
    figure = percentile(rounds, PERCENTS[name])
    return f"not known ({figure.note})" if figure.value is None else format_ms(figure.value)


def _method(runs: HttpRuns) -> str:
    return (
        f"{format_value(len(runs.rounds), 'rounds')} of {runs.plan.options.duration}, open loop: latency counts from a "
        f"request's due time; at most {runs.plan.load.connections} in flight"
    )


def _rows(runs: HttpRuns, verdict: Verdict) -> Iterator[Row]:
    """Yield the figures of the service, one line of the table: highest rate, latencies, rate, and shares."""
    subject = redacted(runs.plan.load.url)
    rounds = runs.rounds
    if verdict.best:
        outside = None if verdict.limit or not verdict.outside else verdict.outside.offered
        note = AT_LEAST if verdict.limit else ""
        yield Row(subject, HIGHEST_RATE, "/s", verdict.best, low=outside and verdict.best, high=outside, note=note)

    shown = {*PERCENTILES, runs.plan.objective.percentile}
    yield from _latency_rows(subject, verdict.timed, [name for name in PERCENTS if name in shown])
    yield mean([result.ok_rate for result in rounds]).row(subject, RATE, "/s")
    yield error_share(rounds).row(subject, ERRORS_AND_DROPS, "share")
    yield from _popular_rows(subject, rounds)
    lag = Histogram.merged(result.lag for result in rounds)
    yield Row(subject, LATENESS, "us", lag.percentile_us(99), main=False)


def _notes(runs: HttpRuns, verdict: Verdict) -> Iterator[str]:
    late_rounds = len(runs.rounds) - len(verdict.timed)
    if late_rounds:
        yield f"{late_rounds} of {format_count(len(runs.rounds), 'round')} are left out, as the generator was late."
    unsolicited = sum(result.unsolicited for result in runs.rounds)
    if unsolicited:
        yield f"{format_count(unsolicited, 'connection')} sent bytes that were no answer to a request, and were closed."
    seconds = sum(len(result.seconds) for result in runs.rounds)
    left_out = seconds - sum(len(result.seconds) for result in verdict.timed)
    if left_out and not late_rounds:
        longest = format_value(Histogram.merged(result.latency for result in runs.rounds).max_us, "us")
        pauses = f"{left_out} of {format_count(seconds, 'second')} are left out of the latencies, as pauses"
        yield f"{pauses} of the machine: the longest answer took {longest}."
    if verdict.limit:
        yield f"The search ended because of the generator, and not of the service: {verdict.limit}."
    late = lag_note(verdict.timed)
    if late:
        yield f"{late.capitalize()}."


def _plots(runs: HttpRuns, verdict: Verdict) -> Iterator[Plot]:
    if runs.trials:
        yield _search_plot(runs, verdict)
    if runs.rounds:
        yield _spectrum_plot(runs.rounds)
        yield _seconds_plot(runs.rounds)


def _search_plot(runs: HttpRuns, verdict: Verdict) -> Plot:
    """Plot a percentile of the latency over the rate of each trial, with a mark at the highest rate inside."""
    name = runs.plan.objective.percentile
    trials = sorted(runs.trials, key=lambda trial: trial.offered)
    rates = tuple(trial.offered for trial in trials)
    latencies_us = tuple(percentile([trial.result], PERCENTS[name]).value for trial in trials)
    return Plot(
        title=f"{name} over offered load",
        x="requests/s",
        y=name,
        curves=(Curve(name, rates, latencies_us),),
        y_unit="us",
        log_y=True,
        points=True,
        marks={verdict.best: "highest inside"} if verdict.best else {},
    )


def _extra(runs: HttpRuns, verdict: Verdict) -> dict[str, Any]:
    """Return the fields "rounds" and, after a search for the highest rate, "search" of the JSON report.

    A point is a trial of the search. "highest" is the highest rate in requests/s inside the objective, None if there is
    none; "outside" is the lowest one outside; "at_least" says why it may be higher.
    """
    rounds = {"rounds": [result.to_json() for result in runs.rounds]}
    if not runs.trials:
        return rounds

    search = {
        "highest": verdict.best,
        "outside": verdict.outside and verdict.outside.offered,
        "at_least": verdict.limit,
        "objective": str(runs.plan.objective),
        "points": list(map(_trial_json, runs.trials)),
    }
    return {**rounds, "search": search}


def _batches_report(runs: HttpRuns) -> Report:
    """Report a sweep, with a trial for each size of batches.

    The answer is the smallest size that gives 90 % of the most users/s, with its p50.
    """
    trials = runs.trials
    best = knee(trials)
    answer = "No batch was served without errors, even one at a time; see below."
    if best is not None:
        p50 = format_ms(best.result.latency.percentile_us(50))
        figures = f"{format_value(users_per_s(best), 'users/s')}, p50 {p50}"
        answer = f"The smallest batch that gives 90 % of the most users/s is {best.offered:,.0f}: {figures}."

    points = list(map(_trial_json, trials))
    measured = Report(
        kind="http",
        sentence=answer,
        rows=tuple(row for trial in trials for row in _batch_rows(trial)),
        columns=BATCH_COLUMNS,
        origins={"measured": CLOSED_LOOP},
        plots=tuple(_batch_plots(trials)),
        extra={"rounds": [], "sweep": {"knee": best and best.offered, "points": points}},
    )
    return _concluded(runs, measured, _batch_findings(runs), answer)


def _batch_findings(runs: HttpRuns) -> list[Finding]:
    """Return what is wrong with the lists, and the reasons of trials to be broken or in doubt, with their sizes."""
    findings = _list_findings(runs, [trial.result for trial in runs.trials])
    is_popular = any(finding.gravity is Gravity.POPULAR for finding in findings)
    for trial in runs.trials:
        # A complaint on the popular lists of all sizes stands for those of single ones.
        repeated = runs.plan.popular_complaint([trial.result]) if is_popular else []
        reasons = [reason for reason in trial.broken if reason not in repeated]
        findings += findings_of(Gravity.ERRORS, reasons, f"batch {trial.offered:,}: ")
        findings += findings_of(Gravity.UNMEASURED, trial.doubts, f"batch {trial.offered:,}: ")
    return findings


def _batch_rows(trial: Trial) -> Iterator[Row]:
    subject = f"batch of {trial.offered:,.0f}"
    results = [trial.result]
    yield Row(subject, USERS, "/s", users_per_s(trial))
    yield from _latency_rows(subject, results, PERCENTILES)
    yield Row(subject, AT_A_TIME, "", float(trial.result.connections))
    yield error_share(results).row(subject, ERRORS, "share")
    yield from _popular_rows(subject, results)


def _batch_plots(trials: Sequence[Trial]) -> list[Plot]:
    """Return two plots over the size of batches: of p50 and p99 in µs, and of users/s.

    Each trial is a point, and its `offered` the number of users in a batch.
    """
    label = "users in a batch"
    sizes = tuple(trial.offered for trial in trials)
    ticks = {size: f"{size:,.0f}" for size in sizes}

    latencies = tuple(
        Curve(name, sizes, tuple(percentile([trial.result], PERCENTS[name]).value for trial in trials))
        for name in (P50, P99)
    )
    rates = Curve("users/s", sizes, tuple(map(users_per_s, trials)))

    latency_plot = Plot("Latency over batch size", label, "latency", latencies, y_unit="us", log_y=True)
    rate_plot = Plot("Users/s over batch size", label, "users/s", (rates,))
    return [replace(plot, log_x=len(sizes) > 1, points=True, ticks=ticks) for plot in (latency_plot, rate_plot)]


def _spectrum_plot(rounds: Sequence[Result]) -> Plot:
    """Plot the latency of all rounds together over its percentile, as HDR plots do.

    x is 1 / (1 - percentile), so that p99 and p99.9 are as far apart as p90 and p99; the longest latency, at 100 %,
    would be at infinity, and is left out.
    """
    spectrum = Histogram.merged(result.latency for result in rounds).spectrum()
    points = [(1 / (1 - percent / 100), us) for percent, us in spectrum if percent < 100]
    x = tuple(position for position, _ in points)
    furthest = max(x, default=2) * 1.01  # so that a tick at the last point is kept

    return Plot(
        title="Latency by percentile",
        x="percentile",
        y="latency",
        curves=(Curve("all rounds", x, tuple(us for _, us in points)),),
        y_unit="us",
        log_x=True,
        log_y=True,
        ticks={position: name for position, name in SPECTRUM_TICKS.items() if position <= furthest},
        caption="All answers of all rounds, from due times.",
    )


def _seconds_plot(rounds: Sequence[Result]) -> Plot:
    """Plot the median and the longest latency, in µs, of each second of all rounds, one round after the other.

    A second without answers is a gap in the curves.
    """
    seconds = [Histogram.of(second.latencies_s) for result in rounds for second in result.seconds]
    x = tuple(float(number) for number in range(1, len(seconds) + 1))
    curves = tuple(
        Curve(name, x, tuple(second.percentile_us(percent) or None for second in seconds))
        for name, percent in (("p50", 50), ("longest", 100))
    )
    return Plot(
        title="Latency by second",
        x="second, all rounds",
        y="latency",
        curves=curves,
        y_unit="us",
        log_y=True,
        points=len(x) < FEW_SECONDS,
    )

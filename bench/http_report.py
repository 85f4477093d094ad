"""The report of a measurement over HTTP: rounds at one rate, with the search for it, or a sweep of batches."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from hotplate.base.report import Column, Curve, Plot, Report, Row, format_value
from hotplate.bench.figure_names import AT_LEAST, HIGHEST_RATE, LATENESS, P50, P99, P99_9, POPULAR_LISTS, RATE
from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.http_verdict import HttpRuns, Verdict, judge
from hotplate.bench.lists import CheckResult
from hotplate.bench.loadgen.result import LAG_BOUND_US, Histogram, Result
from hotplate.bench.objective import PERCENTS, format_bound, format_ms
from hotplate.bench.outcome import interrupted_report, no_verdict
from hotplate.bench.process import describe
from hotplate.bench.search import knee, users_per_s
from hotplate.bench.statistics import error_share, mean, percentile, popular_share
from hotplate.bench.trials import Trial
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
NOT_LISTS = "The users' own lists were not measured, but the popular list."
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


def report(runs: HttpRuns) -> Report:
    """Report a measurement over HTTP: its rounds at one rate, or a sweep of batches.

    With failures, such as a late load generator, there is no verdict; if requests failed, too, that is named first,
    because a service that ended is the graver reason. *runs* may also have a comparison of sampled responses with the
    store.
    """
    if not runs.rounds and not runs.trials:
        return interrupted_report("http")

    plan = runs.plan
    if plan.batches:
        measured = _batches_report(runs)
        results = [trial.result for trial in runs.trials]
        errors = []  # larger batches may be refused
    else:
        measured = _rounds_report(runs)
        results = list(runs.rounds)
        errors = plan.objective.errors_beyond(results)

    popular = plan.popular_complaint(results)
    if popular:
        complaints = [complaint for trial in runs.trials for complaint in plan.popular_complaint([trial.result])]
        measured = _without_latencies(measured, popular, complaints)
    elif measured.failures:
        measured = replace(measured, sentence=no_verdict("; ".join([*errors, measured.failures[0]])))
    return _with_check(measured, runs.checked) if runs.checked else measured


def _without_latencies(measured: Report, popular: Sequence[str], of_trials: Sequence[str]) -> Report:
    """Return a report with shares as its only figures, and with the complaints *popular* before its others.

    If too many answers were the popular list instead of the users' own, their latencies and rates say nothing. The
    same complaints of single trials, *of_trials*, are left out.
    """
    others = [reason for reason in measured.broken if not any(complaint in reason for complaint in of_trials)]
    return replace(
        measured,
        sentence=NOT_LISTS,
        rows=tuple(row for row in measured.rows if row.unit == "share"),
        plots=(),
        broken=(*popular, *others),
        failures=(),
    )


def _with_check(measured: Report, checked: CheckResult) -> Report:
    """Return a report with the comparison of sampled responses with the store."""
    return replace(
        measured,
        notes=(*measured.notes, *checked.notes),
        broken=(*measured.broken, *checked.complaints),
        failures=(*measured.failures, *checked.failures),
        extra={**measured.extra, "checked": asdict(checked)},
    )


def report_popular(plan: HttpPlan, sample: Result) -> Report:
    """Report that nothing was measured, because a *sample* of users gets the popular list."""
    return Report(
        kind="http",
        sentence=NOT_LISTS,
        broken=tuple(plan.popular_complaint([sample])),
        configuration=plan.options.to_json(),
        machine=describe(),
    )


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
    return Report(
        kind="http",
        sentence=_answer(runs, verdict),
        rows=tuple(_rows(runs, verdict)) if runs.rounds else (),
        columns=RATE_COLUMNS,
        origins={"measured": _method(runs)},
        plots=tuple(_plots(runs, verdict)),
        notes=tuple(_notes(runs, verdict)),
        broken=tuple(verdict.broken),
        failures=tuple(_failures(runs, verdict)),
        interrupted=runs.interrupted,
        configuration=runs.plan.options.to_json(),
        machine=describe(),
        extra=_extra(runs, verdict),
    )


def _failures(runs: HttpRuns, verdict: Verdict) -> list[str]:
    """Return why the rounds do not support a verdict: invalid rounds, of which the first few are named, and doubts.

    Percentiles with too few answers are only named if no bound is broken.
    """
    reasons = [
        f"round {number}: {reason}" for number, result in enumerate(runs.rounds, 1) for reason in result.invalid_reasons
    ]
    if len(reasons) > SHOWN_REASONS:
        more = len(reasons) - SHOWN_REASONS
        reasons = [*reasons[:SHOWN_REASONS], f"and {more} more like these, of {len(runs.rounds)} rounds"]

    if not verdict.broken:
        reasons += [f"{name} is not known ({note})" for name, note in verdict.unknown.items()]
    return [*reasons, *(f"all rounds: {doubt}" for doubt in verdict.late)]


def _answer(runs: HttpRuns, verdict: Verdict) -> str:
    """Return the highest rate inside the objective, if it was searched for; else whether the rounds keep it.

    Without an objective among the options, return p99 and the rate of good answers.
    """
    objective = runs.plan.objective
    if not runs.rounds:
        return _answer_without_rounds(runs, verdict)

    if verdict.best:
        rate = f"{'at least ' if verdict.limit else ''}{verdict.best.offered:,.0f} requests/s"
        latency = _latency(runs.rounds, objective.percentile)
        return f"The highest rate inside {objective} is {rate}; there {objective.percentile} is {latency}."

    rate = format_value(mean([result.ok_rate for result in runs.rounds]).value or 0)
    errors = error_share(runs.rounds).value
    failed = f"errors {format_value(errors, 'share')}" if errors else "no errors"
    p99 = _latency(runs.rounds, P99)
    if not runs.plan.options.slo and not runs.trials:
        return f"p99 is {p99} at {rate} answers/s, {failed}."

    if errors:
        failed += f" of {format_value(objective.errors, 'share')}"
    bounds = [
        f"{name} {_latency(runs.rounds, name)} of {format_bound(us)}" for name, us in objective.latency_us.items()
    ]
    latencies = ", ".join(bounds) or f"p99 {p99}"
    return f"{'Outside' if verdict.broken else 'Within'} the objective: {latencies} at {rate} answers/s, {failed}."


def _answer_without_rounds(runs: HttpRuns, verdict: Verdict) -> str:
    objective = runs.plan.objective
    if not runs.interrupted:
        return f"No rate is inside {objective}."
    if verdict.best is None:
        return f"The search was stopped before a rate was inside {objective}."
    return f"The search was stopped: {verdict.best.offered:,.0f} requests/s are inside {objective}, and perhaps more."


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
        yield Row(subject, HIGHEST_RATE, "/s", verdict.best.offered, note=AT_LEAST if verdict.limit else "")

    shown = {*PERCENTILES, runs.plan.objective.percentile}
    yield from _latency_rows(subject, rounds, [name for name in PERCENTS if name in shown])
    yield mean([result.ok_rate for result in rounds]).row(subject, RATE, "/s")
    yield error_share(rounds).row(subject, ERRORS_AND_DROPS, "share")
    yield from _popular_rows(subject, rounds)
    yield Row(subject, LATENESS, "us", _lateness_us(rounds), main=False)


def _lateness_us(rounds: Sequence[Result]) -> float:
    return Histogram.merged(result.lag for result in rounds).percentile_us(99)


def _notes(runs: HttpRuns, verdict: Verdict) -> Iterator[str]:
    if verdict.limit:
        yield f"The search ended because of the generator, and not of the service: {verdict.limit}."
    late_us = _lateness_us(runs.rounds)
    if late_us > LAG_BOUND_US:
        late = f"The generator itself was {format_value(late_us, 'us')} late at p99 of all rounds"
        yield f"{late}; that is part of the latencies."


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
        marks={verdict.best.offered: "highest inside"} if verdict.best else {},
    )


def _extra(runs: HttpRuns, verdict: Verdict) -> dict[str, Any]:
    """Return the fields "rounds" and, after a search for the highest rate, "search" of the JSON report.

    A point is a trial of the search. "highest" is the highest rate in requests/s inside the objective, None if there is
    none; "at_least" says why it may be higher.
    """
    rounds = {"rounds": [result.to_json() for result in runs.rounds]}
    if not runs.trials:
        return rounds

    search = {
        "highest": verdict.best and verdict.best.offered,
        "at_least": verdict.limit,
        "objective": str(runs.plan.objective),
        "points": list(map(_trial_json, runs.trials)),
    }
    return {**rounds, "search": search}


def _batches_report(runs: HttpRuns) -> Report:
    """Report a sweep, with a trial for each size of batches.

    The answer is the smallest size that gives 90 % of the most users/s, with its p50. Reasons of trials to be broken
    or in doubt are listed with their sizes.
    """
    trials = runs.trials
    best = knee(trials)
    answer = "No batch was served without errors, even one at a time; see below."
    if best is not None:
        p50 = format_ms(best.result.latency.percentile_us(50))
        figures = f"{format_value(users_per_s(best), 'users/s')}, p50 {p50}"
        answer = f"The smallest batch that gives 90 % of the most users/s is {best.offered:,.0f}: {figures}."

    points = list(map(_trial_json, trials))
    return Report(
        kind="http",
        sentence=answer,
        rows=tuple(row for trial in trials for row in _batch_rows(trial)),
        columns=BATCH_COLUMNS,
        origins={"measured": CLOSED_LOOP},
        plots=tuple(_batch_plots(trials)),
        broken=tuple(f"batch {trial.offered:,}: {reason}" for trial in trials for reason in trial.broken),
        failures=tuple(f"batch {trial.offered:,}: {reason}" for trial in trials for reason in trial.doubts),
        interrupted=runs.interrupted,
        configuration=runs.plan.options.to_json(),
        machine=describe(),
        extra={"rounds": [], "sweep": {"knee": best and best.offered, "points": points}},
    )


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

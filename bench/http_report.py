"""The report of a measurement over HTTP: the verdict on its rounds or its sweep of batches, figures and plots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hotplate.base.report import Curve, Plot, Report, Row, format_count, format_value
from hotplate.bench.figure_names import AT_LEAST, LATENESS, P50, P99, RATE
from hotplate.bench.http import HttpPlan, HttpRuns
from hotplate.bench.loadgen.result import Result, lag_note, lag_us, latency_us
from hotplate.bench.measure.experiment import Figure, latencies, left_out, report_of, shares
from hotplate.bench.measure.objective import format_bound, format_ms
from hotplate.bench.measure.search import (
    Trial,
    knee,
    users_per_s,
)
from hotplate.bench.measure.statistics import (
    ERRORS,
    PERCENTILES,
    PERCENTS,
    latency,
    mean,
    plots_by_round,
)
from hotplate.bench.planner.inputs import HIGHEST_RATE
from hotplate.bench.verdict import (
    BOUNDS,
    TOO_FEW_ROUNDS,
    TOO_FEW_SECONDS,
    Gravity,
    concluded,
    how_sure,
    spread_over,
)
from hotplate.stores.urls import redacted

LONGER = 3
NOTHING_KNOWN = {Gravity.POPULAR, Gravity.UNMEASURED}
OPEN_LOOP = "open loop: latency counts from a request's due time"
CLOSED_LOOP = (
    "closed loop: latency counts from sending; where the service refused more at a time (429, 503), fewer were sent"
)
SPECTRUM_POINTS = 100
# Percentiles at x = 1 / (1 - percentile), the usual axis of HDR plots.
SPECTRUM_TICKS = {2.0: "p50", 10.0: "p90", 100.0: "p99", 1_000.0: "p99.9", 10_000.0: "p99.99", 100_000.0: "p99.999"}


def _highest_rate(runs: HttpRuns) -> Row | None:
    """Return the highest rate inside the objective, with the lowest one outside, if there is one."""
    if not runs.best:
        return None
    if runs.limit:
        return Row(value=runs.best, note=AT_LEAST)
    if not runs.outside:
        return Row(value=runs.best)
    return Row(value=runs.best, low=runs.best, high=runs.outside.offered)


def _latency(name: str, runs: HttpRuns) -> Row | None:
    """Return a percentile, if it is among the usual ones or the objective bounds it."""
    is_shown = name in PERCENTILES or name in runs.plan.objective.latency_us
    return latency(runs.timed, name) if is_shown else None


FIGURES: Sequence[Figure[HttpRuns]] = (
    Figure(HIGHEST_RATE, "/s", _highest_rate),
    *latencies(_latency, PERCENTS),
    Figure(RATE, "/s", lambda runs: mean([result.ok_rate for result in runs.rounds]), "answers\n/s", digits=4),
    *shares(lambda runs: runs.rounds),
    Figure(LATENESS, "us", lambda runs: lag_us(runs.rounds, 99), main=False),
)
BATCH_FIGURES: Sequence[Figure[Trial]] = (
    Figure("users", "/s", users_per_s, "users\n/s", digits=4),
    *latencies(lambda name, trial: latency([trial.result], name)),
    Figure("batches at a time", "", lambda trial: trial.result.connections, "batches\nat a time"),
    *shares(lambda trial: [trial.result]),
)


def report(runs: HttpRuns) -> Report:
    """Report a measurement over HTTP: its rounds at one rate, or a sweep of batches.

    If too many answers were the popular list, and not the users' own, latencies and rates say nothing: only shares are
    left. The figures follow a finding unless nothing is known.
    """
    if runs.sample is not None:
        unmeasured = Report(kind="http", sentence="", configuration=runs.plan.options.to_json())
        return concluded(unmeasured, runs.plan.popular_lists([runs.sample]))
    measured, figures, certainty = _report_batches(runs) if runs.plan.batches else _report_rounds(runs)
    gravities = {finding.gravity for finding in runs.findings}
    if Gravity.POPULAR in gravities:
        measured = replace(measured, rows=tuple(row for row in measured.rows if row.unit == "share"), plots=())
    if runs.checked:
        notes = (*measured.notes, *runs.checked.notes)
        measured = replace(measured, notes=notes, extra={**measured.extra, "checked": asdict(runs.checked)})
    complete = replace(measured, interrupted=runs.interrupted, configuration=runs.plan.options.to_json())
    if gravities & NOTHING_KNOWN:
        figures = ""
    return concluded(
        complete,
        runs.findings,
        measured.sentence,
        figures=figures,
        answered=BOUNDS,
        certainty=certainty,
        assumed=_assumed(runs.plan),
    )


def _assumed(plan: HttpPlan) -> Iterator[str]:
    """Yield what the answer depends on, and was not measured: how users are drawn, and lists that are not compared."""
    if plan.keys is not None:
        zipf = plan.options.zipf
        yield (
            "users requested equally often (--zipf draws some more often)"
            if zipf is None
            else f"users by a Zipf law of {zipf:g}"
        )
        if not plan.options.store:
            yield "the lists are right (--store compares them)"


def _report_rounds(runs: HttpRuns) -> tuple[Report, str, str]:
    """Report rounds at one rate or, without rounds, the search for it; and sentences with figures and intervals."""
    subject = redacted(runs.plan.load.url)
    measured = report_of("http", FIGURES, {subject: runs} if runs.rounds else {})
    rounds = format_count(len(runs.rounds), "round")
    figures = ""
    certainty = ""
    if runs.rounds:
        rows = {row.figure: row for row in measured.rows}
        figures = _figures(runs, rows)
        decisive = {f"{name} {{}}": rows[name] for name in runs.plan.objective.latency_us or (P99,)}
        certainty = how_sure(decisive, spread_over(len(runs.rounds)), f"{TOO_FEW_ROUNDS} or seconds")
    method = f"{rounds} of {runs.plan.options.duration}, {OPEN_LOOP}; at most {runs.plan.load.connections} in flight"
    measured = replace(
        measured,
        sentence=_answer(runs, figures),
        origins={"measured": method},
        plots=tuple(_plots(runs, measured.rows)),
        notes=tuple(_notes(runs)),
        extra=_extra(runs),
    )
    return measured, figures, certainty


def _answer(runs: HttpRuns, figures: str) -> str:
    """Return the highest rate inside the objective, if it was searched for; else whether the rounds keep it.

    Without an objective among the options, return the *figures*: p99 and the rate of good answers.
    """
    objective = runs.plan.objective
    if not runs.rounds:
        return _answer_without_rounds(runs)
    if runs.best:
        rate = f"{'at least ' if runs.limit else ''}{runs.best:,.0f} requests/s"
        if runs.outside and not runs.limit:
            rate += f" ({runs.outside.offered:,.0f} is outside)"
        reached = _in_ms(latency(runs.timed, objective.percentile))
        return f"The highest rate inside {objective} is {rate}; there {objective.percentile} is {reached}."
    if runs.trials and runs.is_outside:
        longer = f"--duration {LONGER * runs.plan.load.duration_s:g}s"
        return f"No rate was confirmed inside {objective}: {figures} Give {longer}, which evens out disturbances."
    if not runs.plan.options.slo and not runs.trials:
        return figures
    return f"{'Outside' if runs.is_outside else 'Within'} the objective: {figures}"


def _answer_without_rounds(runs: HttpRuns) -> str:
    objective = runs.plan.objective
    if not runs.interrupted:
        return f"No rate is inside {objective}."
    if runs.best is None:
        return f"The search was stopped before a rate was inside {objective}."
    return f"The search was stopped: {runs.best:,.0f} requests/s are inside {objective}, and perhaps more."


def _figures(runs: HttpRuns, rows: Mapping[str, Row]) -> str:
    """Return the latencies beside their bounds, or p99, with the rate of good answers and the share of errors.

    *rows* have the figures by name.
    """
    objective = runs.plan.objective
    rate = format_value(rows[RATE].value or 0)
    errors = rows[ERRORS].value
    failed = f"errors {format_value(errors, 'share')}" if errors else "no errors"
    if not runs.plan.options.slo and not runs.trials:
        return f"p99 is {_in_ms(rows[P99])} at {rate} answers/s, {failed}."

    if errors:
        failed += f" of {format_value(objective.errors, 'share')}"
    bounds = [f"{name} {_in_ms(rows[name])} of {format_bound(us)}" for name, us in objective.latency_us.items()]
    latencies = ", ".join(bounds) or f"p99 {_in_ms(rows[P99])}"
    return f"{latencies} at {rate} answers/s, {failed}."


def _in_ms(figure: Row) -> str:
    return f"not known ({figure.note})" if figure.value is None else format_ms(figure.value)


def _notes(runs: HttpRuns) -> Iterator[str]:
    late_rounds = len(runs.rounds) - len(runs.timed)
    if late_rounds:
        yield f"{left_out(late_rounds, len(runs.rounds), 'round')}, as the generator was late."
    unsolicited = sum(result.unsolicited for result in runs.rounds)
    if unsolicited:
        yield f"{format_count(unsolicited, 'connection')} sent bytes that were no answer to a request, and were closed."
    seconds = sum(len(result.seconds) for result in runs.rounds)
    pauses = seconds - sum(len(result.seconds) for result in runs.timed)
    if pauses and not late_rounds:
        longest = format_value(latency_us(runs.rounds, 100), "us")
        paused = left_out(pauses, seconds, "second")
        yield f"{paused} of the latencies, as pauses of the machine: the longest answer took {longest}."
    if runs.limit:
        yield f"The search ended because of the generator, and not of the service: {runs.limit}."
    late = lag_note(runs.timed)
    if late:
        yield f"{late.capitalize()}."


def _plots(runs: HttpRuns, rows: Sequence[Row]) -> Iterator[Plot]:
    if runs.trials:
        marks = {runs.best: "highest inside"} if runs.best else {}
        yield replace(_trials_plot(runs.trials, "requests/s", [runs.plan.objective.percentile]), marks=marks)
    if runs.rounds:
        yield _spectrum_plot(runs.rounds)
        yield from plots_by_round(rows)


def _trials_plot(trials: Sequence[Trial], load: str, names: Sequence[str]) -> Plot:
    """Plot percentiles of the latency over the load of trials, a point for each."""
    ascending = sorted(trials, key=lambda trial: trial.offered)
    loads = tuple(trial.offered for trial in ascending)
    curves = [Curve(name, loads, tuple(latency([trial.result], name).value for trial in ascending)) for name in names]
    return Plot(
        title=f"Latency over {load}",
        x=load,
        y="latency",
        curves=tuple(curves),
        y_unit="us",
        log_y=True,
        points=True,
    )


def _extra(runs: HttpRuns) -> dict[str, Any]:
    """Return the fields "rounds" and, after a search for the highest rate, "search" of the JSON report.

    A point is a trial of the search. "highest" is the highest rate in requests/s inside the objective, None if there is
    none; "outside" is the lowest one outside; "at_least" says why it may be higher.
    """
    rounds = {"rounds": [result.to_json() for result in runs.rounds]}
    if not runs.trials:
        return rounds

    search = {
        "highest": runs.best,
        "outside": runs.outside and runs.outside.offered,
        "at_least": runs.limit,
        "objective": str(runs.plan.objective),
        "points": list(map(_trial_json, runs.trials)),
    }
    return {**rounds, "search": search}


def _trial_json(trial: Trial) -> dict[str, Any]:
    """Return a point of the search or of the sweep, as in the JSON report."""
    result = trial.result
    latencies = {f"{name}_us": latency_us([result], PERCENTS[name]) for name in PERCENTILES}
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


def _report_batches(runs: HttpRuns) -> tuple[Report, str, str]:
    """Report a sweep, with a trial for each size of batches; its answer, and how sure that is.

    The answer is the smallest size that gives 90 % of the most users/s, with its p50.
    """
    trials = runs.trials
    best = knee(trials)
    answer = "No batch was served without errors, even one at a time; see below."
    certainty = ""
    if best is not None:
        certainty = how_sure(
            {f"{P50} {{}}": replace(latency([best.result], P50), unit="us")}, "the seconds of a run", TOO_FEW_SECONDS
        )
        p50 = format_ms(latency_us([best.result], 50))
        figures = f"{format_value(users_per_s(best), 'users/s')}, p50 {p50}"
        answer = f"The smallest batch that gives 90 % of the most users/s is {best.offered:,.0f}: {figures}."
        if runs.interrupted:
            answer = f"Of the sizes before the sweep was stopped, {answer[:1].lower()}{answer[1:]}"

    points = list(map(_trial_json, trials))
    measured = replace(
        report_of("http", BATCH_FIGURES, {f"batch of {trial.offered:,.0f}": trial for trial in trials}),
        sentence=answer,
        origins={"measured": CLOSED_LOOP},
        plots=(_trials_plot(trials, "batch size", (P50, P99)),),
        extra={"rounds": [], "sweep": {"knee": best and best.offered, "points": points}},
    )
    return measured, answer, certainty


def _spectrum_plot(rounds: Sequence[Result]) -> Plot:
    """Plot the latency of all rounds together over its percentile.

    x is 1 / (1 - percentile), so that p99 and p99.9 are as far apart as p90 and p99. One answer is beyond the last.
    """
    furthest = max(2, sum(result.ok for result in rounds))
    x = np.geomspace(1, furthest, SPECTRUM_POINTS).tolist()
    return Plot(
        title="Latency by percentile",
        x="percentile",
        y="latency",
        curves=(Curve("all rounds", tuple(x), tuple(latency_us(rounds, 100 - 100 / position) for position in x)),),
        y_unit="us",
        log_x=True,
        log_y=True,
        ticks={position: name for position, name in SPECTRUM_TICKS.items() if position <= furthest},
        caption="All answers of all rounds, from due times.",
    )

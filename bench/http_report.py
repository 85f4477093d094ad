"""The report of a measurement over HTTP: rounds at one rate, with the search for it, or a sweep of batches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hotplate.base.report import Column, Curve, Plot, Report, Row, format_count, format_value
from hotplate.bench.experiment import interrupted_report
from hotplate.bench.figure_names import AT_LEAST, HIGHEST_RATE, LATENESS, P50, P99, RATE
from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.lists import CheckResult
from hotplate.bench.loadgen.result import ENOUGH_SAMPLES, Result, lag_note, lag_us, latency_us
from hotplate.bench.objective import format_bound, format_ms
from hotplate.bench.search import Trial, first_outside, highest, knee, users_per_s
from hotplate.bench.statistics import (
    LATENCY_COLUMNS,
    PERCENTILES,
    PERCENTS,
    SHARE_COLUMNS,
    error_share,
    in_time,
    latency,
    mean,
    plots_by_round,
    share_rows,
)
from hotplate.bench.verdict import BOUNDS, Finding, Gravity, concluded, findings_of, prefixed
from hotplate.stores.urls import redacted

USERS = "users"
AT_A_TIME = "batches at a time"
RATE_COLUMNS = (*LATENCY_COLUMNS, Column(RATE, "answers\n/s", digits=4), *SHARE_COLUMNS)
BATCH_COLUMNS = (
    Column(USERS, "users\n/s", digits=4),
    *LATENCY_COLUMNS,
    Column(AT_A_TIME, "batches\nat a time"),
    *SHARE_COLUMNS,
)
# Some seconds of a search may be left out.
SPARE = 1.6
LONGER = 3
NOTHING_KNOWN = {Gravity.POPULAR, Gravity.UNMEASURED}
OPEN_LOOP = "open loop: latency counts from a request's due time"
CLOSED_LOOP = (
    "closed loop: latency counts from sending; where the service refused more at a time (429, 503), fewer were sent"
)
SPECTRUM_POINTS = 100
# Percentiles at x = 1 / (1 - percentile), the usual axis of HDR plots.
SPECTRUM_TICKS = {2.0: "p50", 10.0: "p90", 100.0: "p99", 1_000.0: "p99.9", 10_000.0: "p99.99", 100_000.0: "p99.999"}


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


@dataclass(frozen=True, slots=True)
class HttpRuns:
    """All runs, and the check of kept responses; without a store, nothing is checked."""

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool
    failure: str = ""
    """What ended them early, such as a generator that died."""

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
    outside  a trial at the lowest rate outside, by which a complete search ended
    rate     the highest rate inside the objective, as far as the search knows; 0 without a search, or if there is none
    """

    findings: Sequence[Finding]
    timed: Sequence[Result]
    outside: Trial | None
    rate: float

    @property
    def is_outside(self) -> bool:
        """Whether the service did not keep a bound."""
        return any(finding.gravity in BOUNDS for finding in self.findings)

    @property
    def best(self) -> float | None:
        """The highest rate inside the objective, which the rounds confirm; None without a search, or without a rate."""
        return None if self.is_outside else self.rate or None

    @property
    def limit(self) -> str:
        """Why the highest rate may be higher; empty if the service ended the search."""
        ended_by_generator = self.best and self.outside and self.outside.is_unclear
        return self.outside.doubts[0] if self.outside and ended_by_generator else ""


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
    findings = [*_findings_of_runs(runs, rounds), *judge_rounds(plan, rounds, timed)]
    if outside and not runs.rate:
        reasons = " and ".join(outside.broken or outside.doubts)
        no_rate = f"no rate was inside the objective {plan.objective}: at {outside.offered:,.4g} requests/s {reasons}"
        findings.append(Finding(Gravity.OUTSIDE, no_rate))
    return Verdict(findings=findings, timed=timed, outside=outside, rate=runs.rate if runs.trials else 0.0)


def judge_rounds(plan: HttpPlan, rounds: Sequence[Result], timed: Sequence[Result]) -> list[Finding]:
    """Judge rounds at one rate by the objective, and their validity.

    *timed* are the rounds without seconds that are left out of latencies. A percentile with too few answers is only
    named if no bound is broken, and of invalid rounds the first.
    """
    if not rounds:
        return []
    figures = {name: latency(timed, name) for name in plan.objective.latency_us}
    unknown = {name: figure.note for name, figure in figures.items() if figure.value is None}
    known = {name: bound_us for name, bound_us in plan.objective.latency_us.items() if name not in unknown}
    objective = replace(plan.objective, latency_us=known)
    findings = [*objective.errors_beyond(rounds), *objective.judge_latency(timed)]
    if plan.options.find_max:
        findings = prefixed(findings, f"the rounds at {rounds[0].requested_rate:,.4g} requests/s: ")

    reasons = [
        f"round {number}: {reason}" for number, result in enumerate(timed, 1) for reason in result.invalid_reasons
    ][:1]
    if not any(finding.gravity in BOUNDS for finding in findings):
        reasons += [_too_few_answers(name, note, rounds) for name, note in unknown.items()]
    return [*findings_of(Gravity.UNMEASURED, reasons), *findings]


def _too_few_answers(name: str, note: str, rounds: Sequence[Result]) -> str:
    """Return a sentence on a percentile that is not known, with the duration that gives enough answers."""
    rate = rounds[0].requested_rate or 0.0
    needed_s = math.ceil(SPARE * ENOUGH_SAMPLES / (1 - PERCENTS[name] / 100) / rate / len(rounds))
    return f"{name} is not known at {rate:,.4g} requests/s ({note}); give --duration {needed_s}s"


def _findings_of_runs(runs: HttpRuns, results: Sequence[Result]) -> list[Finding]:
    """Return what ended the runs, and what is wrong with the lists: others than the store's, and popular ones."""
    ended = findings_of(Gravity.UNMEASURED, filter(None, [runs.failure]))
    checked = runs.checked.findings if runs.checked else []
    return [*ended, *checked, *runs.plan.popular_lists(results)]


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
    return concluded(measured, plan.popular_lists([sample]))


def _rounds_report(runs: HttpRuns) -> Report:
    """Report rounds at one rate; without rounds, the search for it."""
    verdict = judge(runs)
    rows = tuple(_rows(runs, verdict)) if runs.rounds else ()
    figures = _figures(runs, verdict) if runs.rounds else ""
    rounds = f"{format_value(len(runs.rounds), 'rounds')} of {runs.plan.options.duration}"
    method = f"{rounds}, {OPEN_LOOP}; at most {runs.plan.load.connections} in flight"
    measured = Report(
        kind="http",
        sentence=_answer(runs, verdict, figures),
        rows=rows,
        columns=RATE_COLUMNS,
        origins={"measured": method},
        plots=tuple(_plots(runs, verdict, rows)),
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
        rate = f"{'at least ' if verdict.limit else ''}{verdict.best:,.0f} requests/s"
        if verdict.outside and not verdict.limit:
            rate += f" ({verdict.outside.offered:,.0f} is outside)"
        reached = _latency(verdict.timed, objective.percentile)
        return f"The highest rate inside {objective} is {rate}; there {objective.percentile} is {reached}."
    if runs.trials and verdict.is_outside:
        longer = f"--duration {LONGER * runs.plan.load.duration_s:g}s"
        return f"No rate was confirmed inside {objective}: {figures} Give {longer}, which evens out disturbances."
    if not runs.plan.options.slo and not runs.trials:
        return figures
    return f"{'Outside' if verdict.is_outside else 'Within'} the objective: {figures}"


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
    figure = latency(rounds, name)
    return f"not known ({figure.note})" if figure.value is None else format_ms(figure.value)


def _rows(runs: HttpRuns, verdict: Verdict) -> Iterator[Row]:
    """Yield the figures of the service, one line of the table: highest rate, latencies, rate, and shares."""
    subject = redacted(runs.plan.load.url)
    rounds = runs.rounds
    if verdict.best:
        outside = None if verdict.limit or not verdict.outside else verdict.outside.offered
        note = AT_LEAST if verdict.limit else ""
        yield Row(subject, HIGHEST_RATE, "/s", verdict.best, low=outside and verdict.best, high=outside, note=note)

    shown = {*PERCENTILES, runs.plan.objective.percentile}
    yield from (latency(verdict.timed, name).row(subject, name, "us") for name in PERCENTS if name in shown)
    yield mean([result.ok_rate for result in rounds]).row(subject, RATE, "/s")
    yield from share_rows(subject, rounds)
    yield Row(subject, LATENESS, "us", lag_us(rounds, 99), main=False)


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
        longest = format_value(latency_us(runs.rounds, 100), "us")
        pauses = f"{left_out} of {format_count(seconds, 'second')} are left out of the latencies, as pauses"
        yield f"{pauses} of the machine: the longest answer took {longest}."
    if verdict.limit:
        yield f"The search ended because of the generator, and not of the service: {verdict.limit}."
    late = lag_note(verdict.timed)
    if late:
        yield f"{late.capitalize()}."


def _plots(runs: HttpRuns, verdict: Verdict, rows: Sequence[Row]) -> Iterator[Plot]:
    if runs.trials:
        marks = {verdict.best: "highest inside"} if verdict.best else {}
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
        p50 = format_ms(latency_us([best.result], 50))
        figures = f"{format_value(users_per_s(best), 'users/s')}, p50 {p50}"
        answer = f"The smallest batch that gives 90 % of the most users/s is {best.offered:,.0f}: {figures}."
        if runs.interrupted:
            answer = f"Of the sizes before the sweep was stopped, {answer[:1].lower()}{answer[1:]}"

    points = list(map(_trial_json, trials))
    measured = Report(
        kind="http",
        sentence=answer,
        rows=tuple(row for trial in trials for row in _batch_rows(trial)),
        columns=BATCH_COLUMNS,
        origins={"measured": CLOSED_LOOP},
        plots=(_trials_plot(trials, "batch size", (P50, P99)),),
        extra={"rounds": [], "sweep": {"knee": best and best.offered, "points": points}},
    )
    return _concluded(runs, measured, _batch_findings(runs), answer)


def _batch_findings(runs: HttpRuns) -> list[Finding]:
    """Return what is wrong with the lists, and the reasons of trials to be broken or in doubt, with their sizes."""
    findings = _findings_of_runs(runs, [trial.result for trial in runs.trials])
    is_popular = any(finding.gravity is Gravity.POPULAR for finding in findings)
    for trial in runs.trials:
        for finding in trial.findings:
            # A complaint on the popular lists of all sizes stands for those of single ones.
            if finding.gravity is not Gravity.POPULAR:
                findings += prefixed([finding], f"batch {trial.offered:,}: ")
            elif not is_popular:
                findings.append(Finding(Gravity.ERRORS, f"batch {trial.offered:,}: {finding.text}"))
    return findings


def _batch_rows(trial: Trial) -> Iterator[Row]:
    subject = f"batch of {trial.offered:,.0f}"
    yield Row(subject, USERS, "/s", users_per_s(trial))
    yield from (latency([trial.result], name).row(subject, name, "us") for name in PERCENTILES)
    yield Row(subject, AT_A_TIME, "", float(trial.result.connections))
    yield from share_rows(subject, [trial.result])


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

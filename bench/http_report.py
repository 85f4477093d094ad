"""The report of a measurement over HTTP: the verdict on its rounds or its sweep of batches, figures and plots."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hotplate.base.report import Curve, Plot, Report, Row, format_count, format_value
from hotplate.bench.experiment import Figure, latencies, left_out, report_of, shares
from hotplate.bench.figure_names import AT_LEAST, LATENESS, P50, P99, RATE
from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.lists import CheckResult
from hotplate.bench.loadgen.result import ENOUGH_SAMPLES, Result, lag_note, lag_us, latency_us
from hotplate.bench.objective import format_bound, format_ms
from hotplate.bench.planner.inputs import HIGHEST_RATE
from hotplate.bench.search import (
    Trial,
    first_outside,
    highest,
    knee,
    users_per_s,
)
from hotplate.bench.statistics import (
    ERRORS,
    PERCENTILES,
    PERCENTS,
    in_time,
    latency,
    mean,
    plots_by_round,
)
from hotplate.bench.verdict import BOUNDS, MIN_ROUNDS, Finding, Gravity, concluded, findings_of, how_sure, prefixed
from hotplate.stores.urls import redacted

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


@dataclass(frozen=True)
class HttpRuns:
    """All runs of a plan, and what they show.

    checked  the comparison of sampled responses with a store, if one was given
    failure  what ended the runs early, such as a generator that died
    """

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool
    failure: str = ""

    @property
    def rate(self) -> float:
        """The rate of the rounds or, before them, the highest one inside the objective; 0 if there is none."""
        if self.rounds:
            return self.rounds[0].requested_rate or 0.0
        best = highest(self.trials)
        return best.offered if best else 0.0

    @cached_property
    def timed(self) -> Sequence[Result]:
        """The rounds without late ones or, after a search, without the seconds of pauses."""
        if self.plan.options.find_max:
            return self.plan.objective.without_pauses(self.rounds)
        return [self.rounds[place] for place in in_time([[result] for result in self.rounds])]

    @cached_property
    def outside(self) -> Trial | None:
        """A trial at the lowest rate outside, by which a complete search ended."""
        has_ended = self.trials and (self.rounds or not self.interrupted)
        return first_outside(self.trials, self.rate) if has_ended else None

    @cached_property
    def findings(self) -> Sequence[Finding]:
        """What ended the runs, what is wrong with the lists, and which bounds the service did not keep."""
        results = [trial.result for trial in self.trials] if self.plan.batches else self.rounds
        popular = self.plan.popular_lists(results)
        findings = [*findings_of(Gravity.UNMEASURED, filter(None, [self.failure])), *popular, *self.judged_rounds]
        if self.checked:
            findings += self.checked.findings
        if self.plan.batches:
            return [*findings, *self._findings_of_batches(is_popular=bool(popular))]
        if self.outside and not self.rate:
            reasons = " and ".join(self.outside.broken or self.outside.doubts)
            at_rate = f"at {self.outside.offered:,.4g} requests/s {reasons}"
            no_rate = f"no rate was inside the objective {self.plan.objective}: {at_rate}"
            findings.append(Finding(Gravity.OUTSIDE, no_rate))
        return findings

    @cached_property
    def judged_rounds(self) -> Sequence[Finding]:
        """What the objective says of rounds at one rate, and their validity.

        A percentile with too few answers is only named if no bound is broken, and of invalid rounds the first.
        """
        if not self.rounds:
            return []
        bounds_us = self.plan.objective.latency_us
        figures = {name: latency(self.timed, name) for name in bounds_us}
        known = {name: bound_us for name, bound_us in bounds_us.items() if figures[name].value is not None}
        objective = replace(self.plan.objective, latency_us=known)
        findings = [*objective.errors_beyond(self.rounds), *objective.judge_latency(self.timed)]
        if self.plan.options.find_max:
            findings = prefixed(findings, f"the rounds at {self.rate:,.4g} requests/s: ")

        reasons = [
            f"round {number}: {reason}"
            for number, result in enumerate(self.timed, 1)
            for reason in result.invalid_reasons
        ][:1]
        if not any(finding.gravity in BOUNDS for finding in findings):
            reasons += [self._too_few_answers(name, figures[name].note) for name in bounds_us if name not in known]
        return [*findings_of(Gravity.UNMEASURED, reasons), *findings]

    def _too_few_answers(self, name: str, note: str) -> str:
        """Return a sentence on a percentile that is not known, with the duration that gives enough answers."""
        slower_share = 1 - PERCENTS[name] / 100
        needed_s = math.ceil(SPARE * ENOUGH_SAMPLES / slower_share / self.rate / len(self.rounds))
        return f"{name} is not known at {self.rate:,.4g} requests/s ({note}); give --duration {needed_s}s"

    def _findings_of_batches(self, *, is_popular: bool) -> Iterator[Finding]:
        """Yield the reasons of trials to be broken or in doubt, with their sizes.

        A complaint on the popular lists of all sizes stands for those of single ones.
        """
        for trial in self.trials:
            for finding in prefixed(trial.findings, f"batch {trial.offered:,}: "):
                if finding.gravity is not Gravity.POPULAR:
                    yield finding
                elif not is_popular:
                    yield Finding(Gravity.ERRORS, finding.text)

    @property
    def is_outside(self) -> bool:
        """Whether the service did not keep a bound."""
        return any(finding.gravity in BOUNDS for finding in self.findings)

    @property
    def best(self) -> float | None:
        """The highest rate inside the objective, which the rounds confirm; None without a search, or without a rate."""
        return self.rate if self.trials and self.rate and not self.is_outside else None

    @property
    def limit(self) -> str:
        """Why the highest rate may be higher; empty if the service ended the search."""
        return self.outside.doubts[0] if self.best and self.outside and self.outside.is_unclear else ""


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
        yield "users requested equally often (--zipf)" if zipf is None else f"users by a Zipf law of {zipf:g}"
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
        certainty = how_sure(decisive, rounds if len(runs.rounds) >= MIN_ROUNDS else f"the seconds of {rounds}")
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
        certainty = how_sure({f"{P50} {{}}": replace(latency([best.result], P50), unit="us")}, "the seconds of a run")
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

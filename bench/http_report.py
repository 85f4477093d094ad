"""Plan, objective and report of a measurement over HTTP."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import CheckResult, popular_complaint
from hotplate.bench.loadgen.load import OK, REDIRECT, STATUS, Load, Posts, RequestKeys
from hotplate.bench.loadgen.result import LAG_BOUND_US, Histogram, Result
from hotplate.bench.options import HttpOptions, parse_seconds, parse_share
from hotplate.bench.outcome import interrupted_report, no_verdict
from hotplate.bench.process import describe
from hotplate.bench.statistics import error_share, mean, percentile, popular_share
from hotplate.bench.trials import Trial
from hotplate.report import Column, Curve, Plot, Report, Row, format_value, rounded
from hotplate.stores.urls import redacted

PERCENTS: Mapping[str, float] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}
PERCENTILES = ("p50", "p99", "p99.9")
ERRORS = "errors"
LATENESS = "delay of the generator, p99"
USUAL_ERRORS = 0.001
NEAR = 0.9  # of the most users/s, for the recommended batch
HINT = "; give --store URL, so that its users are requested"
RATE_COLUMNS = (
    Column("p50", "p50\nms", "ms"),
    Column("p99", "p99\nms", "ms"),
    Column("p99.9", "p99.9\nms", "ms"),
    Column("rate", "answers\n/s", digits=4),
    Column("errors and drops", "errors\n%", "%"),
    Column("popular lists", "popular\n%", "%"),
)
BATCH_COLUMNS = (
    Column("users", "users\n/s", digits=4),
    Column("p50", "p50\nms", "ms"),
    Column("p99", "p99\nms", "ms"),
    Column("batches at a time", "batches\nat a time"),
    Column("errors", "errors\n%", "%"),
    Column("popular lists", "popular\n%", "%"),
)
SHOWN_REASONS = 2
NOT_LISTS = "The users' own lists were not measured, but the popular list."
CLOSED_LOOP = (
    "closed loop: latency counts from sending; where the service refused more at a time (429, 503), fewer were sent"
)
# Percentiles at x = 1 / (1 - percentile), the usual axis of HDR plots.
SPECTRUM_TICKS = {2.0: "p50", 10.0: "p90", 100.0: "p99", 1_000.0: "p99.9", 10_000.0: "p99.99", 100_000.0: "p99.999"}
FEW_SECONDS = 30  # below it, a plot by second shows points


class Judgement(NamedTuple):
    """Broken bounds of an objective, and reasons not to blame the service."""

    broken: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds on percentiles, in microseconds, and on the share of errors."""

    latency_us: Mapping[str, float]
    errors: float = USUAL_ERRORS

    @property
    def percentile(self) -> str:
        """The first bounded percentile, or p99."""
        return next(iter(self.latency_us), "p99")

    def judge(self, result: Result) -> Judgement:
        """Judge errors, latencies and validity of one run."""
        latency = self.judge_latency([result])
        broken = (*self.errors_beyond([result]), *latency.broken)
        return Judgement(broken, (*result.invalid_reasons, *latency.doubts))

    def judge_latency(self, results: Sequence[Result]) -> Judgement:
        """Compare the percentiles of all results together with their bounds.

        A percentile beyond its bound is broken. It is only a doubt if the same percentile of the load generator's
        delays, with which it sent requests after they were due, is all of the excess, or more than half of the value.
        """
        broken = list[str]()
        doubts = list[str]()
        latency = Histogram.merged(result.latency for result in results)
        lag = Histogram.merged(result.lag for result in results)
        for name, bound_us in self.latency_us.items():
            value_us = latency.percentile_us(PERCENTS[name])
            late_us = lag.percentile_us(PERCENTS[name])
            if value_us <= bound_us:
                continue

            beyond = f"{name} {_ms(value_us)}, bound {_bound(bound_us)}"
            if late_us >= min(value_us / 2, value_us - bound_us):
                doubts.append(f"{beyond}, but the generator itself was {_ms(late_us)} late")
            else:
                broken.append(beyond)
        return Judgement(tuple(broken), tuple(doubts))

    def errors_beyond(self, results: Sequence[Result]) -> list[str]:
        """Return a sentence if too large a share of all requests failed, with the kinds of errors and statuses."""
        share = error_share(results).value or 0.0
        if share <= self.errors:
            return []
        kinds = Counter[str]()
        for result in results:
            kinds.update({kind: count for kind, count in result.errors.items() if kind not in {STATUS, REDIRECT}})
            kinds.update({f"status {status}": count for status, count in result.statuses.items() if status != OK})
            kinds["dropped"] += result.dropped
        named = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common() if count)
        return [f"{share:.2%} of the requests got no good answer ({named}), bound {self.errors:.2%}"]

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {_bound(bound_us)}" for name, bound_us in self.latency_us.items()]
        return ", ".join([*bounds, f"errors ≤ {100 * self.errors:.3g} %"])


def _ms(us: float) -> str:
    """Format a latency as in the table."""
    return f"{rounded(us / 1000)} ms"


def _bound(us: float) -> str:
    return f"{us / 1000:g} ms"


def parse_objective(text: str) -> Objective:
    """Parse an objective, bounds for percentiles of the latency and for the share of errors, as `p99=5ms,errors=0.1%`.

    The bound on errors is 0.1 % by default. Raises BenchMisused.
    """
    latency_us = dict[str, float]()
    errors = USUAL_ERRORS
    for part in text.split(","):
        name, equals, bound = part.strip().partition("=")
        if not equals or name not in {*PERCENTS, ERRORS}:
            raise BenchMisused(
                f"{part.strip()!r} is not a part of an objective; write for example p99=5ms,errors=0.1%, with bounds "
                f"for any of {', '.join(PERCENTS)} and {ERRORS}"
            )

        if name == ERRORS:
            errors = parse_share(bound)
        else:
            latency_us[name] = parse_seconds(bound) * 1e6
    return Objective(latency_us, errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlan:
    """Parsed options.

    With `find_max`, rounds run at the highest rate inside the objective. `batches` are POSTs of each size, of
    which the objective only bounds the errors. `keys` is None if the path names no user.
    """

    options: HttpOptions
    load: Load
    warmup_s: float
    objective: Objective
    batches: Sequence[Posts]
    keys: RequestKeys | None
    allowed_popular: float

    def popular_complaint(self, results: Sequence[Result]) -> list[str]:
        """Return a sentence if too many lists were popular ones."""
        complaint = popular_complaint(results, self.allowed_popular)
        return [complaint + ("" if self.options.store else HINT)] if complaint else []


def users_per_s(trial: Trial) -> float:
    """Return the users/s of a trial of batches."""
    return trial.offered * trial.result.ok_rate


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


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial at the highest rate inside the objective, if any."""
    inside = (trial for trial in _last_trials(trials) if trial.is_inside)
    return max(inside, key=lambda trial: trial.offered, default=None)


def first_outside(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial at the lowest outside rate above `highest`; None if the search was stopped before it."""
    best = highest(trials)
    above = (
        trial
        for trial in _last_trials(trials)
        if not trial.is_inside and (best is None or trial.offered > best.offered)
    )
    return min(above, key=lambda trial: trial.offered, default=None)


def _last_trials(trials: Sequence[Trial]) -> Iterable[Trial]:
    """Return the last complete trial at each rate; only unclear trials are repeated."""
    return {trial.offered: trial for trial in trials if not trial.is_stopped}.values()


def knee(trials: Sequence[Trial]) -> Trial | None:
    """Return the smallest good batch with 90 % of the most users/s; None if no batch is good."""
    good = [trial for trial in trials if trial.is_inside]
    most = max(map(users_per_s, good), default=0.0)
    enough = (trial for trial in good if users_per_s(trial) >= NEAR * most)
    return min(enough, key=lambda trial: trial.offered, default=None)


@dataclass(frozen=True, slots=True)
class HttpRuns:
    """All runs, and the check of kept responses; without a store, nothing is checked."""

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool


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
        measured = _without_latencies(measured, popular)
    elif measured.failures:
        measured = replace(measured, sentence=no_verdict("; ".join([*errors, measured.failures[0]])))
    return _with_check(measured, runs.checked) if runs.checked else measured


def _without_latencies(measured: Report, popular: Sequence[str]) -> Report:
    """Return a report with shares as its only figures, and with the complaints *popular* before its others.

    If too many answers were the popular list instead of the users' own, their latencies and rates say nothing.
    """
    return replace(
        measured,
        sentence=NOT_LISTS,
        rows=tuple(row for row in measured.rows if row.unit == "share"),
        plots=(),
        broken=(*popular, *(reason for reason in measured.broken if "popular list" not in reason)),
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
    return [percentile(results, PERCENTS[name]).row(subject, name, "us", main=name != "p99.9") for name in names]


def _popular_rows(subject: str, results: Sequence[Result]) -> list[Row]:
    """Return the row of popular lists; none if no lists were seen."""
    popular = popular_share(results)
    return [] if popular.value is None else [popular.row(subject, "popular lists", "share")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What rounds at one rate show, and the search for that rate, if there was one.

    best     the trial at the highest rate inside the objective; None without a search, or if its rounds were outside
    limit    why the rate may be higher, as the load generator ended the search; empty if the service did
    broken   bounds that the service did not keep in the rounds, or at any rate
    late     bounds that were broken by the lateness of the load generator
    unknown  bounded percentiles with too few answers, and why
    """

    best: Trial | None
    limit: str
    broken: Sequence[str]
    late: Sequence[str]
    unknown: Mapping[str, str]


def judge(runs: HttpRuns) -> Verdict:
    """Judge rounds at one rate by the objective, and the search for that rate."""
    objective = runs.plan.objective
    unknown = _unknown_percentiles(objective, runs.rounds) if runs.rounds else {}
    known = {name: bound_us for name, bound_us in objective.latency_us.items() if name not in unknown}
    latency = replace(objective, latency_us=known).judge_latency(runs.rounds)
    broken = [*objective.errors_beyond(runs.rounds), *latency.broken]

    best = highest(runs.trials)
    is_search_stopped = runs.interrupted and not runs.rounds
    outside = None if is_search_stopped else first_outside(runs.trials)
    if best:
        broken = [f"the rounds at {best.offered:,.4g} requests/s: {reason}" for reason in broken]
    elif outside:
        reasons = " and ".join(outside.broken or outside.doubts)
        broken.append(f"no rate was inside the objective {objective}: at {outside.offered:,.4g} requests/s {reasons}")

    return Verdict(
        best=None if broken else best,
        limit=outside.doubts[0] if outside and outside.is_unclear else "",
        broken=broken,
        late=latency.doubts,
        unknown=unknown,
    )


def _unknown_percentiles(objective: Objective, rounds: Sequence[Result]) -> dict[str, str]:
    figures = {name: percentile(rounds, PERCENTS[name]) for name in objective.latency_us}
    return {name: figure.note for name, figure in figures.items() if figure.value is None}


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
    p99 = _latency(runs.rounds, "p99")
    if not runs.plan.options.slo and not runs.trials:
        return f"p99 is {p99} at {rate} answers/s, {failed}."

    if errors:
        failed += f" of {format_value(objective.errors, 'share')}"
    bounds = [f"{name} {_latency(runs.rounds, name)} of {_bound(us)}" for name, us in objective.latency_us.items()]
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
    return f"not known ({figure.note})" if figure.value is None else _ms(figure.value)


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
        yield Row(subject, "highest rate", "/s", verdict.best.offered, note="at least" if verdict.limit else "")

    shown = {*PERCENTILES, runs.plan.objective.percentile}
    yield from _latency_rows(subject, rounds, [name for name in PERCENTS if name in shown])
    yield mean([result.ok_rate for result in rounds]).row(subject, "rate", "/s")
    yield error_share(rounds).row(subject, "errors and drops", "share")
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
        p50 = _ms(best.result.latency.percentile_us(50))
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
    yield Row(subject, "users", "/s", users_per_s(trial))
    yield from _latency_rows(subject, results, PERCENTILES)
    yield Row(subject, "batches at a time", "", float(trial.result.connections))
    yield error_share(results).row(subject, "errors", "share")
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
        for name in ("p50", "p99")
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

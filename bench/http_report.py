"""Objective, trials and report of a measurement over HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import CheckResult, popular_complaint, popular_counts
from hotplate.bench.loadgen.load import Load, RequestKeys
from hotplate.bench.loadgen.result import LAG_BOUND_US, Histogram, Result
from hotplate.bench.options import HttpOptions, parse_seconds, parse_share
from hotplate.bench.process import describe
from hotplate.bench.statistics import mean, percentile, share
from hotplate.report import Column, Curve, Plot, Report, Row, format_value, rounded
from hotplate.stores.urls import redacted

PERCENTS: Mapping[str, float] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}
PERCENTILES = ("p50", "p99", "p99.9")
ERRORS = "errors"
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


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds on percentiles, in microseconds, and on the share of errors."""

    latency_us: Mapping[str, float]
    errors: float = USUAL_ERRORS

    @property
    def percentile(self) -> str:
        """The first bounded percentile, or p99."""
        return next(iter(self.latency_us), "p99")

    def judge(self, result: Result) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return broken bounds, and reasons not to blame the service."""
        broken, doubts = self.judge_latency([result])
        return (*self.errors_beyond(result.error_share), *broken), (*result.invalid_reasons, *doubts)

    def judge_latency(self, results: Sequence[Result]) -> tuple[list[str], list[str]]:
        """Return bounds broken by pooled percentiles, and those broken by the generator's lateness."""
        broken = list[str]()
        doubts = list[str]()
        latency = Histogram.merged(each.latency for each in results)
        lag = Histogram.merged(each.lag for each in results)
        for name, bound_us in self.latency_us.items():
            value_us = latency.percentile_us(PERCENTS[name])
            late_us = lag.percentile_us(PERCENTS[name])
            if value_us <= bound_us:
                continue
            beyond = f"{name} {_ms(value_us)}, bound {_bound(bound_us)}"
            if late_us > value_us / 2:
                doubts.append(f"{beyond}, but the generator itself was {_ms(late_us)} late")
            else:
                broken.append(beyond)
        return broken, doubts

    def errors_beyond(self, share: float) -> list[str]:
        """Return a sentence if too large a *share* of requests failed."""
        bound = f"bound {self.errors:.2%}"
        return [f"{share:.2%} of the requests got no good answer, {bound}"] if share > self.errors else []

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {_bound(bound_us)}" for name, bound_us in self.latency_us.items()]
        return ", ".join([*bounds, f"errors ≤ {100 * self.errors:.3g} %"])


def _ms(us: float) -> str:
    """Format a latency as in the table."""
    return f"{rounded(us / 1000)} ms"


def _bound(us: float) -> str:
    return f"{us / 1000:g} ms"


def parse_objective(text: str) -> Objective:
    """Parse an objective; the bound on errors defaults to 0.1 %."""
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

    With `find_max`, rounds run at the highest rate inside the objective. `batches` are sizes of POSTs, of which the
    objective only bounds the errors.
    """

    options: HttpOptions
    load: Load
    warmup_s: float
    objective: Objective
    batches: Sequence[int]
    keys: RequestKeys | None
    allowed_popular: float

    def popular_complaint(self, results: Sequence[Result]) -> list[str]:
        """Return a sentence if too many lists were popular ones."""
        complaint = popular_complaint(results, self.allowed_popular)
        return [complaint + ("" if self.options.store else HINT)] if complaint else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run at a rate or batch size, with broken bounds and reasons not to blame the service."""

    at: float
    result: Result
    broken: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def inside(self) -> bool:
        """Whether the run is valid and inside the objective."""
        return not self.doubts and not self.broken

    @property
    def unclear(self) -> bool:
        """Whether only a disturbed generator is to blame."""
        return bool(self.doubts) and not self.broken

    @property
    def stopped(self) -> bool:
        """Whether the run was interrupted."""
        return self.result.interrupted

    @property
    def users_s(self) -> float:
        """The users/s of a run of batches."""
        return self.at * self.result.ok_rate

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        latencies = {f"{name}_us": self.result.latency.percentile_us(PERCENTS[name]) for name in PERCENTILES}
        found = {"at": self.at, "inside": self.inside, "broken": self.broken, "doubts": self.doubts, **latencies}
        rates = {"ok_rate": self.result.ok_rate, "error_share": self.result.error_share}
        return found | rates | {"parallel": self.result.connections}


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Return the run at the highest rate inside the objective, if any."""
    return max((each for each in trials if each.inside), key=lambda each: each.at, default=None)


def first_outside(trials: Sequence[Trial]) -> Trial | None:
    """Return the run at the lowest outside rate above `highest`; None if stopped before."""
    best = highest(trials)
    above = [each for each in trials if not each.inside and (best is None or each.at > best.at)]
    lowest = min(above, key=lambda each: each.at, default=None)
    return None if lowest is None or lowest.stopped else lowest


def knee(trials: Sequence[Trial]) -> Trial | None:
    """Return the smallest good batch with 90 % of the most users/s."""
    good = [each for each in trials if each.inside]
    most = max((each.users_s for each in good), default=0.0)
    return min((each for each in good if each.users_s >= NEAR * most), key=lambda each: each.at, default=None)


@dataclass(frozen=True, slots=True)
class HttpRuns:
    """All runs, and the check of kept responses."""

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool


def report(runs: HttpRuns) -> Report:
    """Report a measurement."""
    plan = runs.plan
    checked = runs.checked
    popular = plan.popular_complaint([*runs.rounds, *(each.result for each in runs.trials if plan.batches)])
    summary = _Batches(runs) if plan.batches else _Rounds(runs)
    failures = [] if popular else summary.failures if runs.rounds or runs.trials else ["nothing was measured"]
    wrong = [f"{checked.wrong} of {checked.compared} compared answers were wrong"] if checked and checked.wrong else []
    sentence = summary.sentence
    if failures:
        sentence = f"There is no verdict: {failures[0]}."
    elif popular:
        sentence = NOT_LISTS
    return Report(
        kind="http",
        sentence=sentence,
        rows=tuple(row for row in summary.rows if not popular or row.unit == "share"),
        plots=() if popular else tuple(summary.plots),
        notes=(*summary.notes, *(checked.notes if checked else ())),
        broken=(*popular, *(each for each in summary.broken if not popular or "popular list" not in each), *wrong),
        failures=tuple(failures),
        interrupted=runs.interrupted,
        columns=BATCH_COLUMNS if plan.batches else RATE_COLUMNS,
        origins={"measured": summary.method},
        configuration=plan.options.to_json(),
        machine=describe(),
        extra=summary.facts | ({"checked": asdict(checked)} if checked else {}),
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


def _popular_row(subject: str, results: Sequence[Result]) -> list[Row]:
    parts, wholes = zip(*map(popular_counts, results), strict=True)
    return [share(parts, wholes).row(subject, "popular lists", "share")] if sum(wholes) else []


class _Rounds:
    def __init__(self, runs: HttpRuns) -> None:
        self._plan = runs.plan
        self._has_objective = bool(runs.plan.options.slo or runs.trials)
        self._trials = runs.trials
        self._rounds = runs.rounds
        found = highest(runs.trials)
        ended = first_outside(runs.trials)
        objective = runs.plan.objective
        self._limited = ended.doubts[0] if ended and ended.unclear else ""
        due, good = (sum(getattr(each, name) for each in runs.rounds) for name in ("due", "ok"))
        self.broken = objective.errors_beyond((due - good) / max(1, due))
        beyond, self._late = objective.judge_latency(runs.rounds)
        self.broken += beyond
        if found:
            self.broken = [f"the rounds at {found.at:,.4g} requests/s: {reason}" for reason in self.broken]
        elif runs.trials:
            why = f": at {ended.at:,.4g} requests/s {' and '.join(ended.broken or ended.doubts)}" if ended else ""
            self.broken.append(f"no rate was inside the objective {objective}{why}")
        self._best = None if self.broken else found

    @property
    def failures(self) -> list[str]:
        numbered = enumerate(self._rounds, 1)
        reasons = [f"round {number}: {reason}" for number, each in numbered for reason in each.invalid_reasons]
        if len(reasons) > SHOWN_REASONS:
            more = len(reasons) - SHOWN_REASONS
            reasons = [*reasons[:SHOWN_REASONS], f"and {more} more like these, of {len(self._rounds)} rounds"]
        if not self._trials:
            reasons += self._unknown
        return [*reasons, *(f"all rounds: {each}" for each in self._late)]

    @property
    def _unknown(self) -> list[str]:
        """Percentiles that the objective bounds and that have too few answers."""
        figures = {name: percentile(self._rounds, PERCENTS[name]) for name in self._plan.objective.latency_us}
        return [f"{name} is not known ({figure.note})" for name, figure in figures.items() if figure.value is None]

    @property
    def sentence(self) -> str:
        objective = self._plan.objective
        if not self._rounds:
            return f"No rate is inside {objective}."
        if self._best:
            rate = f"{'at least ' * bool(self._limited)}{self._best.at:,.0f} requests/s"
            latency = self._latency(objective.percentile)
            return f"The highest rate inside {objective} is {rate}; there {objective.percentile} is {latency}."
        rate = format_value(mean([result.ok_rate for result in self._rounds]).value or 0)
        errors = share([result.due - result.ok for result in self._rounds], [result.due for result in self._rounds])
        failed = f"errors {format_value(errors.value, 'share')}" if errors.value else "no errors"
        if not self._has_objective:
            return f"p99 is {self._latency('p99')} at {rate} answers/s, {failed}."
        if errors.value:
            failed += f" of {format_value(objective.errors, 'share')}"
        verdict = "Outside" if self.broken else "Within"
        bounds = [f"{name} {self._latency(name)} of {_bound(us)}" for name, us in objective.latency_us.items()]
        latencies = ", ".join(bounds) or f"p99 {self._latency('p99')}"
        return f"{verdict} the objective: {latencies} at {rate} answers/s, {failed}."

    def _latency(self, name: str) -> str:
        figure = percentile(self._rounds, PERCENTS[name])
        return f"not known ({figure.note})" if figure.value is None else _ms(figure.value)

    @property
    def method(self) -> str:
        load = self._plan.load
        rounds = len(self._rounds)
        return (
            f"{rounds} round{'s' * (rounds != 1)} of {self._plan.options.duration}, open loop: latency counts from a "
            f"request's due time; at most {load.connections} in flight"
        )

    @property
    def rows(self) -> list[Row]:
        subject = redacted(self._plan.load.url)
        rounds = self._rounds
        if not rounds:
            return []
        note = "at least" if self._limited else ""
        found = [Row(subject, "highest rate", "/s", self._best.at, note=note)] if self._best else []
        names = {*PERCENTILES, self._plan.objective.percentile}
        found += [
            percentile(rounds, percent).row(subject, name, "us", main=name != "p99.9")
            for name, percent in PERCENTS.items()
            if name in names
        ]
        found.append(mean([each.ok_rate for each in rounds]).row(subject, "rate", "/s"))
        bad = share([each.due - each.ok for each in rounds], [each.due for each in rounds])
        return [*found, bad.row(subject, "errors and drops", "share"), *_popular_row(subject, rounds)]

    @property
    def notes(self) -> list[str]:
        found = []
        if self._limited:
            found.append(f"The search ended because of the generator, and not of the service: {self._limited}.")
        late_us = Histogram.merged(each.lag for each in self._rounds).percentile_us(99)
        if late_us > LAG_BOUND_US:
            late = f"The generator itself was up to {format_value(late_us, 'us')} late (p99)"
            found.append(f"{late}; that is part of the latencies.")
        return found

    @property
    def plots(self) -> list[Plot]:
        of_rounds = [_spectrum(self._rounds), _seconds(self._rounds)] if self._rounds else []
        if not self._trials:
            return of_rounds
        named = self._plan.objective.percentile
        tried = sorted(self._trials, key=lambda each: each.at)
        latencies_us = tuple(percentile([each.result], PERCENTS[named]).value for each in tried)
        curve = Curve(named, tuple(each.at for each in tried), latencies_us)
        marks = {self._best.at: "highest inside"} if self._best else {}
        title = f"{named} over offered load"
        plot = Plot(title, "requests/s", named, (curve,), y_unit="us", log_y=True, points=True, marks=marks)
        return [plot, *of_rounds]

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rounds": [each.to_json() for each in self._rounds]}
        if self._trials:
            limits = {"highest": self._best and self._best.at, "at_least": self._limited}
            points = [each.to_json() for each in self._trials]
            found["search"] = limits | {"objective": str(self._plan.objective), "points": points}
        return found


class _Batches:
    def __init__(self, runs: HttpRuns) -> None:
        self._trials = runs.trials
        self._best = knee(runs.trials)

    @property
    def failures(self) -> list[str]:
        return [f"batch {each.at:,}: {reason}" for each in self._trials for reason in each.doubts]

    @property
    def broken(self) -> list[str]:
        return [f"batch {each.at:,}: {reason}" for each in self._trials for reason in each.broken]

    @property
    def sentence(self) -> str:
        if self._best is None:
            return "No batch was served without errors, even one at a time; see below."
        rate = self._best.users_s
        p50 = self._best.result.latency.percentile_us(50)
        shown = f"{format_value(rate, 'users/s')}, p50 {_ms(p50)}"
        return f"The smallest batch that gives 90 % of the most users/s is {self._best.at:,.0f}: {shown}."

    @property
    def rows(self) -> list[Row]:
        return [row for each in self._trials for row in self._rows(each)]

    def _rows(self, trial: Trial) -> list[Row]:
        subject = f"batch of {trial.at:,.0f}"
        result = trial.result
        return [
            Row(subject, "users", "/s", trial.users_s),
            *(
                percentile([result], PERCENTS[name]).row(subject, name, "us", main=name != "p99.9")
                for name in PERCENTILES
            ),
            Row(subject, "batches at a time", "", float(result.connections)),
            share([result.due - result.ok], [result.due]).row(subject, "errors", "share"),
            *_popular_row(subject, [result]),
        ]

    @property
    def method(self) -> str:
        closed = "closed loop: latency counts from sending"
        return f"{closed}; where the service refused more at a time (429, 503), fewer were sent"

    @property
    def notes(self) -> list[str]:
        return []

    @property
    def plots(self) -> list[Plot]:
        sizes = tuple(each.at for each in self._trials)
        label = "users in a batch"
        ticks = {each: f"{each:,.0f}" for each in sizes}
        common: dict[str, Any] = {"log_x": len(sizes) > 1, "points": True, "ticks": ticks}
        curves = tuple(
            Curve(name, sizes, tuple(percentile([each.result], PERCENTS[name]).value for each in self._trials))
            for name in ("p50", "p99")
        )
        rates = Curve("users/s", sizes, tuple(each.users_s for each in self._trials))
        return [
            Plot("Latency over batch size", label, "latency", curves, y_unit="us", log_y=True, **common),
            Plot("Users/s over batch size", label, "users/s", (rates,), **common),
        ]

    @property
    def facts(self) -> dict[str, Any]:
        points = [each.to_json() for each in self._trials]
        return {"rounds": [], "sweep": {"knee": self._best and self._best.at, "points": points}}


def _spectrum(rounds: Sequence[Result]) -> Plot:
    spectrum = Histogram.merged(each.latency for each in rounds).spectrum()
    points = [(1 / (1 - percent / 100), us) for percent, us in spectrum if percent < 100]
    curve = Curve("all rounds", tuple(x for x, _ in points), tuple(us for _, us in points))
    names = {2.0: "p50", 10.0: "p90", 100.0: "p99", 1_000.0: "p99.9", 10_000.0: "p99.99", 100_000.0: "p99.999"}
    ticks = {x: name for x, name in names.items() if x <= max((x for x, _ in points), default=2) * 1.01}
    caption = "All answers of all rounds, from due times."
    return Plot(
        "Latency by percentile", "percentile", "latency", (curve,), y_unit="us", log_x=True, log_y=True, ticks=ticks,
        caption=caption,
    )  # fmt: skip


def _seconds(rounds: Sequence[Result]) -> Plot:
    seconds = [Histogram.of(second.latencies_s) for each in rounds for second in each.seconds]
    x = tuple(float(number) for number in range(1, len(seconds) + 1))
    curves = tuple(
        Curve(name, x, tuple(each.percentile_us(percent) or None for each in seconds))
        for name, percent in (("p50", 50), ("longest", 100))
    )
    label = "second, all rounds"
    return Plot("Latency by second", label, "latency", curves, y_unit="us", log_y=True, points=len(x) < 30)

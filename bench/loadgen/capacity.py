"""How much a service can take: an objective, the highest rate inside it, and the best size of a batch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.loadgen.result import SENT_BOUND, Result, at_least
from hotplate.bench.quantities import parse_seconds, parse_share
from hotplate.bench.report.text import format_us
from hotplate.bench.search import search
from hotplate.report import format_value

PERCENTS: Mapping[str, float] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}
ERRORS = "errors"
THROTTLED = "throttled"
TOO_MANY_REQUESTS = 429
USUAL_ERRORS = 0.001


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds on latencies, in microseconds by percentile, and on the share of requests without a good answer.

    Where `throttled` bounds the share of 429s, these do not count among the errors.
    """

    latency_us: Mapping[str, float]
    errors: float = USUAL_ERRORS
    throttled: float | None = None

    @property
    def percentile(self) -> str:
        """The first that it bounds, by which is decided; p99 if it bounds none."""
        return next(iter(self.latency_us), "p99")

    @property
    def percent(self) -> float:
        """The number of `percentile`, 0 to 100."""
        return PERCENTS[self.percentile]

    def judge(self, result: Result) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return a sentence for each bound that *result* breaks, and one for each reason not to blame the service.

        A latency that is mostly the generator's own lateness is no latency of the service.
        """
        latencies, lags = Histogram.of(result.latencies_s), Histogram.of(result.lags_s)
        refused = 0.0 if self.throttled is None else result.statuses.get(TOO_MANY_REQUESTS, 0) / max(1, result.due)
        broken, doubts = self.errors_beyond(result.error_share - refused), list(result.invalid_reasons)
        if self.throttled is not None and refused > self.throttled:
            broken.insert(0, f"{refused:.2%} of the requests were throttled, bound {self.throttled:.2%}")
        for name, bound_us in self.latency_us.items():
            (found_us,), (late_us,) = (each.percentiles_us([PERCENTS[name]]) for each in (latencies, lags))
            beyond = f"{name} {format_value(found_us, 'us')}, bound {format_value(bound_us, 'us')}"
            if found_us > bound_us and late_us > found_us / 2:
                doubts.append(f"{beyond}, but the generator itself was {format_value(late_us, 'us')} late")
            elif found_us > bound_us:
                broken.append(beyond)
        return tuple(broken), tuple(doubts)

    def broken(self, result: Result) -> list[str]:
        """Return a sentence for each bound that *result* breaks, even from when requests were sent."""
        histogram = Histogram.of(result.sent_latencies_s)
        violations, refused = [], 0.0
        if self.throttled is not None:
            refused = result.statuses.get(TOO_MANY_REQUESTS, 0) / max(1, result.due)
            if refused > self.throttled:
                violations.append(f"{refused:.2%} of the requests were throttled, bound {self.throttled:.2%}")
        violations += self.errors_beyond(result.error_share - refused)
        for name, bound_us in self.latency_us.items():
            (found_us,) = histogram.percentiles_us([PERCENTS[name]])
            if found_us > bound_us:
                violations.append(f"{name} {format_us(found_us)}, bound {format_us(bound_us)}")
        return violations

    def errors_beyond(self, share: float) -> list[str]:
        """Return a sentence where the *share* of requests without a good answer is above the bound."""
        bound = f"bound {self.errors:.2%}"
        return [f"{share:.2%} of the requests got no good answer, {bound}"] if share > self.errors else []

    def invalid_reasons(self, result: Result) -> list[str]:
        """Return a sentence for each latency that breaks its bound from when due, and keeps it from when sent."""
        most, least = Histogram.of(result.latencies_s), Histogram.of(result.sent_latencies_s)
        doubted = list[str]()
        for name, bound_us in self.latency_us.items():
            (most_us,), (least_us,) = (each.percentiles_us([PERCENTS[name]]) for each in (most, least))
            if least_us <= bound_us < most_us:
                between = f"{name} is between {format_us(least_us)} and {format_us(most_us)}"
                doubted.append(f"{between}, bound {format_us(bound_us)}; {result.disturbance}")
        return doubted

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {format_us(bound)}" for name, bound in self.latency_us.items()]
        throttled = [] if self.throttled is None else [f"throttled ≤ {100 * self.throttled:.3g} %"]
        return ", ".join([*bounds, *throttled, f"errors ≤ {100 * self.errors:.3g} %"])


def parse_objective(text: str) -> Objective:
    """Read an objective; errors of more than 0.1 % break it unless it says otherwise."""
    latency_us, shares = dict[str, float](), dict[str, float]()
    for part in text.split(","):
        name, equals, bound = part.strip().partition("=")
        if not equals or name not in {*PERCENTS, ERRORS, THROTTLED}:
            raise BenchMisused(
                f"{part.strip()!r} is not a part of an objective; write for example p99=5ms,errors=0.1%, with bounds "
                f"for any of {', '.join(PERCENTS)}, {ERRORS} and {THROTTLED}"
            )
        if name in PERCENTS:
            latency_us[name] = parse_seconds(bound) * 1e6
        else:
            shares[name] = parse_share(bound)
    return Objective(latency_us, shares.get(ERRORS, USUAL_ERRORS), shares.get(THROTTLED))


STOPPED = ("it was stopped",)

# The share of the most users/s that the knee must reach.
NEAR = 0.9

# Makes a run at a rate.
Measure = Callable[[float], Result]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a search or a sweep: `at` is its rate in requests/s, or its size of batch.

    In a sweep `per_s` are users, without the share of `popular` answers: those are what an overloaded service falls
    back to, and cheap.
    """

    at: float
    per_s: float
    p50_us: float
    p99_us: float
    error_share: float
    popular: float
    invalid_reasons: tuple[str, ...]
    broken: tuple[str, ...] = ()
    at_least: str = ""
    """Why `per_s` is only a lower bound: the generator waited for a core; empty if it hardly did."""

    @property
    def inside(self) -> bool:
        """Whether the run is valid and keeps the objective."""
        return not self.invalid_reasons and not self.broken

    @property
    def unclear(self) -> bool:
        """Whether the generator was disturbed in a run that broke nothing."""
        return bool(self.invalid_reasons) and not self.broken

    @property
    def stopped(self) -> bool:
        """Whether it was ended early."""
        return self.invalid_reasons == STOPPED

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self) | {"inside": self.inside}


def disturbances(result: Result, late_us: float = math.inf) -> Iterator[str]:
    """Yield why a run did not offer its rate: too few requests were sent, or more than *late_us* too late at p99."""
    if result.sent < SENT_BOUND * result.due:
        yield f"the generator sent {result.sent:,} of {result.due:,} requests that were due"
    lag_us = Histogram.of(result.lags_s).percentiles_us((99,))[0]
    if lag_us > late_us:
        yield f"the generator was late: p99 {format_us(lag_us)}"


def point(at: float, result: Result, *, invalid_reasons: Sequence[str] = (), broken: Sequence[str] = ()) -> Point:
    """Sum up a run of a search; its latencies are those from when requests were due."""
    sources = result.seen.get("source", {})
    p50, p99 = Histogram.of(result.latencies_s).percentiles_us((50, 99))
    return Point(
        at=at,
        per_s=result.ok_rate,
        p50_us=p50,
        p99_us=p99,
        error_share=result.error_share,
        popular=sources.get("popular", 0) / max(1, sum(sources.values())),
        invalid_reasons=STOPPED if result.interrupted else (*result.invalid_reasons, *invalid_reasons),
        broken=tuple(broken),
        at_least=result.waiting if result.at_least else "",
    )


def batch_point(size: int, result: Result) -> Point:
    """Sum up a run of a sweep; the source of a response's first list is taken for that of the whole response."""
    found = point(size, result)
    return replace(found, per_s=found.per_s * size * (1 - found.popular))


def find_max(measure: Measure, objective: Objective, start: float) -> Iterator[Point]:
    """Look for the highest rate inside *objective*, to 5 %, from *start* on; see `search`.

    If a latency breaks it while the generator itself had no more to give, it is not known whose limit that is.
    """

    def attempt(rate: float) -> Point:
        result = measure(rate)
        reasons, broken = objective.invalid_reasons(result), objective.broken(result)
        if broken and result.limit and result.error_share <= objective.errors:
            reasons, broken = [f"{' and '.join(broken)}, but {result.limit}"], []
        return point(rate, result, invalid_reasons=reasons, broken=broken)

    return search(attempt, start)


def highest(points: Sequence[Point]) -> Point | None:
    """Pick the run of the highest rate inside the objective; None if none was."""
    inside = [each for each in points if each.inside]
    return max(inside, key=lambda each: each.at, default=None)


def highest_text(found: Mapping[str, Any]) -> str:
    """Write what a search found, given as the plain values of a report; whose limit it was if that is not known."""
    if not found["highest"]:
        return "none"
    unknown = f", as it is not known whose limit that is: {found['at_least']}" if found.get("at_least") else ""
    return f"{at_least(found)}{found['highest']:,.0f} requests/s{unknown}"


def first_outside(points: Sequence[Point]) -> Point | None:
    """Pick the lowest rate above the highest inside that was outside; None if the search was stopped before."""
    best = highest(points)
    above = [each for each in points if not each.inside and (best is None or each.at > best.at)]
    lowest = min(above, key=lambda each: each.at, default=None)
    return None if lowest is None or lowest.stopped else lowest


def knee(points: Sequence[Point]) -> Point | None:
    """Pick the smallest batch that gives 90 % of the most users/s; larger ones add latency and hardly anything else.

    None if nothing was answered, or if a rate is only a lower bound.
    """
    answered = [each for each in points if each.per_s and not any(one.at_least for one in points)]
    most = max((each.per_s for each in answered), default=0.0)
    return min((each for each in answered if each.per_s >= NEAR * most), key=lambda each: each.at, default=None)

"""What is demanded of a service: bounds on its latencies, and on requests without a good answer."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.loadgen.result import Result
from hotplate.bench.quantities import parse_seconds, parse_share
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

    def errors_beyond(self, share: float) -> list[str]:
        """Return a sentence where the *share* of requests without a good answer is above the bound."""
        bound = f"bound {self.errors:.2%}"
        return [f"{share:.2%} of the requests got no good answer, {bound}"] if share > self.errors else []

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {format_value(bound, 'us')}" for name, bound in self.latency_us.items()]
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

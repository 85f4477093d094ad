"""The objective that a rate is judged by: `p99=5ms,errors=0.1%`, and of a metered store `throttled=1%`."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.errors import BenchMisused
from bench.loadgen.histogram import Histogram
from bench.loadgen.result import Result
from bench.report import units

PERCENTS: Mapping[str, float] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}
ERRORS, THROTTLED = "errors", "throttled"
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

    def broken(self, result: Result) -> list[str]:
        """Say which bounds *result* breaks; nothing where it keeps all."""
        histogram = Histogram.of(result.latencies_s)
        said, refused = [], 0.0
        if self.throttled is not None:
            refused = result.statuses.get(TOO_MANY_REQUESTS, 0) / max(1, result.due)
            if refused > self.throttled:
                said.append(f"{refused:.2%} of the requests were throttled, bound {self.throttled:.2%}")
        if result.error_share - refused > self.errors:
            share = result.error_share - refused
            said.append(f"{share:.2%} of the requests got no good answer, bound {self.errors:.2%}")
        for name, bound_us in self.latency_us.items():
            (found_us,) = histogram.percentiles_us([PERCENTS[name]])
            if found_us > bound_us:
                said.append(f"{name} {units.told(found_us)}, bound {units.told(bound_us)}")
        return said

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {units.told(bound)}" for name, bound in self.latency_us.items()]
        throttled = [] if self.throttled is None else [f"throttled ≤ {100 * self.throttled:.3g} %"]
        return ", ".join([*bounds, *throttled, f"errors ≤ {100 * self.errors:.3g} %"])


def parse(text: str) -> Objective:
    """Read an objective; errors of more than 0.1 % break it unless it says otherwise."""
    latency_us, shares = dict[str, float](), dict[str, float]()
    for part in text.split(","):
        name, equals, bound = part.strip().partition("=")
        if not equals or name not in {*PERCENTS, ERRORS, THROTTLED}:
            raise BenchMisused(
                f"an objective is like p99=5ms,errors=0.1% with {', '.join(PERCENTS)}, {ERRORS} or {THROTTLED}, "
                f"not {part.strip()!r}"
            )
        if name in PERCENTS:
            latency_us[name] = units.seconds(bound) * 1e6
        else:
            shares[name] = units.share(bound)
    return Objective(latency_us, shares.get(ERRORS, USUAL_ERRORS), shares.get(THROTTLED))

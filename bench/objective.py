"""The objective that a rate is judged by: `p99=5ms,errors=0.1%`."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench import units
from bench.errors import BenchMisused
from bench.histogram import Histogram
from bench.result import Result

PERCENTS: Mapping[str, float] = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "p99.99": 99.99, "max": 100}
ERRORS = "errors"
USUAL_ERRORS = 0.001


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds on latencies, in microseconds by percentile, and on the share of requests without a good answer."""

    latency_us: Mapping[str, float]
    errors: float = USUAL_ERRORS

    def broken(self, result: Result) -> list[str]:
        """Say which bounds *result* breaks; nothing where it keeps all."""
        histogram = Histogram.of(result.latencies_s)
        said = []
        if result.error_share > self.errors:
            said.append(f"{result.error_share:.2%} of the requests got no good answer, bound {self.errors:.2%}")
        for name, bound_us in self.latency_us.items():
            (found_us,) = histogram.percentiles_us([PERCENTS[name]])
            if found_us > bound_us:
                said.append(f"{name} {units.told(found_us)}, bound {units.told(bound_us)}")
        return said

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {units.told(bound)}" for name, bound in self.latency_us.items()]
        return ", ".join([*bounds, f"errors ≤ {100 * self.errors:.3g} %"])


def parse(text: str) -> Objective:
    """Read an objective; errors of more than 0.1 % break it unless it says otherwise."""
    latency_us, errors = dict[str, float](), USUAL_ERRORS
    for part in text.split(","):
        name, equals, bound = part.strip().partition("=")
        if not equals or (name not in PERCENTS and name != ERRORS):
            raise BenchMisused(
                f"an objective is like p99=5ms,errors=0.1% with {', '.join(PERCENTS)} or {ERRORS}, not {part.strip()!r}"
            )
        if name == ERRORS:
            errors = units.share(bound)
        else:
            latency_us[name] = units.seconds(bound) * 1e6
    return Objective(latency_us, errors)

"""Two reports side by side: is the difference real, and is it for the worse?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev
from typing import Any

from bench.errors import BenchMisused
from bench.report.report import ERRORS, METRICS, RATE, Report, Round, Series

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t that 2.5 % lie beyond, for 1 … 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and the bounds between which the true one lies in 95 of 100 such measurements."""

    mean: float
    low: float
    high: float

    @property
    def real(self) -> bool:
        """For a difference: whether zero lies outside."""
        return not self.low <= 0 <= self.high


def interval(values: Sequence[float]) -> Interval | None:
    """Give the 95 % t-interval of independent *values*; None for fewer than two."""
    if len(values) < 2:
        return None
    half = quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def geometric(values: Sequence[float]) -> Interval | None:
    """Give the geometric mean of *values* and its 95 % interval, by their logarithms, so that no bound is below zero.

    None for fewer than two, or where one is zero.
    """
    if not all(value > 0 for value in values):
        return None
    found = interval([math.log(value) for value in values])
    return found and Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high))


def change(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Give the relative change from *before* to *after*, whose values are paired; None for fewer than two pairs.

    0.05 is 5 % more. Values must be above zero.
    """
    logs = [math.log(second / first) for first, second in zip(before, after, strict=True)]
    found = interval(logs)
    return found and Interval(math.expm1(found.mean), math.expm1(found.low), math.expm1(found.high))


def quantile(freedom: int) -> float:
    """Give the t that 2.5 % lie beyond; above 30 degrees by its expansion (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


FEWEST = 3
MORE_ERRORS = 0.001
"""So much more of all requests without a good answer is a regression, whatever became of the others' latencies."""


@dataclass(frozen=True, slots=True)
class Change:
    """The relative change of one metric from the first to the second report, over paired rounds."""

    metric: str
    before: float
    after: float
    interval: Interval

    @property
    def real(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval.real

    @property
    def worse(self) -> bool:
        """Whether it is real and for the worse: a longer latency, a lower rate."""
        return self.real and (self.interval.mean < 0 if self.metric == RATE else self.interval.mean > 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison comes to; `decides` is the metric that was chosen beforehand.

    `left_out` pairs are not among the `pairs` that count: a round of theirs was invalid.
    """

    decides: str
    changes: tuple[Change, ...]
    errors: tuple[float, float]
    pairs: int
    left_out: int = 0

    @property
    def deciding(self) -> Change:
        """The change that counts."""
        return next(each for each in self.changes if each.metric == self.decides)

    @property
    def regression(self) -> bool:
        """Whether the second is really worse, or gives more errors."""
        return self.deciding.worse or self.errors[1] - self.errors[0] > MORE_ERRORS

    @property
    def sentence(self) -> str:
        """Say it."""
        found = self.deciding
        if self.errors[1] - self.errors[0] > MORE_ERRORS:
            return f"a regression: errors went from {self.errors[0]:.2%} to {self.errors[1]:.2%}"
        amount = f"{found.metric} changed by {_percent(found.interval)}"
        if not found.real:
            return f"no real difference: {amount}, and the interval holds 0"
        return f"{'a regression' if found.worse else 'an improvement'}: {amount}"

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "regression": self.regression,
            "sentence": self.sentence,
            "pairs": self.pairs,
            "left_out": self.left_out,
            "decides": self.decides,
            "errors": list(self.errors),
            "changes": [
                {
                    "metric": each.metric,
                    "before": each.before,
                    "after": each.after,
                    "change": each.interval.mean,
                    "low": each.interval.low,
                    "high": each.interval.high,
                    "real": each.real,
                }
                for each in self.changes
            ],
        }


def compare(before: Series, after: Series, decides: str = "p99") -> Verdict:
    """Compare two series round by round, without the pairs that hold an invalid round.

    Raises BenchMisused for what cannot be compared.
    """
    if decides not in METRICS:
        raise BenchMisused(f"{decides!r} is not one of {', '.join(METRICS)}")
    made = len(before.rounds)
    if len(after.rounds) != made:
        raise BenchMisused(f"rounds are compared in pairs, and there are {made} and {len(after.rounds)}")
    whole = [pair for pair in zip(before.rounds, after.rounds, strict=True) if not any(map(_invalid, pair))]
    pairs = len(whole)
    if pairs < FEWEST:
        invalid_reasons = [*before.invalid_reasons, *after.invalid_reasons]
        because = f" ({made - pairs} were left out: {invalid_reasons[0]})" if invalid_reasons else ""
        raise BenchMisused(f"{pairs} valid pairs of rounds{because} say nothing of chance; --repeat 7, say")
    before = Series(before.name, tuple(first for first, _ in whole))
    after = Series(after.name, tuple(second for _, second in whole))
    changes = list[Change]()
    for metric in METRICS:
        first, second = before.values(metric), after.values(metric)
        found = change(first, second) if min(*first, *second) > 0 else None
        if found is not None:
            changes.append(Change(metric, sum(first) / pairs, sum(second) / pairs, found))
    if decides not in {each.metric for each in changes}:
        raise BenchMisused(f"a round has no {decides}: nothing was answered in it")
    errors = [sum(each.values(ERRORS)) / pairs for each in (before, after)]
    return Verdict(decides, tuple(changes), (errors[0], errors[1]), pairs, made - pairs)


def sole_series(name: str, report: Report) -> Series:
    """Give the one series of a report; BenchMisused where it has none, has several, or was stopped."""
    if len(report.series) != 1 or not report.series[0].rounds:
        raise BenchMisused(f"{name} cannot be compared: it holds no rounds of one subject")
    if report.interrupted:
        raise BenchMisused(f"{name} cannot be compared: it was stopped before its end")
    return report.series[0]


def _invalid(one: Round) -> bool:
    return bool(one.facts["invalid_reasons"])


def _percent(found: Interval) -> str:
    return f"{found.mean:+.1%} (95 % interval {found.low:+.1%} to {found.high:+.1%})"

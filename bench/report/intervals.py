"""What repetitions show: a mean with its 95 % interval, and whether two measurements differ.

Student's t, not a bootstrap: of five to ten repetitions a bootstrap's interval is too narrow. Differences are taken of
logarithms, so that they are relative and a skewed latency is less so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


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


# So much more or less does not matter to whoever chooses between two.
MATTERS = 0.1


@dataclass(frozen=True, slots=True)
class Difference:
    """A relative change by both bounds of a latency, from when requests were due and from when they were sent.

    What has one value only, as a rate, has it for both bounds.
    """

    due: Interval
    sent: Interval

    @property
    def low(self) -> float:
        """The lowest that it may be."""
        return min(self.due.low, self.sent.low)

    @property
    def high(self) -> float:
        """The highest that it may be."""
        return max(self.due.high, self.sent.high)

    @property
    def real(self) -> bool:
        """Whether both bounds show a change, and in the same direction."""
        return self.low > 0 or self.high < 0

    @property
    def negligible(self) -> bool:
        """Whether neither bound allows for a change that matters."""
        return self.low >= 1 / (1 + MATTERS) - 1 and self.high <= MATTERS


def interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % t-interval of independent *values*; None for fewer than two."""
    if len(values) < 2:
        return None
    half = quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def geometric(values: Sequence[float]) -> Interval | None:
    """Return the geometric mean of *values* and its 95 % interval, by their logarithms, so that no bound is below zero.

    None for fewer than two, or where one is zero.
    """
    if not all(value > 0 for value in values):
        return None
    found = interval([math.log(value) for value in values])
    return found and Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high))


def change(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Return the relative change from *before* to *after*, whose values are paired; None for fewer than two pairs.

    0.05 is 5 % more. Values must be above zero.
    """
    logs = [math.log(second / first) for first, second in zip(before, after, strict=True)]
    found = interval(logs)
    return found and Interval(math.expm1(found.mean), math.expm1(found.low), math.expm1(found.high))


def quantile(freedom: int) -> float:
    """Return Student's t that 2.5 % lie beyond."""
    from scipy.special import stdtrit  # noqa: PLC0415 -- takes 0.07 s to load

    return float(stdtrit(freedom, 0.975))

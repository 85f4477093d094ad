"""A figure as rounds show it: between two bounds, with its interval, and whether it differs from another's, or why not.

A latency is known between two bounds: from when its request was due, which holds all that the generator was late, and
from when it was sent. A difference is real if it holds by both. Rounds are compared in pairs, and a verdict is right
in 95 of 100 such measurements. Differences are taken of logarithms, so they are relative and a skewed latency is less
so.

A mean is that of the middle three fifths, so a few rounds that something else disturbed hardly move it. Its interval is
Student's t of winsorized deviations (J. W. Tukey and D. H. McLaughlin, Sankhya A 25, 1963, pages 331-352; R. R. Wilcox,
Introduction to Robust Estimation and Hypothesis Testing, section 4.3). If a fifth of the rounds are disturbed it is a
third as wide as that of the plain mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import NamedTuple

# Pairs of rounds that a verdict needs.
MIN_PAIRS = 5
TOO_FEW = "fewer than five rounds"

# The share of rounds that is left out at each end.
LEFT_OUT = 0.2

# The quantile of Student's t. At 0.975 such intervals hold the truth of normal rounds 94 times in 100 only.
QUANTILE = 0.98

# So much more or less does not matter for a choice between two; and of all requests, with no good answer.
MATTERS = 0.1
MORE_ERRORS = 0.001

# A change that may be so many times as much, or as little, says nothing.
TIMES = 10

# From this share of the CPU on that the host took away, that is named as what made rounds differ.
STOLEN = 0.005

# More rounds than so many times those that were made are not proposed: the machine changes meanwhile.
MOST_TIMES = 60

# So many more are proposed than the arithmetic says, because the next rounds may differ by more.
SPARE = 1.2

NO_DIFFERENCE = "no difference that matters"
CANNOT_TELL = "cannot tell, because"
UNKNOWN = "—"
A_MACHINE = "a machine with a core to spare would do"


class Interval(NamedTuple):
    """A mean, and the bounds between which the true one lies in 95 of 100 such measurements."""

    mean: float
    low: float
    high: float


UNCHANGED = Interval(0.0, 0.0, 0.0)


def interval(values: Sequence[float], left_out: float = LEFT_OUT) -> Interval | None:
    """Return the mean of independent *values* without the share *left_out* at each end, and its 95 % interval.

    None for fewer than two. Of fewer than five nothing is left out.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 -- takes 0.07 s to load

    if len(values) < 2:
        return None
    ordered, cut = sorted(values), int(left_out * len(values))
    kept = ordered[cut : len(ordered) - cut]
    winsorized = [kept[0]] * cut + kept + [kept[-1]] * cut
    error = math.sqrt(variance(winsorized) * (len(values) - 1) / (len(kept) * (len(kept) - 1)))
    half = float(stdtrit(len(kept) - 1, QUANTILE)) * error
    return Interval(fmean(kept), fmean(kept) - half, fmean(kept) + half)


def middle(values: Sequence[float]) -> float:
    """Return the mean of *values* without a fifth at each end, as intervals have it; there is at least one."""
    cut = int(LEFT_OUT * len(values))
    return fmean(sorted(values)[cut : len(values) - cut])


def geometric(values: Sequence[float]) -> Interval | None:
    """Return the geometric mean of *values* and its 95 % interval, by their logarithms, so no bound is below zero.

    None for fewer than two, or if one is zero.
    """
    if not all(value > 0 for value in values):
        return None
    found = interval([math.log(value) for value in values])
    return found and Interval(*map(math.exp, found))


def change(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """Return the relative change from *before* to *after*, whose values are paired; None for fewer than two pairs.

    0.05 is 5 % more. Values must be above zero.
    """
    found = interval([math.log(second / first) for first, second in zip(before, after, strict=True)])
    return found and Interval(*map(math.expm1, found))


def between(low: float, high: float, form: str) -> str:
    """Write a range as the format *form* writes its two numbers; one of them if both are written alike."""
    least, most = form.format(low), form.format(high)
    return least if least == most else f"{least} to {most}"


class Phrasing(NamedTuple):
    """The name of the better of two, and the words for having more of something."""

    better: str
    takes: str
    more: str
    times: str
    less_is_better: bool = True


FASTER = Phrasing("faster", "takes", "longer", "times as long")
CHEAPER = Phrasing("cheaper", "takes", "more", "times as much")
AHEAD = Phrasing("ahead", "does", "more", "times as much", less_is_better=False)


class MeasuredChange(NamedTuple):
    """By how much the second of two differs, by both bounds of a figure; `because` says why that cannot be told.

    A change is relative; a difference of `shares`, which may be zero, is a plain one. `rounds` are how many would tell,
    about; 0 if it is known, or if more rounds do not help.
    """

    changes: tuple[Interval, ...] = ()
    because: str = ""
    shares: bool = False
    rounds: int = 0

    @property
    def low(self) -> float:
        """The lowest change that it may be."""
        return min((each.low for each in self.changes), default=0.0)

    @property
    def high(self) -> float:
        """The highest change that it may be."""
        return max((each.high for each in self.changes), default=0.0)

    @property
    def real(self) -> bool:
        """Whether all bounds show a change, in the same direction, and one that may matter."""
        return (self.low > 0 or self.high < 0) and not self.negligible

    @property
    def negligible(self) -> bool:
        """Whether no bound allows for a change that matters."""
        least, most = (-MORE_ERRORS, MORE_ERRORS) if self.shares else (1 / (1 + MATTERS) - 1, MATTERS)
        return bool(self.changes) and least <= self.low and self.high <= most

    @property
    def range(self) -> str:
        """The lowest and the highest in a text, if they say anything."""
        if not self.shares and (self.high > TIMES - 1 or self.low < 1 / TIMES - 1):
            return "more than ten times"
        return between(self.low, self.high, "{:+.2%}" if self.shares else "{:+.0%}")

    def sentence(self, first: str, second: str, phrasing: Phrasing) -> str:
        """Write the verdict on two subjects."""
        if self.because:
            return f"{CANNOT_TELL} {self.because}" if self.changes else f"{UNKNOWN} ({self.because})"
        if self.shares:
            better, least, most = (first, self.low, self.high) if self.low > 0 else (second, -self.high, -self.low)
            by = f"{better} has fewer, by {between(least, most, '{:.2%}')} of all requests"
            return NO_DIFFERENCE if self.negligible else by
        if not self.real:
            return f"{NO_DIFFERENCE} ({self.range})"
        less, more, low, high = first, second, self.low, self.high
        if self.high < 0:
            less, more, low, high = second, first, 1 / (1 + self.high) - 1, 1 / (1 + self.low) - 1
        percents, times = between(low, high, "{:.0%}"), between(1 + low, 1 + high, "{:.3g}")
        by = f"{percents} {phrasing.more}" if low < 1 else f"{times} {phrasing.times}"
        return f"{less if phrasing.less_is_better else more} is {phrasing.better}: {more} {phrasing.takes} {by}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of one subject, round by round: between `sent` and `due`, which are one if it has one value.

    `why` is what kept the two apart, or why values are missing. `stolen` is the share of the CPU that the host took
    away in the worst round. `shares` of all requests may be zero.
    """

    due: Sequence[float]
    sent: Sequence[float]
    why: str = ""
    stolen: float = 0.0
    shares: bool = False

    def compared_with(self, other: "Measured") -> MeasuredChange:
        """Compare the other with this one, in pairs of rounds."""
        because = self._not_comparable(other)
        found = MeasuredChange(because=because) if because else MeasuredChange(self._changes(other), shares=self.shares)
        if because or found.real or found.negligible:
            return found
        if any(
            alone.real or alone.negligible
            for each in found.changes
            if (alone := MeasuredChange((each,), "", self.shares))
        ):
            late = self.why or other.why or "the generator was late"
            return found._replace(because=f"{late} ({found.range}); {A_MACHINE}")
        stolen = max(self.stolen, other.stolen)
        while_stolen = f", while {stolen:.1%} of the CPU was stolen by the host" if stolen >= STOLEN else ""
        rounds = _enough(found, len(self.due))
        would_do = f"about {rounds} rounds would do" if rounds else A_MACHINE
        return found._replace(because=f"rounds differ by more ({found.range}){while_stolen}; {would_do}", rounds=rounds)

    def _changes(self, other: "Measured") -> tuple[Interval, ...]:
        bounds = [(self.due, other.due), (self.sent, other.sent)]
        if all(list(first) == list(second) for first, second in bounds):
            return (UNCHANGED,)
        if self.shares:
            differences = [second - first for first, second in zip(self.due, other.due, strict=True)]
            plain = interval(differences, left_out=0.0)  # a round with errors is what is looked for
            return (plain or UNCHANGED,)
        return tuple(change(*pair) or UNCHANGED for pair in bounds)

    def _not_comparable(self, other: "Measured") -> str:
        first, second = len(self.due), len(other.due)
        if nothing := next((each.why for each in (self, other) if not each.due and each.why), ""):
            return nothing
        if first != second:
            return f"only {min(first, second)} of {max(first, second)} rounds count for both"
        if first < MIN_PAIRS:
            return TOO_FEW
        values = [*self.due, *self.sent, *other.due, *other.sent]
        unequal = list(self.due) != list(other.due) or list(self.sent) != list(other.sent)
        return "it was zero in some rounds" if unequal and min(values) <= 0 and not self.shares else ""


def _enough(found: MeasuredChange, made: int) -> int:
    """Return about how many rounds would tell, as an interval is narrower by the root of their number; 0 for too many.

    It must leave zero out, or lie within what does not matter, whichever takes fewer rounds.
    """
    scale, matters = (float, MORE_ERRORS) if found.shares else (math.log1p, math.log1p(MATTERS))
    times = 0.0
    for each in found.changes:
        low, high = scale(each.low), scale(each.high)
        mean, half = abs(low + high) / 2, (high - low) / 2
        times = max(times, (half / max(mean, matters - mean)) ** 2)
    return math.ceil(made * max(times, 1.0) * SPARE) if times <= MOST_TIMES else 0

"""Two reports side by side: is the second really worse?

One metric decides, chosen before looking (p99 by default): of four metrics looked at with 5 % each, one in six equal
pairs would differ "really". The others are shown, and decide nothing.
"""

from dataclasses import dataclass
from typing import Any

from hotplate.bench.errors import BenchMisused
from hotplate.bench.measured import AHEAD, FASTER, MIN_PAIRS, MORE_ERRORS, TIMES, Interval, MeasuredChange, change
from hotplate.bench.report.report import ERRORS, METRICS, RATE, Report, Series


@dataclass(frozen=True, slots=True)
class Change:
    """The relative change of one metric from the first to the second report, over paired rounds."""

    metric: str
    before: float
    after: float
    interval: Interval
    """From when requests were due."""

    finding: MeasuredChange
    """By both bounds."""

    @property
    def real(self) -> bool:
        """Whether both bounds leave zero out, on the same side."""
        return self.finding.real and not self.finding.because

    @property
    def worse(self) -> bool:
        """Whether it is real and for the worse: a longer latency, a lower rate."""
        return self.real and (self.interval.mean < 0 if self.metric == RATE else self.interval.mean > 0)

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return self.finding.sentence("A", "B", AHEAD if self.metric == RATE else FASTER)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, `change` being the mean."""
        return {
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "change": self.interval.mean,
            "low": self.interval.low,
            "high": self.interval.high,
            "sent": self.finding.changes[-1]._asdict() if self.finding.changes else None,
            "real": self.real,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a comparison; `decides` is the metric that was chosen before it.

    `pairs` is the number of pairs of rounds that were compared. `left_out` is the number of those that were not,
    because one of their rounds was invalid.
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
        """The verdict in one sentence."""
        found = self.deciding
        if self.errors[1] - self.errors[0] > MORE_ERRORS:
            return f"a regression: errors went from {self.errors[0]:.2%} to {self.errors[1]:.2%}"
        if not found.real:
            return found.verdict
        change = "a regression" if found.worse else "an improvement"
        return f"{change}: {found.metric} changed by {format_change(found.interval.mean)} ({found.finding.range})"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "regression": self.regression,
            "sentence": self.sentence,
            "pairs": self.pairs,
            "left_out": self.left_out,
            "decides": self.decides,
            "errors": list(self.errors),
            "changes": [each.to_json() for each in self.changes],
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
    whole = [pair for pair in zip(before.rounds, after.rounds, strict=True) if all(each.valid for each in pair)]
    pairs = len(whole)
    if pairs < MIN_PAIRS:
        reasons = [*before.invalid_reasons, *after.invalid_reasons]
        because = f" ({made - pairs} were left out: {reasons[0]})" if reasons else ""
        raise BenchMisused(f"{pairs} valid pairs of rounds{because} say nothing of chance; --repeat 7, say")
    before = Series(before.name, tuple(first for first, _ in whole))
    after = Series(after.name, tuple(second for _, second in whole))
    changes = [found for metric in METRICS if (found := _change_of(before, after, metric)) is not None]
    if decides not in {each.metric for each in changes}:
        raise BenchMisused(f"a round has no {decides}: nothing was answered in it")
    errors = [sum(each.values(ERRORS)) / pairs for each in (before, after)]
    return Verdict(decides, tuple(changes), (errors[0], errors[1]), pairs, made - pairs)


def _change_of(before: Series, after: Series, metric: str) -> Change | None:
    values = before.values(metric), after.values(metric)
    found = change(*values) if min(map(min, values)) > 0 else None
    if found is None:
        return None
    first, second = (sum(each) / len(each) for each in values)
    return Change(metric, first, second, found, before.measured(metric).compared_with(after.measured(metric)))


def sole_series(name: str, report: Report) -> Series:
    """Return the one series of a report; BenchMisused if it has none, has several, or was stopped."""
    if len(report.series) != 1 or not report.series[0].rounds:
        raise BenchMisused(f"{name} cannot be compared: it holds no rounds of one subject")
    if report.interrupted:
        raise BenchMisused(f"{name} cannot be compared: it was stopped before its end")
    return report.series[0]


def format_change(mean: float) -> str:
    """Write a relative change; as a factor if it is more than ten times."""
    if 1 / TIMES - 1 < mean < TIMES - 1:
        return f"{mean:+.1%}"
    return f"{TIMES} x or more" if mean > 0 else f"to 1/{TIMES} or less"

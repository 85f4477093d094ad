"""Two subjects side by side: is the difference real, does it matter, or can nobody tell, and why not?

A latency is known between two bounds: from when its request was due, which holds all that the generator was late, and
from when it was sent. What holds by both is real. Rounds are compared in pairs, and a verdict is right in 95 of 100
such measurements. Of two reports one metric decides, chosen before looking (p99 by default): of four metrics looked at
with 5 % each, one in six equal pairs would differ "really". The others are shown, and decide nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bench.errors import BenchMisused
from bench.loadgen.histogram import ENOUGH_SAMPLES
from bench.loadgen.result import STOLEN
from bench.report.intervals import Difference, Interval, change, interval
from bench.report.report import ERRORS, METRICS, RATE, Report, Series

# Pairs of rounds that a comparison needs.
MIN_PAIRS = 3

# So much more of all requests without a good response is a regression, whatever became of the others' latencies.
MORE_ERRORS = 0.001

NO_DIFFERENCE, CANNOT_TELL = "no difference that matters", "cannot tell, because"

UNCHANGED = Interval(0.0, 0.0, 0.0)


class Words(NamedTuple):
    """What the better of two is called, and how it is said that one has more of something."""

    better: str
    takes: str
    more: str
    times: str
    less_is_better: bool = True


FASTER = Words("faster", "takes", "longer", "times as long")
CHEAPER = Words("cheaper", "takes", "more", "times as much")
AHEAD = Words("ahead", "does", "more", "times as much", less_is_better=False)


class Disturbance(NamedTuple):
    """What kept rounds from saying more: how late the generator was and why, and how much CPU the host took away."""

    late: str = ""
    stolen: float = 0.0


UNDISTURBED = Disturbance()


@dataclass(frozen=True, slots=True)
class Finding:
    """What pairs of rounds say of one figure: by how much the second differs, or why nobody can tell."""

    difference: Difference | None
    because: str
    """Empty where the difference is real, or none that matters."""

    def sentence(self, first: str, second: str, words: Words) -> str:
        """Write the verdict on two subjects."""
        found = self.difference
        if found is None or self.because:
            return f"{CANNOT_TELL} {self.because}"
        if not found.real:
            return f"{NO_DIFFERENCE} ({_range(found)})"
        less, more, low, high = first, second, found.low, found.high
        if found.high < 0:
            less, more, low, high = second, first, 1 / (1 + found.high) - 1, 1 / (1 + found.low) - 1
        by = f"{low:.0%} to {high:.0%} {words.more}" if low < 1 else f"{1 + low:.3g} to {1 + high:.3g} {words.times}"
        return f"{less if words.less_is_better else more} is {words.better}: {more} {words.takes} {by}"


def judge(
    due: tuple[Sequence[float], Sequence[float]],
    sent: tuple[Sequence[float], Sequence[float]] | None = None,
    disturbance: Disturbance = UNDISTURBED,
) -> Finding:
    """Compare two subjects by their values in paired rounds, from when due and from when sent where these differ."""
    bounds = [due, sent or due]
    if because := _not_comparable(bounds):
        return Finding(None, because)
    if all(list(first) == list(second) for first, second in bounds):
        return Finding(Difference(UNCHANGED, UNCHANGED), "")
    if min(min(each) for pair in bounds for each in pair) <= 0:
        return Finding(None, "it was zero in some rounds")
    changes = [change(*pair) or UNCHANGED for pair in bounds]
    found = Difference(*changes)
    if found.real or found.negligible:
        return Finding(found, "")
    alone = [Difference(each, each) for each in changes]
    if any(each.real or each.negligible for each in alone):
        return Finding(found, f"{disturbance.late or 'the generator was late'} ({_range(found)})")
    stolen = f", while {disturbance.stolen:.1%} of the CPU was stolen by the host"
    return Finding(found, f"rounds differ by more ({_range(found)}){stolen if disturbance.stolen >= STOLEN else ''}")


def _not_comparable(bounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> str:
    (first, second), *_ = bounds
    if len(first) != len(second):
        return f"only {min(len(first), len(second))} of {max(len(first), len(second))} rounds count for both"
    if len(first) < MIN_PAIRS:
        return f"{MIN_PAIRS} rounds or more show what is chance, and there are {len(first)}"
    return ""


def judge_latency(first: Series, second: Series, metric: str) -> Finding:
    """Compare a percentile of two series, whose rounds were made side by side."""
    due, sent = ((first.values(metric, sent=sent), second.values(metric, sent=sent)) for sent in (False, True))
    found = judge(due, sent, disturbance_of(first, second))
    if len(due[0]) >= MIN_PAIRS and not all(each.summary[metric]["enough_samples"] for each in (first, second)):
        return Finding(None, f"fewer than {ENOUGH_SAMPLES} answers lie beyond it")
    return found


def judge_shares(names: tuple[str, str], first: Sequence[float], second: Sequence[float]) -> str:
    """Write the verdict on shares of requests without a good answer, which may be zero: by their plain differences."""
    if because := _not_comparable([(first, second)]):
        return f"{CANNOT_TELL} {because}"
    found = interval([two - one for one, two in zip(first, second, strict=True)]) or UNCHANGED
    if max(-found.low, found.high) <= MORE_ERRORS:
        return NO_DIFFERENCE
    if not found.real:
        return f"{CANNOT_TELL} rounds differ by more ({found.low:+.2%} to {found.high:+.2%})"
    better, low, high = (names[0], found.low, found.high) if found.low > 0 else (names[1], -found.high, -found.low)
    return f"{better} has fewer, by {low:.2%} to {high:.2%} of all requests"


def disturbance_of(*measured: Series) -> Disturbance:
    """Find the worst that disturbed any of the rounds."""
    rounds = [each.facts for series in measured for each in series.rounds]
    late = max((each for each in rounds if each.get("disturbance")), key=lambda each: each["lag_us"]["p99"], default={})
    return Disturbance(late.get("disturbance", ""), max((each.get("stolen") or 0.0 for each in rounds), default=0.0))


def rate_unknown(*measured: Series) -> str:
    """Return why the rates of closed loops are only lower bounds; empty where they are what the servers answered."""
    return next((each.facts["waiting"] for series in measured for each in series.rounds if each.at_least), "")


@dataclass(frozen=True, slots=True)
class Change:
    """The relative change of one metric from the first to the second report, over paired rounds."""

    metric: str
    before: float
    after: float
    interval: Interval
    """From when requests were due."""

    finding: Finding
    """By both bounds."""

    @property
    def real(self) -> bool:
        """Whether both bounds leave zero out, on the same side."""
        return self.finding.difference is not None and self.finding.difference.real

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
        values = {"metric": self.metric, "before": self.before, "after": self.after}
        found = self.finding.difference
        return values | {
            "change": self.interval.mean,
            "low": self.interval.low,
            "high": self.interval.high,
            "sent": found and asdict(found.sent),
            "real": self.real,
            "verdict": self.verdict,
        }


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
        """The verdict in one sentence."""
        found = self.deciding
        if self.errors[1] - self.errors[0] > MORE_ERRORS:
            return f"a regression: errors went from {self.errors[0]:.2%} to {self.errors[1]:.2%}"
        amount = f"{found.metric} changed by {_percent(found.interval)}"
        if found.real:
            return f"{'a regression' if found.worse else 'an improvement'}: {amount}"
        return f"{found.verdict}; {amount}"

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
    first, second = before.values(metric), after.values(metric)
    found = change(first, second) if min(*first, *second) > 0 else None
    if found is None:
        return None
    sent = before.values(metric, sent=True), after.values(metric, sent=True)
    waited = rate_unknown(before, after) if metric == RATE else ""
    finding = Finding(None, waited) if waited else judge((first, second), sent, disturbance_of(before, after))
    return Change(metric, sum(first) / len(first), sum(second) / len(second), found, finding)


def sole_series(name: str, report: Report) -> Series:
    """Return the one series of a report; BenchMisused where it has none, has several, or was stopped."""
    if len(report.series) != 1 or not report.series[0].rounds:
        raise BenchMisused(f"{name} cannot be compared: it holds no rounds of one subject")
    if report.interrupted:
        raise BenchMisused(f"{name} cannot be compared: it was stopped before its end")
    return report.series[0]


def _range(found: Difference) -> str:
    return f"{found.low:+.0%} to {found.high:+.0%}"


def _percent(found: Interval) -> str:
    return f"{found.mean:+.1%} (95 % interval {found.low:+.1%} to {found.high:+.1%})"

"""Comparison of two: whether the lists of one are better than those of the other, or chance may be all of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from offline.errors import DataError
from offline.evaluate.intervals import Interval, bootstrap
from offline.evaluate.metrics import RANKING, UserMetrics

# What decides which of the two is better.
DECISIVE = "ndcg"


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of both; *interval* holds the difference with 95 %, None where that cannot be said."""

    metric: str
    a: float
    b: float
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """Say whether the second is better or worse, or that the data do not decide."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "cannot tell"
        return "better" if self.interval[0] > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    Two held against each other, metric by metric.

    *paired* where they were measured on the very same users, each of whom was compared with itself; else the intervals
    are those that two separate ones leave open, and wider.
    """

    a: str
    b: str
    k: int
    users: int
    paired: bool
    changes: tuple[Change, ...]

    @property
    def verdict(self) -> str:
        """Say what the metric says that decides."""
        return self._decisive.verdict

    @property
    def sentence(self) -> str:
        """Say which is better, and by how much, or that the data do not decide."""
        change = self._decisive
        difference = f"nDCG@{self.k} {change.b - change.a:+.4f}"
        if change.interval is not None:
            difference += f" (95 %: {change.interval[0]:+.4f} to {change.interval[1]:+.4f})"
        if change.verdict == "cannot tell":
            return f"cannot tell whether {self.b} is better than {self.a}: {difference}"
        return f"{self.b} is {change.verdict} than {self.a}: {difference}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        changes = [asdict(change) | {"verdict": change.verdict} for change in self.changes]
        return {"sentence": self.sentence, "verdict": self.verdict, **asdict(self), "changes": changes}

    @property
    def _decisive(self) -> Change:
        return next(change for change in self.changes if change.metric == DECISIVE)


def compare_users(names: tuple[str, str], a: UserMetrics, b: UserMetrics) -> Comparison:
    """Compare the metrics of the same users, each with itself, so that what both have in common cancels out."""
    intervals = bootstrap({name: b.values[name] - a.values[name] for name in RANKING})
    means = asdict(a.mean()), asdict(b.mean())
    changes = tuple(Change(name, means[0][name], means[1][name], intervals.get(name)) for name in RANKING)
    return Comparison(*names, a.k, len(a.users), paired=True, changes=changes)


def compare_records(names: tuple[str, str], a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """
    Compare the evaluations in what two model folders say of themselves; the users of each are not known any more.

    Raises DataError where one has none, or they are of different tests, whose metrics cannot be compared.
    """
    for name, each in zip(names, (a, b), strict=True):
        if "model" not in (each["metrics"] or {}):
            raise DataError(f"The model {name} was trained without an evaluation; give --truth to hold both against.")
    before, after = a["metrics"], b["metrics"]
    tests = [
        {"data": each["data"].get("fingerprint")} | {what: each["metrics"][what] for what in ("split", "k")}
        for each in (a, b)
    ]
    for what, one in tests[0].items():
        if one != tests[1][what]:
            raise DataError(
                f"The two models were not evaluated on the same test ({what}: {one} and {tests[1][what]}); give "
                "--truth to hold both against."
            )
    changes = tuple(
        Change(name, before["model"][name], after["model"][name], _of_separate(name, before, after)) for name in RANKING
    )
    return Comparison(*names, after["k"], after["model"]["users"], paired=False, changes=changes)


def _of_separate(metric: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Interval | None:
    """Return all differences that two intervals leave open."""
    first, second = (each.get("intervals", {}).get(metric) for each in (a, b))
    return None if first is None or second is None else (second[0] - first[1], second[1] - first[0])

"""Comparison of two on the same users: whether the lists of one are better, or chance may be all of it."""

from dataclasses import asdict, dataclass
from typing import Any

from offline.evaluate.metrics import RANKING, Interval, UserMetrics, interval

# What decides which of the two is better.
DECISIVE = "ndcg"


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of both; *interval* is of the difference, user by user, and None if it cannot be said."""

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
    """Two held against each other, metric by metric, at lists of *k*: each user's two lists are compared."""

    a: str
    b: str
    k: int
    users: int
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
    means = asdict(a.metrics), asdict(b.metrics)
    changes = tuple(
        Change(name, means[0][name], means[1][name], interval(b.values[name] - a.values[name])) for name in RANKING
    )
    return Comparison(*names, a.k, len(a.users), changes)

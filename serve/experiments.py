"""The arms of an experiment, compared by their users' events once the horizon is reached.

The arm follows from the user's id, so that a purchase need not name a release. Users are the unit, because events of
one user are not independent (Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics").
"""

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import IMPRESSION
from hotplate.stores.catalogue import Arm, Experiment
from hotplate.stores.encoding import USER
from hotplate.stores.erasure import NOBODY, ErasedUsers

# Quantiles of the normal distribution: of a 95 % interval, of a power of 80 %, and of p = 0.001 for the numbers of
# users (Fabijan et al. 2019, "Diagnosing Sample Ratio Mismatch").
Z_INTERVAL, Z_POWER, Z_RATIO = 1.959964, 0.841621, 3.290527

# The verdicts on a goal, as sentences; without an arm or `none`, it was not judged.
VERDICTS = {
    "A": "arm A has more",
    "B": "arm B has more",
    "none": "no difference was found",
    "early": "no verdict before the horizon",
    "stopped": "no verdict, as it was ended before the horizon",
    "wrong ratio": "no verdict, as the arms do not have their shares of the users (p < 0.001); see what loses events",
}


class Sample(NamedTuple):
    """The users of an arm, their mean value and its variance between users."""

    users: int
    mean: float
    variance: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A goal by arm: events of a type per user, or their value; with the verdict, or without one, the interval."""

    goal: str
    a: Sample
    b: Sample
    interval: tuple[float, float] | None
    users_needed: tuple[int, int] | None


def welch_interval(a: Sample, b: Sample) -> tuple[float, float]:
    """Return the 95 % interval of the difference of means, B minus A.

    Welch 1947, with Student's quantile by Abramowitz and Stegun 26.7.5.
    """
    of_a, of_b = (each.variance / max(1, each.users) for each in (a, b))
    spread = of_a**2 / max(1, a.users - 1) + of_b**2 / max(1, b.users - 1)
    z, inverse = Z_INTERVAL, spread / (of_a + of_b) ** 2 if spread else 0.0  # 1 / degrees of freedom
    quantile = z + (z**3 + z) / 4 * inverse + (5 * z**5 + 16 * z**3 + 3 * z) / 96 * inverse**2
    difference, half = b.mean - a.mean, quantile * sqrt(of_a + of_b)
    return difference - half, difference + half


def users_needed(a: Sample, b: Sample, share: float, min_effect: float) -> tuple[int, int] | None:
    """Return the users of each arm that find a relative change of A's mean in 80 % of experiments; *share* is B's."""
    if not a.mean:
        return None
    spread = a.variance / (1 - share) + b.variance / share
    users = spread * ((Z_INTERVAL + Z_POWER) / (min_effect * a.mean)) ** 2
    return round(users * (1 - share)) + 1, round(users * share) + 1


class ArmEvents:
    """Sums an experiment's events by user, of users with an impression; about 200 bytes per user and goal."""

    def __init__(self, experiment: Experiment, now: float, erased: ErasedUsers = NOBODY) -> None:
        """*now* is the store's time."""
        self.experiment, self._now, self._erased = experiment, now, erased
        self._arms = dict[str, Arm]()
        self._sums = defaultdict[str, defaultdict[str, float]](lambda: defaultdict(float))

    def add(self, kind: str, user: str, time: float, value: float | None) -> None:
        """Count an event of this type between the start and the horizon."""
        if not self.experiment.started_at <= time < self.experiment.ends_at:
            return
        if kind != IMPRESSION:
            self._sums[kind][user] += 1
            if value is not None:
                self._sums[f"{kind}:value"][user] += value
        elif user not in self._arms and not self._erased.covers(USER + user):
            self._arms[user] = self.experiment.arm_of(user)

    def compare(self, goal: str, min_effect: float) -> tuple[str, list[Comparison]]:
        """Compare the arms by all goals, and judge one; ServiceMisused if it has no events."""
        if goal not in self._sums:
            known = ", ".join(sorted(self._sums)) or "nothing so far"
            raise ServiceMisused(f"the experiment has no events for --goal {goal}; it has {known}")
        verdict, share = self._judge(goal), self.experiment.percent / 100
        found = list[Comparison]()
        for name in sorted(self._sums):
            a, b = self._sample("A", name), self._sample("B", name)
            interval = welch_interval(a, b) if verdict in ("A", "B", "none") else None
            found.append(Comparison(name, a, b, interval, users_needed(a, b, share, min_effect)))
        return verdict, found

    def _sample(self, arm: Arm, goal: str) -> Sample:
        values = [value for user, value in self._sums[goal].items() if self._arms.get(user) == arm]
        users = sum(each == arm for each in self._arms.values())
        mean = sum(values) / max(1, users)
        squares = sum((value - mean) ** 2 for value in values) + (users - len(values)) * mean**2
        return Sample(users, mean, squares / max(1, users - 1))

    def _judge(self, goal: str) -> str:
        experiment, a, b = self.experiment, self._sample("A", goal), self._sample("B", goal)
        if experiment.ended_at is not None and experiment.ended_at < experiment.ends_at:
            return "stopped"
        if self._now < experiment.ends_at:
            return "early"
        share, users = experiment.percent / 100, a.users + b.users
        if abs(b.users - share * users) > Z_RATIO * sqrt(users * share * (1 - share)):
            return "wrong ratio"
        low, high = welch_interval(a, b)
        return "B" if low > 0 else "A" if high < 0 else "none"

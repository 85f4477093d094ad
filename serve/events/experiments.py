"""The arms of an experiment, compared by their users' events once the horizon is reached.

Arm A are the users of the live release, arm B the others; the horizon is the planned end. The arm follows from the
user's id, so that a purchase need not name a release. Users are the unit, because events of one user are not
independent (Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics").
"""

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt

from hotplate.base.intervals import Interval, Sample, Z, difference_interval
from hotplate.serve.api.schemas import IMPRESSION
from hotplate.stores.catalogue import Arm, Experiment
from hotplate.stores.encoding import USER
from hotplate.stores.erasure import NOBODY, ErasedUsers

# Quantiles of the normal distribution: of a power of 80 %, and of p = 0.001 for the numbers of users (Fabijan et al.
# 2019, "Diagnosing Sample Ratio Mismatch").
Z_POWER = 0.841621
Z_RATIO = 3.290527

LEAST_USERS = 30  # of each arm, for a mean that is nearly normal

# Beyond it, more than 7 % of experiments without an effect had a winner, in simulations.
MAX_SKEWNESS = 0.2


def skewness(a: Sample, b: Sample) -> float:
    """Return the skewness of the difference of means, B minus A, which is small if both have as many users.

    The third central moment of the values is estimated from the users of both.
    """
    third_moment = (a.third * a.size + b.third * b.size) / (a.size + b.size) * (b.size**-2 - a.size**-2)
    variance = a.variance / a.size + b.variance / b.size
    return third_moment / variance**1.5 if variance else 0.0


def users_needed(a: Sample, b: Sample, share: float, min_effect: float) -> tuple[int, int] | None:
    """Return the numbers of users in A and B with which 80 % of experiments detect a relative change of A's mean.

    *share* is the share of users in B, *min_effect* the change, as 0.05 for 5 %. The samples *a* and *b* have the
    variances. None if A's mean is 0.
    """
    if not a.mean:
        return None
    spread = a.variance / (1 - share) + b.variance / share
    users = spread * ((Z + Z_POWER) / (min_effect * a.mean)) ** 2
    return round(users * (1 - share)) + 1, round(users * share) + 1


@dataclass(frozen=True, slots=True)
class ArmReport:
    """Users, means per user, and users that a decision needs, by arm A and B; the interval needs a verdict."""

    experiment: Experiment
    goal: str
    users: tuple[int, int]
    means: tuple[float, float]
    interval: Interval | None
    users_needed: tuple[int, int] | None
    verdict: str


class ArmEvents:
    """Sums by user the events of a type, or their value (`buy:value`); about 300 bytes per user."""

    def __init__(self, experiment: Experiment, goal: str, now: float, erased: ErasedUsers = NOBODY) -> None:
        """*now* is the store's time."""
        self._experiment = experiment
        self._goal = goal
        self._now = now
        self._erased = erased
        self._kind = goal.removesuffix(":value")
        self._is_value = goal.endswith(":value")
        self._arms = dict[str, Arm]()
        """Of users with an impression."""

        self._sums = defaultdict[str, float](float)

    def add(self, kind: str, user: str, time: float, value: float | None) -> None:
        """Count an event of a user for an experiment, if its Unix time is between the start and the planned end.

        *kind* is the type of the event. Events of the goal's type (`self._kind`) add 1 to the user's sum or, if the
        goal is a value, their *value*. The first impression assigns the user to an arm, one of the variants A and B;
        only users with an arm are reported. Erased users have none.
        """
        if not self._experiment.started_at <= time < self._experiment.ends_at:
            return

        if kind == self._kind:
            self._sums[user] += (value or 0.0) if self._is_value else 1.0
        if kind == IMPRESSION and user not in self._arms and not self._erased.covers(USER + user):
            self._arms[user] = self._experiment.arm_of(user)

    def report(self, min_effect: float) -> ArmReport:
        """Compare the means of the goal per user in both arms, the variants A and B of the experiment.

        The report has the interval of the difference of means, and a verdict as text. If there can be no verdict, the
        interval is None, and the text says why. *min_effect* is the smallest difference, as a share of A's mean, that
        the experiment should detect: the report has the number of users that this needs.
        """
        a = self._sample_of("A")
        b = self._sample_of("B")

        verdict = self._reason_for_no_verdict(a, b)
        interval: Interval | None = None
        if verdict is None:
            interval = difference_interval(a, b)
            verdict = _verdict_of(interval)

        return ArmReport(
            experiment=self._experiment,
            goal=self._goal,
            users=(a.size, b.size),
            means=(a.mean, b.mean),
            interval=interval,
            users_needed=users_needed(a, b, self._experiment.percent / 100, min_effect),
            verdict=verdict,
        )

    def _sample_of(self, arm: Arm) -> Sample:
        """Return the sums of the arm's users with an impression, 0 for those without an event."""
        return Sample.of([self._sums.get(user, 0.0) for user, user_arm in self._arms.items() if user_arm == arm])

    def _reason_for_no_verdict(self, a: Sample, b: Sample) -> str | None:
        """Return why the arms, the variants A and B of the experiment, cannot be compared; None if they can.

        *a* and *b* are their users: number, mean and variance of the goal. The horizon is the planned end, before which
        nothing is compared, because looking often would find differences by chance.
        """
        ended_at = self._experiment.ended_at
        ends_at = self._experiment.ends_at
        if ended_at is not None and ended_at < ends_at:
            return "no verdict: ended before the horizon"
        if self._now < ends_at:
            return "no verdict: before the horizon"
        if not (a.mean or b.mean):  # also if events lack a value, or name other users than impressions do
            return f"no verdict: no {self._goal} of users with an impression"

        # The number of users in B is binomial: another one than the share suggests means that events are lost.
        share = self._experiment.percent / 100
        users = a.size + b.size
        if abs(b.size - share * users) > Z_RATIO * sqrt(users * share * (1 - share)):
            return "no verdict: one arm loses users (p < 0.001)"

        # The interval assumes means that are nearly normal.
        if min(a.size, b.size) < LEAST_USERS:
            return f"no verdict: fewer than {LEAST_USERS} users of an arm"
        return "no verdict: too few users for such values" if abs(skewness(a, b)) > MAX_SKEWNESS else None


def _verdict_of(interval: Interval) -> str:
    """Return which arm has more, by the interval of the difference of means, B minus A."""
    low, high = interval
    if low > 0:
        return "B has more"
    if high < 0:
        return "A has more"
    return "no difference"

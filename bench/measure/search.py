"""Trials at loads, the search for the highest rate inside an objective, and for the best size of batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hotplate.bench.loadgen.result import Result
from hotplate.bench.verdict import Finding, Gravity

PRECISION = 0.025  # relative gap between good and bad rates
FLOOR = 0.01  # lowest rate, relative to the first
NEAR = 0.9  # of the most users/s, for the recommended batch
# Attempts at a trial of which the result is broken, or unclear because of a disturbed load generator.
TRIES = 3
# Broken attempts that make a rate an outside one: the first may be a pause of the machine.
BROKEN = 2
# Runs of a usual search, and the most that it may take.
USUAL_RUNS = 16
MOST_RUNS = 24
# First step from a rate that its rounds refute to a lower one, as a share; steps double.
STEP_DOWN = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run at one load.

    offered   the load: requests/s, users in a batch, or a share of a level's capacity
    findings  bounds that the service did not keep, and reasons to blame the load generator instead
    """

    offered: float
    result: Result
    findings: Sequence[Finding] = ()

    @property
    def is_inside(self) -> bool:
        """Whether the run is valid and inside all bounds."""
        return not self.findings

    @property
    def broken(self) -> list[str]:
        """The bounds that the service did not keep."""
        return [finding.text for finding in self.findings if finding.gravity is not Gravity.UNMEASURED]

    @property
    def doubts(self) -> list[str]:
        """The reasons to blame the load generator."""
        return [finding.text for finding in self.findings if finding.gravity is Gravity.UNMEASURED]

    @property
    def is_unclear(self) -> bool:
        """Whether only the generator is to blame."""
        return not self.is_inside and not self.broken


def search(attempt: Callable[[float], Trial], start: float) -> Iterator[Trial]:
    """Search for the highest rate (requests/s) inside the objective; yield all trials, at most MOST_RUNS.

    The rate doubles from *start* until a rate is outside, then the interval between inside and outside is halved
    until its ends differ by less than PRECISION, as a share. *attempt* makes a trial at a rate. A rate is inside if
    most of its trials are; a broken or an unclear one is repeated.
    """
    trials = list[Trial]()
    low = 0.0  # the highest rate inside
    high = math.inf  # the lowest rate outside
    rate = start
    # Without any rate inside, it ends far below the start.
    while high / max(low, start * FLOOR) > 1 + PRECISION and len(trials) < MOST_RUNS:
        at_rate = list[Trial]()
        while not at_rate or (_is_open(at_rate) and len(trials) < MOST_RUNS):
            trial = attempt(rate)
            yield trial
            at_rate.append(trial)
            trials.append(trial)

        if _is_inside(at_rate):
            low = rate
        else:
            high = rate
        rate = low * 2 if math.isinf(high) else (low + high) / 2


def _is_open(trials: Sequence[Trial]) -> bool:
    """Return whether another trial at the rate of *trials* may decide it."""
    broken = sum(bool(trial.broken) for trial in trials)
    return not _is_inside(trials) and broken < BROKEN and len(trials) < TRIES


def _is_inside(trials: Sequence[Trial]) -> bool:
    """Return whether more of the clear trials at a rate are inside than broken."""
    inside = sum(trial.is_inside for trial in trials)
    return inside > sum(bool(trial.broken) for trial in trials)


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Return a trial at the highest rate inside the objective, if any."""
    inside = [group for group in _by_rate(trials).values() if _is_inside(group)]
    best = max(inside, key=lambda group: group[0].offered, default=())
    return next((trial for trial in best if trial.is_inside), None)


def first_outside(trials: Sequence[Trial], above: float = 0.0) -> Trial | None:
    """Return a trial at the lowest outside rate *above* another one; None without one.

    It is a broken one, and unclear only if all are.
    """
    outside = [group for rate, group in _by_rate(trials).items() if rate > above and not _is_inside(group)]
    lowest = min(outside, key=lambda group: group[0].offered, default=())
    return max(lowest, key=lambda trial: bool(trial.broken), default=None)


def _by_rate(trials: Sequence[Trial]) -> dict[float, list[Trial]]:
    """Return the trials at each rate."""
    groups = dict[float, list[Trial]]()
    for trial in trials:
        groups.setdefault(trial.offered, []).append(trial)
    return groups


def users_per_s(trial: Trial) -> float:
    """Return the users/s of a trial of batches."""
    return trial.offered * trial.result.ok_rate


def knee(trials: Sequence[Trial]) -> Trial | None:
    """Return the smallest good batch with 90 % of the most users/s; None if no batch is good."""
    good = [trial for trial in trials if trial.is_inside]
    most = max(map(users_per_s, good), default=0.0)
    enough = (trial for trial in good if users_per_s(trial) >= NEAR * most)
    return min(enough, key=lambda trial: trial.offered, default=None)

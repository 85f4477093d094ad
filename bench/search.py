"""The search for the highest rate inside an objective, and for the best size of batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from hotplate.bench.trials import TRIES, Trial

PRECISION = 0.05  # relative gap between good and bad rates
FLOOR = 0.01  # lowest rate, relative to the first
NEAR = 0.9  # of the most users/s, for the recommended batch


def search(attempt: Callable[[float], Trial], start: float, precision: float = PRECISION) -> Iterator[Trial]:
    """Search for the highest rate (requests/s) inside the objective; yield all trials.

    The rate doubles from *start* until a trial is outside, then the interval between inside and outside is halved
    until its ends differ by less than *precision*, as a share. *attempt* makes a trial at a rate. If it is unclear,
    as the load generator was late, it is repeated twice at most, then counts as outside. Ctrl-C ends the search.
    """
    low = 0.0  # the highest rate inside
    high = math.inf  # the lowest rate outside
    rate = start
    # Without any rate inside, it ends far below the start.
    while high / max(low, start * FLOOR) > 1 + precision:
        for _ in range(TRIES):
            trial = attempt(rate)
            yield trial
            if trial.is_stopped:
                return
            if not trial.is_unclear:
                break

        if trial.is_inside:
            low = rate
        else:
            high = rate
        rate = low * 2 if math.isinf(high) else (low + high) / 2


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial at the highest rate inside the objective, if any."""
    inside = (trial for trial in _last_trials(trials) if trial.is_inside)
    return max(inside, key=lambda trial: trial.offered, default=None)


def first_outside(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial at the lowest outside rate above `highest`; None if the search was stopped before it."""
    best = highest(trials)
    above = (
        trial
        for trial in _last_trials(trials)
        if not trial.is_inside and (best is None or trial.offered > best.offered)
    )
    return min(above, key=lambda trial: trial.offered, default=None)


def _last_trials(trials: Sequence[Trial]) -> Iterable[Trial]:
    """Return the last complete trial at each rate; only unclear trials are repeated."""
    return {trial.offered: trial for trial in trials if not trial.is_stopped}.values()


def users_per_s(trial: Trial) -> float:
    """Return the users/s of a trial of batches."""
    return trial.offered * trial.result.ok_rate


def knee(trials: Sequence[Trial]) -> Trial | None:
    """Return the smallest good batch with 90 % of the most users/s; None if no batch is good."""
    good = [trial for trial in trials if trial.is_inside]
    most = max(map(users_per_s, good), default=0.0)
    enough = (trial for trial in good if users_per_s(trial) >= NEAR * most)
    return min(enough, key=lambda trial: trial.offered, default=None)

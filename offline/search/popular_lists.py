"""The choice of the popular list: of the half-life by which interactions count in it.

Users without interactions get this list. Popularity is also the simplest method, with which all others are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from hotplate.offline.evaluate.evaluation import popularity_of
from hotplate.offline.evaluate.metrics import unbeaten
from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.input.pairs import Mask, items_per_user
from hotplate.offline.search.trials import Trial, measure
from hotplate.offline.train.popularity import PopularityParams

ALL_TIME = PopularityParams()
HALF_LIVES = tuple(2.0**power for power in range(-3, 10))
# With fewer new users, all users choose.
_LEAST_NEW = 100


@dataclass(frozen=True, slots=True)
class PopularSearch:
    """Popular lists with each half-life, as everybody would be served them.

    trials     the first one counts all interactions alike
    is_new     whether a user has no items in train [users of a trial]
    is_newest  whether a user is of the newest split
    """

    trials: tuple[Trial, ...]
    is_new: Mask
    is_newest: Mask

    @property
    def for_new_users(self) -> PopularityParams:
        """The parameters of the popular list for users without interactions."""
        return _params_of(self._best_for_new)

    @property
    def _best_for_new(self) -> Trial:
        """The trial of the popular list for users without interactions.

        It is the best one for all users of the newest split, of those that the best one for new users does not lead by
        more than a 95 % interval.
        """
        able = list(self.trials)
        if np.count_nonzero(self.is_new) >= _LEAST_NEW:
            able = unbeaten({trial: trial.per_user[self.is_new] for trial in self.trials})
        return max(able, key=lambda trial: float(trial.per_user[self.is_newest].mean()))

    @property
    def baselines(self) -> tuple[PopularityParams, ...]:
        """Popularity of all time, and the best recent one for all users, if there are times."""
        recent = max(self.trials[1:], key=lambda trial: trial.ndcg, default=None)
        return (ALL_TIME,) if recent is None else (ALL_TIME, _params_of(recent))

    @property
    def as_engine(self) -> list[Trial]:
        """The trials of popularity as an engine: users without interactions get the list that is chosen for them."""
        for_new_users = self._best_for_new.per_user
        return [replace(trial, per_user=np.where(self.is_new, for_new_users, trial.per_user)) for trial in self.trials]


def search_popular(splits: Sequence[Parts], k: int, *, in_time: bool) -> PopularSearch:
    """Measure popular lists of *k* items on *splits*, with all half-lives if they are *in_time*."""
    cells = [ALL_TIME]
    if in_time:
        cells += [PopularityParams(half_life_days) for half_life_days in HALF_LIVES]

    is_new = np.concatenate([items_per_user(parts.seen)[parts.tested] == 0 for parts in splits])
    is_newest = np.arange(-len(is_new), 0) >= -len(splits[-1].tested)
    return PopularSearch(tuple(_try(params, splits, k) for params in cells), is_new, is_newest)


def _try(params: PopularityParams, splits: Sequence[Parts], k: int) -> Trial:
    start = perf_counter()
    popularity = [popularity_of(parts, params) for parts in splits]
    per_user, spread = measure(splits, popularity, popularity, k)
    return Trial(params, None, per_user, round(perf_counter() - start, 3), spread)


def _params_of(trial: Trial) -> PopularityParams:
    assert isinstance(trial.params, PopularityParams)  # noqa: S101 -- by construction
    return trial.params

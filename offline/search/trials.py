"""Trials of cells: each measures an engine with its parameters on the splits of a search.

A cell is fitted to the train part of each split, and its lists are measured by nDCG on the test part. Results may be
stored in a folder, for a search that is repeated.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hotplate.offline.errors import DataError, MemoryShortage, why_not_written
from hotplate.offline.evaluate.evaluation import fit_parts, popularity_of, recommend_all
from hotplate.offline.evaluate.metrics import (
    EQUAL_WITHIN_SE,
    NO_SPREAD,
    Spread,
    Values,
    leads_by,
    measure_users,
    standard_error,
)
from hotplate.offline.evaluate.records import TrialRecord
from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.input.history import History
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.search.budget import with_fewer_iterations
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    engine_of,
    estimate_fit_bytes,
    recency_of,
    with_recency,
    without_recency,
)
from hotplate.offline.train.popularity import PopularityParams
from hotplate.stores.verification import OnProgress

# Fits of the best ALS cell that are kept for recency.
_MOST_KEPT_BYTES = 200e6
# Share of the best nDCG that a more personal trial may lack, even if chance explains more.
_MOST_LOSS = 0.01
# Numbers before those of users in the file of a trial.
_STORED_FIRST = 1 + len(Spread._fields)


@dataclass(frozen=True, slots=True)
class Trial:
    """nDCG as served per user of one combination of parameters (a cell), 0 if the data cannot be fitted with it.

    *spread* is that of the lists of users with interactions, the mean over the splits.
    """

    params: Params
    iterations: int | None
    per_user: Values = field(compare=False, repr=False)
    seconds: float
    spread: Spread = NO_SPREAD

    @property
    def ndcg(self) -> float:
        """Mean over users."""
        return float(self.per_user.mean())

    @property
    def se(self) -> float:
        """Standard error of the mean."""
        return standard_error(self.per_user)

    def leads_by(self, other: "Trial") -> float:
        """Return the mean difference to *other* per user, in standard errors."""
        return leads_by(self.per_user, other.per_user)

    @property
    def record(self) -> TrialRecord:
        """The trial without figures by user."""
        return TrialRecord(
            engine=engine_of(self.params),
            params=asdict(self.params),
            iterations=self.iterations,
            ndcg=self.ndcg,
            se=self.se,
            seconds=self.seconds,
            shared_items=self.spread.shared_items,
            half_places=self.spread.half_places,
            effective_items=self.spread.effective_items,
        )


def count_stored(folder: Path) -> int:
    """Return the number of trials that searches have stored in *folder*, which may not exist."""
    return sum(1 for _ in folder.glob("*.npy"))


class Trials:
    """Runs trials of one search on *splits*, with lists of *k*; users without items get the list *popular*.

    They are stored in *folder*, if any, by the *key* of the data and settings; all of them are in `done`, in order.
    *on_trial* is called with the number of trials done and the expected total. Cells that lacked memory have
    no trial; `short_of_memory` has their errors, and a later search tries them again.
    """

    def __init__(
        self,
        splits: Sequence[Parts],
        k: int,
        popular: PopularityParams,
        *,
        folder: Path | None,
        key: str,
        on_trial: OnProgress,
    ) -> None:
        self._splits = splits
        self._popularity = [popularity_of(parts, popular) for parts in splits]
        self._k = k
        self._folder = folder
        self._key = key
        self._on_trial = on_trial
        self._fits = _Fits(splits)
        self.done: list[Trial] = []
        self.short_of_memory: dict[Params, str] = {}

    def run(self, cells: Sequence[Params], *, expected_later: int) -> list[Trial]:
        """Try *cells* and return their trials; *expected_later* trials are expected to follow."""
        first = len(self.done)
        untried = [params for params in cells if params not in self.short_of_memory]
        expected_total = first + len(untried) + expected_later
        for params in untried:
            try:
                self.done.append(self._stored_or_measured(params))
            except MemoryShortage as error:
                self.short_of_memory[params] = str(error)
                expected_total -= 1
            self._on_trial(len(self.done), expected_total)
        return self.done[first:]

    def _stored_or_measured(self, params: Params) -> Trial:
        """Return the trial of *params* that an earlier search has stored, or measure it, and store it; MemoryShortage.

        Without a folder, nothing is stored. A file is named by a digest of the data and settings (`_key`) and of the
        parameters, so it is never out of date. It holds an array: the seconds of the trial, its spread, and the
        nDCG of each user.
        """
        params_of_trial = with_fewer_iterations(params)
        iterations = params_of_trial.iterations if isinstance(params_of_trial, ALSParams) else None

        file = None
        if self._folder is not None:
            name = blake2b(f"{self._key} {params!r}".encode(), digest_size=16).hexdigest()
            file = self._folder / f"{name}.npy"
            with suppress(OSError, ValueError, EOFError, IndexError):  # missing or half-written
                stored = np.load(file, allow_pickle=False)
                seconds, *spread = stored[:_STORED_FIRST].tolist()
                return Trial(params, iterations, stored[_STORED_FIRST:], seconds, Spread(*spread))

        start = perf_counter()
        per_user, spread = self._measure(params_of_trial)
        trial = Trial(params, iterations, per_user, round(perf_counter() - start, 3), spread)

        if file is not None:
            _store_trial(file, trial)
        return trial

    def _measure(self, params: Params) -> tuple[Values, Spread]:
        """Return the nDCG of each tested user, one split after the other, and the mean spread of their lists.

        All are zeros if the data cannot be fitted. Raises MemoryShortage.
        """
        rankers = self._fits.rankers(params)
        values = list[Values]()
        spreads = list[Spread]()
        try:
            for parts, popularity in zip(self._splits, self._popularity, strict=True):
                # The ranker is released before the next fit.
                evaluated = recommend_all(next(rankers), parts, self._k, popularity)
                values.append(measure_users(evaluated.as_served, parts.test).values["ndcg"])
                spreads.append(Spread.of(evaluated.lists[parts.tested]))
        except MemoryShortage:
            raise
        except DataError:
            return np.zeros(sum(len(parts.tested) for parts in self._splits)), NO_SPREAD

        ndcg = np.concatenate(values)
        self._fits.keep_if_best(params, float(ndcg.mean()))
        return ndcg, Spread.mean(spreads)


class _Fitted(NamedTuple):
    """The rankers of *params*, one for each split."""

    params: Params
    rankers: list[Ranker]


class _Fits:
    """Fits cells to each split, and keeps rankers that trials of recency need again.

    These are the last ones ranked with recency and, until another engine is ranked with recency, those of the best ALS
    cell if they are small: to fit them again takes an eighth of the CPU of a large training.
    """

    def __init__(self, splits: Sequence[Parts]) -> None:
        self._splits = splits
        self._times = [parts.train_times for parts in splits]
        self._last: _Fitted | None = None
        self._best: _Fitted | None = None
        self._best_ndcg = -math.inf

    def rankers(self, params: Params) -> Iterator[Ranker]:
        """Yield a ranker (a fitted model) for each split, fitted with *params* to its train part.

        Recency multiplies the scores of a fitted model, so cells that differ in recency alone share a fit: it is kept
        from one of these cells to the next. Fits of ALS without recency are kept if they are small, because trials of
        recency need the best one again. All other fits are made one at a time, to save memory.
        """
        recency = recency_of(params)
        if recency is not None:
            fitted = self._kept_or_fitted(without_recency(params))
            for ranker, parts, times in zip(fitted, self._splits, self._times, strict=True):
                yield with_recency(ranker, recency.weights(parts.train, times))
            return

        if isinstance(params, ALSParams):
            fits_bytes = sum(estimate_fit_bytes(params, parts.train) for parts in self._splits)
            if fits_bytes <= _MOST_KEPT_BYTES:
                yield from self._kept_or_fitted(params)
                return

        for parts in self._splits:
            yield fit_parts(parts, params)

    def keep_if_best(self, params: Params, ndcg: float) -> None:
        """Keep the rankers of *params* if they are the best of ALS."""
        last = self._last
        if last is None or last.params != params:
            return
        if ndcg > self._best_ndcg:
            self._best = last
            self._best_ndcg = ndcg
        self._last = None

    def _kept_or_fitted(self, plain: Params) -> list[Ranker]:
        """Return the rankers of *plain*, parameters without recency: kept ones, or new ones, which are then kept."""
        rankers = self._kept_rankers(plain)
        if rankers is not None:
            return rankers

        # Rankers that are not needed any more are released before the next fit, to save memory.
        self._last = None
        if not isinstance(plain, ALSParams):
            self._best = None
        self._last = _Fitted(plain, [fit_parts(parts, plain) for parts in self._splits])
        return self._last.rankers

    def _kept_rankers(self, plain: Params) -> list[Ranker] | None:
        """Return the kept rankers of *plain*, or None; separate, so that no variable keeps others alive."""
        for fitted in (self._last, self._best):
            if fitted is not None and fitted.params == plain:
                return fitted.rankers
        return None


def _store_trial(path: Path, trial: Trial) -> None:
    """Write the seconds, the spread, and the nDCG of each user; raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.r_[trial.seconds, trial.spread, trial.per_user], allow_pickle=False)
    except OSError as error:
        raise DataError(f"The trials cannot be written to {path.parent}: {why_not_written(error)}.") from error


def sort_by_ndcg(trials: Sequence[Trial]) -> list[Trial]:
    """Return *trials*, the best first."""
    return sorted(trials, key=lambda trial: -trial.ndcg)


def is_as_good(trial: Trial, best: Trial) -> bool:
    """Return whether the nDCG of *trial* is within a standard error of the *best*, and at most 1 % below."""
    return best.leads_by(trial) <= EQUAL_WITHIN_SE and trial.ndcg >= (1 - _MOST_LOSS) * best.ndcg


def best_of_each_engine(trials: Sequence[Trial]) -> list[Trial]:
    """Return each engine's best trial, the best first."""
    best: dict[Engine, Trial] = {}
    for trial in sort_by_ndcg(trials):
        best.setdefault(engine_of(trial.params), trial)
    return list(best.values())


def digest_of_search(user_items: UserItems, history: History | None, *settings: object) -> str:
    """Return a hexadecimal digest of all that determines the results of a search, for the names of stored trials.

    This is the matrix *user_items*, its rows in *history*, *settings* (by repr) and the versions of libraries.
    """
    versions = [version(name) for name in ("hotplate", "implicit", "numpy", "scipy")]
    weighing = None if history is None else history.weighing
    digest = blake2b(repr((user_items.shape, settings, weighing, versions)).encode(), digest_size=16)

    rows = () if history is None else (history.pair_numbers, history.times, history.weights, history.ended)
    for array in (user_items.indptr, user_items.indices, user_items.data, *rows):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

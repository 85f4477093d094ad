"""Trials of cells: each measures an engine with its parameters on the splits of a search.

A cell is fitted to the train part of each split, and its lists are measured by nDCG on the test part. Results may be
stored in a folder, for a search that is repeated.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, TypeAlias

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
from hotplate.offline.train.blend import Blend, BlendParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    engine_of,
    estimate_fit_bytes,
    with_recency,
    without_recency,
)
from hotplate.offline.train.item_based import EASE, EASEParams
from hotplate.offline.train.popularity import Popularity, PopularityParams, Recency
from hotplate.offline.train.ranking import ScoresOfUsers
from hotplate.stores.verification import OnProgress

# Fits of an engine's best cell that are kept for other recencies.
_MOST_KEPT_BYTES = 200e6
# Share of the best nDCG that a more personal trial may lack, even if chance explains more.
_MOST_LOSS = 0.01
# Numbers before those of users in the file of a trial.
_STORED_FIRST = 1 + len(Spread._fields)
_Scoring: TypeAlias = Ranker | ScoresOfUsers


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
            **self.spread._asdict(),
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
        self._times = [parts.train_times for parts in splits]
        self._kept: dict[Engine, _Kept] = {}
        self.done: list[Trial] = []
        self.short_of_memory: dict[Params, str] = {}

    def run(self, cells: Sequence[Params], *, expected_later: int, keeps_fits: bool = False) -> list[Trial]:
        """Try *cells* and return their trials; *expected_later* trials are expected to follow.

        With *keeps_fits*, those of the last cell stay in memory for cells that differ from it in recency alone.
        """
        first = len(self.done)
        untried = [params for params in cells if params not in self.short_of_memory]
        expected_total = first + len(untried) + expected_later
        for params in untried:
            try:
                self.done.append(self._stored_or_measured(params, keeps_fits=keeps_fits))
            except MemoryShortage as error:
                self.short_of_memory[params] = str(error)
                expected_total -= 1
            self._on_trial(len(self.done), expected_total)
        return self.done[first:]

    def _stored_or_measured(self, params: Params, *, keeps_fits: bool) -> Trial:
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
        per_user, spread = self._measure(params_of_trial, keeps_fits=keeps_fits)
        trial = Trial(params, iterations, per_user, round(perf_counter() - start, 3), spread)

        if file is not None:
            _store_trial(file, trial)
        return trial

    def _measure(self, params: Params, *, keeps_fits: bool) -> tuple[Values, Spread]:
        """Return the nDCG of each tested user, one split after the other, and the mean spread of their lists.

        All are zeros if the data cannot be fitted. Raises MemoryShortage.
        """
        plain = without_recency(params)
        try:
            fits = self._fits(plain, keeps_fits=keeps_fits)
            rankers = self._with_recency(fits, params.recency)
            ndcg, spread = measure(self._splits, rankers, self._popularity, self._k)
        except MemoryShortage:
            raise
        except DataError:
            return np.zeros(sum(len(parts.tested) for parts in self._splits)), NO_SPREAD

        mean = float(ndcg.mean())
        kept = self._kept.get(engine_of(plain))
        if isinstance(fits, list) and (kept is None or mean > kept.ndcg):
            self._kept[engine_of(plain)] = _Kept(plain, fits, mean)
        return ndcg, spread

    def _fits(self, plain: Params, *, keeps_fits: bool) -> Iterable[_Scoring]:
        """Return rankers (fitted models) of *plain*, parameters without recency, one for each split.

        It is a list if they are to be kept: with *keeps_fits*, the first of EASE, and those of other engines if they
        are small. All others are fitted one at a time, to save memory, and blends of them.
        """
        if isinstance(plain, BlendParams):
            parts = [
                self._with_recency(self._fits(without_recency(part), keeps_fits=False), part.recency)
                for part in plain.parts
            ]
            return (Blend(rankers, plain) for rankers in zip(*parts, strict=True))
        kept = self._kept.get(engine_of(plain))
        if kept is not None and kept.params == plain:
            return kept.rankers

        fits = (_fit(parts, plain) for parts in self._splits)
        if keeps_fits:
            self._kept = {}  # the next fits need their memory
            return list(fits)
        fits_bytes = sum(estimate_fit_bytes(plain, parts.train) for parts in self._splits)
        is_kept = kept is None if isinstance(plain, EASEParams) else fits_bytes <= _MOST_KEPT_BYTES
        return list(fits) if is_kept else fits

    def _with_recency(self, fits: Iterable[_Scoring], recency: Recency | None) -> Iterator[_Scoring]:
        """Yield *fits*, whose scores are multiplied by recent popularity if there is a *recency*."""
        for ranker, parts, times in zip(fits, self._splits, self._times, strict=True):
            yield ranker if recency is None else with_recency(ranker, recency.weights(parts.train, times))


class _Kept(NamedTuple):
    """Fits of *params*, one for each split, and the nDCG of their best trial."""

    params: Params
    rankers: list[_Scoring]
    ndcg: float


def _fit(parts: Parts, params: Params) -> _Scoring:
    """Fit *params* to the train part; of EASE, whose table of items is large, return the scores of the tested users."""
    ranker = fit_parts(parts, params)
    if not isinstance(ranker, EASE):
        return ranker
    return ScoresOfUsers.of(ranker, parts.seen, parts.tested)


def measure(
    splits: Sequence[Parts], rankers: Iterable[_Scoring], popularity: Sequence[Popularity], k: int
) -> tuple[Values, Spread]:
    """Return the nDCG of lists of *k* as served, one tested user of *splits* after the other, and their mean spread.

    There is one of *rankers* for each split, released before the next one is requested, and one of *popularity*.
    """
    values = list[Values]()
    spreads = list[Spread]()
    for parts, ranker, popular in zip(splits, rankers, popularity, strict=False):
        evaluated = recommend_all(ranker, parts, k, popular)
        values.append(measure_users(evaluated.as_served, parts.test).values["ndcg"])
        spreads.append(Spread.of(evaluated.lists[parts.tested]))
        del ranker  # the next fit needs its memory
    return np.concatenate(values), Spread.mean(spreads)


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

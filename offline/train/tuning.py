"""The search for an engine and its parameters: candidates are compared on an inner split, within a budget."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import fit_parts, recommend_all
from hotplate.offline.evaluate.metrics import Values, measure_users
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.matrix import History, Times, UserItems, are_among, cells_of, users_per_item
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.cells import beyond, default_cells, more_recency
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    described,
    engine_of,
    fit_bytes,
    fit_s,
    rank_s,
    recency_of,
    with_recency,
)
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from hotplate.offline.train.repeats import RepeatSearch
from hotplate.offline.train.repeats import search as choose_repeats
from hotplate.stores.file.memory import room_bytes
from hotplate.stores.verification import OnProgress, unreported

# A log with more pairs is searched on a draw of its users, who have about this many.
_SEARCHED_PAIRS = 1_000_000
# As many iterations rank cells as the full number does, in half of the time.
_EXPLORING = 8
_EXTENSIONS = 3
# Popularity is recommended if it leads by half of an interval of 95 %, in standard errors; and personal engines are
# taken for equal within one.
_INTERVAL = 1.96
_EQUAL = 1.0
# A split by time is searched at so many cuts: with one, a week decides for the next.
_CUTS = 2
# What a search takes at most, by estimate, unless another budget is given: seconds of a core for its cells, half as
# many for recency, and memory for each fit.
_BUDGET_S = 45.0
_RECENCY = 0.5
_BUDGET_BYTES = 650e6
# The last fit, on all data, may take so many seconds of a core.
_LAST_FIT_S = 900.0
# A trial ranks at most so many pairs of user and item, over all cuts; of more, some users are drawn.
_RANKED = 100_000_000


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What is searched.

    cells     are tried; () for those that were good on real data, and more where the best lies at their edge
    engine    is the only one that is tried
    budget_s  seconds of a core that the search may take, by estimate; None for 45 and half as many for recency, or for
              what the *cells* that were given take
    """

    cells: tuple[Params, ...] = ()
    engine: Engine | None = None
    budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.budget_s is not None and not 0 < self.budget_s < math.inf:
            raise SettingError(f"tune is {self.budget_s}; it must be a number of seconds above 0.")


@dataclass(frozen=True, slots=True)
class Trial:
    """How well one combination of parameters (a cell) ranks, by the nDCG of each user, in one order for all trials.

    A trial of ALS usually has fewer *iterations* than a training, and other engines have None. If a cell cannot be
    fitted, its nDCG is 0.
    """

    params: Params
    iterations: int | None
    per_user: Values = field(compare=False, repr=False)
    seconds: float

    @property
    def ndcg(self) -> float:
        """The mean over the users."""
        return float(self.per_user.mean())

    @property
    def se(self) -> float:
        """The standard error of the mean."""
        return _standard_error(self.per_user)

    def leads_by(self, other: "Trial") -> float:
        """Return the mean difference to *other*, user by user, in its standard errors.

        Users differ far more than engines do, so that is much surer than the difference of two means.
        """
        apart = self.per_user - other.per_user
        error = _standard_error(apart)
        return float(apart.mean()) / error if error else math.copysign(math.inf, apart.mean()) if apart.any() else 0.0


@dataclass(frozen=True, slots=True)
class Search:
    """All *trials* on one inner *split*, at lists of *k*; *defaults* are those that the search started from.

    Cells that are *left_out* would have taken too much. *users* were searched on, if that is not all of them.
    """

    split: SplitOptions
    k: int
    trials: tuple[Trial, ...]
    defaults: ALSParams
    left_out: tuple[Params, ...] = ()
    users: int | None = None

    @property
    def best(self) -> int:
        """The number of the trial that is recommended.

        Popularity is, if it leads the best personal engine by more than an interval of 95 %. Else, of all personal
        trials within one standard error of the best: one with recency, then one of ALS, then the simplest parameters
        and the longest half-life. Errors are of the differences, user by user.
        """
        ranked = _by_ndcg(self.trials)
        personal = [number for number in ranked if not isinstance(self.trials[number].params, PopularityParams)]
        popular = next((number for number in ranked if number not in personal), None)
        if not personal:
            return ranked[0]
        top = self.trials[personal[0]]
        if popular is not None and self.trials[popular].leads_by(top) > _INTERVAL:
            return popular
        close = [number for number in personal if top.leads_by(self.trials[number]) <= _EQUAL]
        return min(close, key=lambda number: _complexity(self.trials[number].params))

    @property
    def best_of_each(self) -> tuple[int, ...]:
        """The number of the best trial of each engine that was tried, the best engine first."""
        return _best_of_each(self.trials)

    @property
    def popular(self) -> PopularityParams:
        """What is popular: with the half-life that ranks best, or over all time if none was tried."""
        best = (self.trials[number].params for number in self.best_of_each)
        return next((params for params in best if isinstance(params, PopularityParams)), PopularityParams())

    @property
    def usual(self) -> Trial | None:
        """The trial of the defaults, if it was made."""
        return next((trial for trial in self.trials if trial.params == self.defaults), None)

    def to_json(self) -> dict[str, Any]:
        """Return what a model keeps of it."""
        return {
            "objective": f"ndcg@{self.k}",
            "split": asdict(self.split),
            "users_searched": self.users,
            "trials": [_to_json(trial) for trial in self.trials],
            "left_out": [{"engine": engine_of(each), "params": asdict(each)} for each in self.left_out],
            "best": self.best,
        }


def tune(
    user_items: UserItems,
    history: History | None,
    options: SplitOptions,
    tuning: TuneOptions,
    *,
    k: int = 10,
    defaults: ALSParams | None = None,
    kept: Path | None = None,
    evaluations: int = 0,
    on_trial: OnProgress = unreported,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Search | None:
    """Compare cells on a split of *user_items*, the part that may be learnt from, of the kind that *options* say.

    *history* holds the rows of the pairs. Of a log of more than a million pairs, some users are drawn. In a split in
    time the best of each engine is tried with recency, too. Trials are kept in the folder *kept*. If it holds a
    trial of the same data and split, that is not made again. *defaults* say the iterations and the seed of ALS.
    *on_trial* is called with (done, total); the total grows if the best cell lies at an edge, and with recency.
    *on_notice* is called with an estimate of the cost, which includes the last fit and the number of *evaluations*
    after the search, and with the cells left out for their cost. Returns None if there are too few pairs to hold some
    back. Raises DataError if the folder cannot be written.
    """
    defaults = defaults or ALSParams()
    # With the same seed the same numbers would hold back twice.
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=_CUTS, repeats=False)
    searched = _drawn(user_items, history, inner)
    splits = _splits(*searched, inner)
    if not splits:
        return None
    known = _Trials(splits, k, kept, digest_of(*searched, inner, _EXPLORING, k))
    items, is_recent = searched[0].shape[1], inner.in_time and not tuning.cells
    budget = _Budget(splits, user_items, tuning)
    trials: list[Trial] = []

    def run(waiting: Sequence[Params]) -> list[Trial]:
        for at, params in enumerate(waiting, 1):
            trials.append(known.trial(params))
            on_trial(len(trials), len(trials) + len(waiting) - at + is_recent)
        return trials[len(trials) - len(waiting) :]

    cells = budget.affordable(tuning.cells or default_cells(defaults, items, tuning.engine))
    seconds = budget.training_s(cells, evaluations, is_recent=is_recent)
    on_notice(
        f"searching {len(cells)} cells on an inner {inner.kind} split, the evaluation and the last fit take about "
        f"{seconds:.0f} s of a core, more if the best lies at an edge; --no-tune skips the search"
    )
    users = searched[0].shape[0] if searched[0] is not user_items else None
    if users is not None:
        on_notice(f"the search is of {users:,} of {user_items.shape[0]:,} users, drawn at random, as the log is large")
    on_trial(0, len(cells))
    run(cells)
    for _ in range(0 if tuning.cells else _EXTENSIONS):
        run(budget.affordable(beyond([trials[number].params for number in _by_ndcg(trials)], items)))
    for number in _best_of_each(trials) if is_recent else ():
        tried: dict[Params, float] = {}
        while waiting := budget.recencies(more_recency(trials[number].params, tried)):
            tried |= {trial.params: trial.ndcg for trial in run(waiting)}
    on_trial(len(trials), len(trials))
    if budget.left_out:
        on_notice(budget.sentence())
    return Search(inner, k, tuple(trials), defaults, tuple(budget.left_out), users)


def inner_parts(
    user_items: UserItems, history: History | None, options: SplitOptions, *, repeats: bool = False
) -> Parts | None:
    """Return one inner split of the data of a search, whose test may have *repeats*; None if a part has no pairs."""
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=1, piece=0, repeats=repeats)
    drawn = _drawn(user_items, history, inner)
    parts = split(*drawn, inner).sampled(max(1, _RANKED // drawn[0].shape[1]), inner.seed)
    return parts if parts.train.nnz and parts.test.nnz else None


def search_repeats(
    user_items: UserItems, history: History | None, options: SplitOptions, params: Params, k: int
) -> RepeatSearch | None:
    """Choose how a user's own rows count in lists that keep what users have, beside what *params* learn.

    None if there are no times, or no repeats. If the fit is too dear for a search, neighbours stand in.
    """
    parts = inner_parts(user_items, history, options, repeats=True) if history is not None and options.in_time else None
    if parts is None or not are_among(cells_of(parts.train), cells_of(parts.test)).any():
        return None
    tried = _exploring(params)
    if fit_s(tried, parts.train) > _BUDGET_S / 2 or fit_bytes(tried, parts.train) > _BUDGET_BYTES:
        tried = NeighbourParams(recency=recency_of(params))
    return choose_repeats(parts, fit_parts(parts, tried), k)


def _drawn(user_items: UserItems, history: History | None, options: SplitOptions) -> tuple[UserItems, History | None]:
    """Return all pairs of some users, drawn at random, who have about as many as are searched at most."""
    has = np.diff(user_items.indptr)
    if user_items.nnz <= _SEARCHED_PAIRS:
        return user_items, history
    order = np.random.default_rng(options.seed).permutation(len(has))
    users = np.zeros(len(has), dtype=np.bool_)
    users[order[: int(np.searchsorted(np.cumsum(has[order]), _SEARCHED_PAIRS))]] = True
    some = user_items[users]
    items = users_per_item(some) > 0
    some = some[:, items]
    some.has_canonical_format = True
    return some, None if history is None else history.renumbered(users, items)


def _splits(user_items: UserItems, history: History | None, options: SplitOptions) -> list[Parts]:
    """Return the splits of a search, of many users a draw of those to test; none if one leaves a part without pairs."""
    found = []
    for each in options.draws:
        parts = split(user_items, history, each)
        if not (parts.train.nnz and parts.test.nnz):
            return []
        most = max(1, _RANKED // (user_items.shape[1] * len(options.draws)))
        found.append(parts.sampled(most, options.seed))
    return found


class _Trials:
    """Makes trials, and keeps each as a file of *folder*, so a search that was stopped goes on.

    The name of a file is a digest of the data, the splits and the cell. What was learnt last serves all recencies of
    its engine.
    """

    def __init__(self, splits: Sequence[Parts], k: int, folder: Path | None, key: str) -> None:
        self._splits, self._k = splits, k
        self._folder, self._key = folder, key
        self._learnt: tuple[Params, list[tuple[Ranker, Times | None]]] | None = None

    def trial(self, params: Params) -> Trial:
        """Return the trial of *params*, which is made if the folder does not have it."""
        tried = _exploring(params)
        iterations = tried.iterations if isinstance(tried, ALSParams) else None
        name = blake2b(f"{self._key} {params!r}".encode(), digest_size=16).hexdigest()
        kept = None if self._folder is None else self._folder / f"{name}.npy"
        with suppress(OSError, ValueError, EOFError):  # it is not there, or was being written at the kill
            if kept is not None:
                seconds, *_ = values = np.load(kept, allow_pickle=False)
                return Trial(params, iterations, values[1:], float(seconds))
        start = perf_counter()
        values = self._measure(tried)
        made = Trial(params, iterations, values, round(perf_counter() - start, 3))
        if kept is not None:
            _write(kept, made)
        return made

    def _measure(self, params: Params) -> Values:
        """Learn from each split, and return the nDCG of each user; zeros if that fails."""
        try:
            made = zip(self._rankers(params), self._splits, strict=True)
            return np.concatenate([_ndcg(ranker, parts, self._k) for ranker, parts in made])
        except DataError:  # with such parameters the factors grow beyond all bounds
            return np.zeros(sum(int(np.count_nonzero(np.diff(parts.test.indptr))) for parts in self._splits))

    def _rankers(self, params: Params) -> Iterator[Ranker]:
        """Yield what each split teaches, one after the other; with recency, by what was learnt without it."""
        recency = recency_of(params)
        if recency is None or isinstance(params, PopularityParams):
            yield from (fit_parts(parts, params) for parts in self._splits)
            return
        plain = replace(params, recency=None)
        if self._learnt is None or self._learnt[0] != plain:
            self._learnt = None  # else there were two engines in memory
            self._learnt = plain, [(fit_parts(parts, plain), parts.train_times) for parts in self._splits]
        for (ranker, times), parts in zip(self._learnt[1], self._splits, strict=True):
            yield with_recency(ranker, recency.weights(parts.train, times))


def _write(path: Path, trial: Trial) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.r_[trial.seconds, trial.per_user], allow_pickle=False)
    except OSError as error:
        raise DataError(f"The trials cannot be written to {path.parent}: {error.strerror or error}.") from error


class _Budget:
    """What a search may take, by estimates that are the same on every machine."""

    def __init__(self, splits: Sequence[Parts], user_items: UserItems, options: TuneOptions) -> None:
        # What is learnt from, and what those who are tested have.
        self._splits = [(each.train, each.seen[np.flatnonzero(np.diff(each.test.indptr))]) for each in splits]
        self._user_items = user_items
        self.total_s = options.budget_s or (math.inf if options.cells else _BUDGET_S)
        self.most_bytes = _BUDGET_BYTES if options.budget_s is None and not options.cells else float(room_bytes())
        self._left = {"cells": self.total_s, "recency": _RECENCY * self.total_s}
        self.left_out: dict[Params, None] = {}
        """The cells that could not be afforded."""

    def affordable(self, cells: Sequence[Params]) -> list[Params]:
        """Return those of *cells* that can still be tried, the cheapest of them first of all."""
        kept: set[Params] = set()
        for params in sorted(cells, key=self._trial_s):
            needed = max(fit_bytes(params, train) for train, _ in self._splits)
            fits = needed <= self.most_bytes and fit_bytes(params, self._user_items) <= room_bytes()
            soon = fit_s(params, self._user_items) <= _LAST_FIT_S
            if fits and soon and self._take("cells", self._trial_s(params)):
                kept.add(params)
            else:
                self.left_out[params] = None
        return [params for params in cells if params in kept]

    def recencies(self, cells: Sequence[Params]) -> list[Params]:
        """Return those of *cells*, which differ in recency alone, that can still be ranked."""
        return [params for params in cells if self._take("recency", self._ranks(params))]

    def training_s(self, cells: Sequence[Params], evaluations: int, *, is_recent: bool) -> float:
        """Return about how many seconds of a core a training takes: its trials, *evaluations*, and a last fit."""
        dearest = {engine_of(params): params for params in sorted(cells, key=self._trial_s)}.values()
        searched = sum(map(self._trial_s, cells)) + (_RECENCY * min(self.total_s, _BUDGET_S) if is_recent else 0)
        whole = [fit_s(params, self._user_items) for params in dearest]
        return searched + evaluations * sum(whole) + max(whole, default=0)

    def sentence(self) -> str:
        """Name what was left out."""
        return (
            f"not tried, because a search takes at most about {self.total_s:.0f} s of a core and "
            f"{self.most_bytes / 1e9:.1f} GB, and a last fit {_LAST_FIT_S:.0f} s: "
            f"{'; '.join(map(described, self.left_out))}; --tune SECONDS allows more"
        )

    def _take(self, purpose: str, seconds: float) -> bool:
        if seconds > self._left[purpose]:
            return False
        self._left[purpose] -= seconds
        return True

    def _trial_s(self, params: Params) -> float:
        return self._ranks(params) + sum(fit_s(_exploring(params), train) for train, _ in self._splits)

    def _ranks(self, params: Params) -> float:
        return sum(rank_s(params, rows) for _, rows in self._splits)


def _exploring(params: Params) -> Params:
    """Return *params* with as few iterations as rank cells."""
    return replace(params, iterations=min(_EXPLORING, params.iterations)) if isinstance(params, ALSParams) else params


def _ndcg(ranker: Ranker, parts: Parts, k: int) -> Values:
    return measure_users(recommend_all(ranker, parts, k), parts.test).values["ndcg"]


def _by_ndcg(trials: Sequence[Trial]) -> list[int]:
    return sorted(range(len(trials)), key=lambda number: -trials[number].ndcg)


def _best_of_each(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the number of the best trial of each engine that was tried, the best engine first."""
    best: dict[Engine, int] = {}
    for number in _by_ndcg(trials):
        best.setdefault(engine_of(trials[number].params), number)
    return tuple(best.values())


def _complexity(params: Params) -> tuple[float, ...]:
    """Return what orders personal engines that are as good as each other, the one that is preferred first."""
    recency = recency_of(params)
    size = 0.0
    match params:
        case ALSParams():
            size = params.factors
        case EASEParams():
            size = -params.regularization
        case NeighbourParams():
            size = params.neighbours
    timing = (0.0, 0.0) if recency is None else (-recency.half_life_days, recency.gamma)
    return float(recency is None), float(not isinstance(params, ALSParams)), size, *timing


def _to_json(trial: Trial) -> dict[str, Any]:
    figures = {name: getattr(trial, name) for name in ("iterations", "ndcg", "se", "seconds")}
    return {"engine": engine_of(trial.params), "params": asdict(trial.params), **figures}


def _standard_error(values: Values) -> float:
    return float(values.std() / math.sqrt(len(values)))


def digest_of(user_items: UserItems, history: History | None, *settings: object) -> str:
    """Name the data, the settings (by their repr) and the versions of libraries that what was learnt belongs to."""
    versions = [version(name) for name in ("hotplate", "implicit", "numpy", "scipy")]
    weighing = None if history is None else history.weighing
    digest = blake2b(repr((user_items.shape, settings, weighing, versions)).encode(), digest_size=16)
    rows = () if history is None else (history.cells, history.times, history.weights, history.ended)
    for array in (user_items.indptr, user_items.indices, user_items.data, *rows):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

"""The search for an engine and its parameters within a budget.

A *cell* is an engine with its parameters, and a *trial* measures one: it is fitted to inner splits of the training
part, and ranks items for their test users. With recency, scores are multiplied by a power of recent popularity.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import fit_parts, recommend_all
from hotplate.offline.evaluate.metrics import EQUAL, LEADING, Values, leads_by, measure_users, standard_error
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.matrix import History, UserItems, are_among, items_per_user, pair_numbers, users_per_item
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.budget import BUDGET_BYTES, BUDGET_S, EXPLORING, Budget, Cost, exploring
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    engine_of,
    fit_bytes,
    fit_s,
    recency_of,
    with_recency,
    without_recency,
)
from hotplate.offline.train.item_based import EASEParams, NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.repeats import RepeatSearch
from hotplate.offline.train.repeats import search as choose_repeats
from hotplate.stores.verification import OnProgress, unreported

# A larger log is sampled by user.
_SEARCHED_PAIRS = 1_000_000
_EXTENSIONS = 3
# Cuts of a split by time; with one, a single week decides.
_CUTS = 2
# Fits of the best ALS cell that are kept for recency.
_KEPT_BYTES = 200e6
# Pairs that a trial ranks; beyond it, users are sampled.
_RANKED = 60_000_000

# Each won on some real data and split.
_ALS = ((128, 60.0, 6.0), (128, 150.0, 20.0), (128, 10.0, 1.3), (512, 30.0, 6.0))
_EASE = (6.0, 20.0, 60.0)
_NEIGHBOURS: tuple[tuple[NeighbourWeighting, tuple[int, ...]], ...] = (
    ("tfidf", (5, 10, 20, 100)),
    ("bm25", (5, 100)),
    ("rp3beta", (100,)),
)
_FEWEST = 5
# Twice the factors take two to three times as long.
_MOST_FACTORS = 512
# A fit takes 28 bytes for each.
_MOST_SIMILARITIES = 5_000_000
_WALK_STEP = 0.1
# First half-lives in days; steps multiply.
_HALF_LIVES = (2.0, 8.0)
_STEP = 2.0
_SHORTEST_DAYS = 0.125
_LONGEST_DAYS = 512.0
_LEAST_GAMMA = 0.125
_MOST_GAMMA = 16.0


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """Options of a search.

    cells     to try; () for the default cells, extended beyond their edge
    engine    the only one to try
    budget_s  estimated seconds of a core, and 40 % more for recency; None is 36, or unlimited with *cells*
    """

    cells: tuple[Params, ...] = ()
    engine: Engine | None = None
    budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.budget_s is not None and not 0 < self.budget_s < math.inf:
            raise SettingError(f"tune is {self.budget_s}; it must be a number of seconds above 0.")


@dataclass(frozen=True, slots=True)
class Trial:
    """nDCG per user of one combination of parameters (a cell), 0 if it cannot be fitted."""

    params: Params
    iterations: int | None
    per_user: Values = field(compare=False, repr=False)
    seconds: float

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


@dataclass(frozen=True, slots=True)
class Search:
    """All *trials* on one inner *split* with lists of *k*.

    *left_out* are cells beyond the budget; *users* is the number sampled, None for all.
    """

    split: SplitOptions
    k: int
    trials: tuple[Trial, ...]
    left_out: tuple[Params, ...] = ()
    users: int | None = None

    @property
    def recommended(self) -> int:
        """The number of the recommended trial.

        1. Popularity, if it leads the best personal cell by more than a 95 % interval.
        2. If it leads the best personal cell without recency by so much, interactions follow trends. Then tests on the
           past come late, and of the personal cells only those with the highest power of recency are compared.
        3. Of the personal cells within 1.5 standard errors of the best one: with recency first, then ALS, then the
           simplest parameters, then the most recent: the highest power, and the half-life nearest to popularity's best.
        """
        ranked = _by_ndcg(self.trials)
        personal = [number for number in ranked if not isinstance(self.trials[number].params, PopularityParams)]
        popular = next((number for number in ranked if number not in personal), None)
        if not personal:
            return ranked[0]
        if popular is not None:
            if self._popularity_leads(popular, personal):
                return popular
            if self._popularity_leads(popular, [number for number in personal if not self._power(number)]):
                personal = [number for number in personal if self._power(number) == _MOST_GAMMA] or personal
        top = self.trials[personal[0]]
        close = [number for number in personal if top.leads_by(self.trials[number]) <= EQUAL]
        return min(close, key=self._preference)

    def _popularity_leads(self, popular: int, ranked: Sequence[int]) -> bool:
        """Return whether the trial *popular* leads the first of *ranked* by more than a 95 % interval."""
        best = (self.trials[number] for number in ranked[:1])
        return any(self.trials[popular].leads_by(trial) > LEADING for trial in best)

    def _power(self, number: int) -> float:
        """Return the power of recency of a trial, 0 without."""
        recency = recency_of(self.trials[number].params)
        return 0.0 if recency is None else recency.gamma

    def _preference(self, number: int) -> tuple[float, ...]:
        """Return the sort key of a trial among equals, least for the preferred one.

        With recency first, then ALS, then by simplicity, by the power of recency, and by the distance of the half-life
        from popularity's.
        """
        params = self.trials[number].params
        size = 0.0
        match params:
            case ALSParams():
                size = params.factors
            case EASEParams():
                size = -params.regularization
            case NeighbourParams():
                size = params.neighbours
        is_other_engine = float(not isinstance(params, ALSParams))
        recency = recency_of(params)
        if recency is None:
            return 1.0, is_other_engine, size, 0.0, 0.0
        days = self.popular.half_life_days or recency.half_life_days
        distance = abs(math.log(recency.half_life_days / days))
        return 0.0, is_other_engine, size, -recency.gamma, distance

    @property
    def best_of_each(self) -> tuple[int, ...]:
        """Best trial of each engine, best first."""
        return _best_of_each(self.trials)

    @property
    def popular(self) -> PopularityParams:
        """Popularity's best parameters, else its defaults."""
        best = (self.trials[number].params for number in self.best_of_each)
        return next((params for params in best if isinstance(params, PopularityParams)), PopularityParams())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "objective": f"ndcg@{self.k}",
            "split": asdict(self.split),
            "users_searched": self.users,
            "trials": [_to_json(trial) for trial in self.trials],
            "left_out": [{"engine": engine_of(params), "params": asdict(params)} for params in self.left_out],
            "best": self.recommended,
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
    evaluated: bool = False,
    on_trial: OnProgress = unreported,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Search | None:
    """Compare cells on an inner split of *user_items*, of the kind of *options*.

    Logs of more than a million pairs are sampled by user. In a split by time, the best cell of each engine is tried
    with recency. The folder *kept* stores trials for repeated searches. *defaults* give iterations and seed of ALS.
    *on_trial* is called with (done, total), which may grow; *on_notice* with the cost, which includes the last fit and,
    if *evaluated*, all that follows the search, and with the cells beyond the budget. Returns None for too few pairs.
    Raises DataError if the folder cannot be written.
    """
    drawn = _drawn_users(user_items, history, _inner_split(options, pieces=_CUTS))
    splits = drawn.splits()
    if not splits:
        return None
    items = drawn.user_items.shape[1]
    is_recent = drawn.options.in_time and not tuning.cells
    seconds = math.inf if tuning.cells and tuning.budget_s is None else tuning.budget_s
    budget = Budget(splits, user_items, seconds)
    cells = budget.affordable(tuning.cells or default_cells(defaults or ALSParams(), items, tuning.engine))

    cost_s = Cost(splits, user_items, cells).seconds(
        growth=1.0 if tuning.cells else budget.growth(cells),
        is_recent=is_recent,
        is_evaluated=evaluated,
        has_repeats=is_recent and drawn.has_repeats,
    )
    on_notice(
        f"searching {len(cells)} cells on an inner {drawn.options.kind} split, the evaluation and the last fit take "
        f"about {cost_s:.0f} s of a core; --no-tune skips the search"
    )
    users = None
    if drawn.user_items is not user_items:
        users = drawn.user_items.shape[0]
        on_notice(f"the search is of {users:,} of {user_items.shape[0]:,} users, drawn at random, as the log is large")

    on_trial(0, len(cells))
    trials = _Trials(splits, k, kept, digest_of(drawn.user_items, drawn.history, drawn.options, EXPLORING, k))
    trials.run(cells, on_trial, to_come=int(is_recent))
    if not tuning.cells:
        _extend(trials, budget, items, on_trial, to_come=int(is_recent))
    if is_recent:
        _add_recency(trials, budget, on_trial)
    on_trial(len(trials.done), len(trials.done))
    if budget.left_out:
        on_notice(budget.limits)
    return Search(
        split=drawn.options,
        k=k,
        trials=tuple(trials.done),
        left_out=tuple(budget.left_out),
        users=users,
    )


def _extend(trials: "_Trials", budget: Budget, items: int, on_trial: OnProgress, *, to_come: int) -> None:
    """Try cells beyond the best one of an engine as long as it lies at the edge, at most three times."""
    for _ in range(_EXTENSIONS):
        ranked = [trials.done[number].params for number in _by_ndcg(trials.done)]
        trials.run(budget.affordable(beyond(ranked, items)), on_trial, to_come)


def _add_recency(trials: "_Trials", budget: Budget, on_trial: OnProgress) -> None:
    """Try the best cell of each engine with recency.

    Popularity comes first, as others start from its half-life, then ALS, whose kept fits are then released.
    """
    best = [trials.done[number].params for number in _best_of_each(trials.done)]
    popular: PopularityParams | None = None
    for params in sorted(best, key=_recency_order):
        tried: dict[Params, Trial] = {}
        while cells := budget.recencies(more_recency(params, tried, popular)):
            tried |= {trial.params: trial for trial in trials.run(cells, on_trial, to_come=1)}
        if isinstance(params, PopularityParams) and tried:
            popular = max(tried, key=lambda cell: tried[cell].ndcg)  # type: ignore[assignment]  # all are popularity's


def _recency_order(params: Params) -> int:
    """Return the place of an engine in the trials of recency."""
    match params:
        case PopularityParams():
            return 0
        case ALSParams():
            return 1
        case _:
            return 2


def inner_cuts(user_items: UserItems, history: History | None, options: SplitOptions) -> list[Parts]:
    """Return the inner splits of a search with *options*; none if a part of one is empty."""
    return _drawn_users(user_items, history, _inner_split(options, pieces=_CUTS)).splits()


def _inner_split(options: SplitOptions, *, pieces: int) -> SplitOptions:
    """Return *options* for a split of the training part; the outer seed would hold back the same pairs."""
    return replace(options, seed=(options.seed + 1) % 2**32, pieces=pieces, piece=0, repeats=False)


def search_repeats(
    user_items: UserItems,
    history: History | None,
    options: SplitOptions,
    params: Params,
    *,
    k: int,
    popular: PopularityParams | None = None,
) -> RepeatSearch | None:
    """Choose how much a user's own earlier choices raise the scores of those items, in lists that may repeat them.

    Splits *user_items* and *history* (its rows with times) once more by time, in a train and a test part; fits *params*
    on the train part with fewer iterations, and compares lists of *k* items by their nDCG on the test part. A large log
    is sampled by user. A fit beyond the limits of time or memory is replaced by one of neighbours.

    With the half-life of *popular*, own choices weighed by the item's recent popularity are tried, too. Returns
    None without times, for a split (*options*) that is not by time, and if no tested pair is a repeat.
    """
    if history is None or not options.in_time:
        return None

    repeats_split = replace(_inner_split(options, pieces=1), repeats=True)
    drawn = _drawn_users(user_items, history, repeats_split)
    # Each tested user is ranked against all items.
    most_users = max(1, _RANKED // drawn.user_items.shape[1])
    parts = split(drawn.user_items, drawn.history, drawn.options).sampled(most_users, drawn.options.seed)
    is_repeat = are_among(pair_numbers(parts.train), pair_numbers(parts.test))
    if not is_repeat.any():
        return None

    fitted = exploring(params)
    if fit_s(fitted, parts.train) > BUDGET_S / 2 or fit_bytes(fitted, parts.train) > BUDGET_BYTES:
        fitted = NeighbourParams(recency=recency_of(params))
    ranker = fit_parts(parts, fitted)

    half_life_days = None if popular is None else popular.half_life_days
    return choose_repeats(parts, ranker, k, half_life_days)


class _DrawnUsers(NamedTuple):
    """The users of a search, all or some drawn at random, and the options of its split."""

    user_items: UserItems
    history: History | None
    options: SplitOptions

    @property
    def has_repeats(self) -> bool:
        """Whether there are more rows than pairs."""
        return self.history is not None and len(self.history.times) > self.user_items.nnz

    def splits(self) -> list[Parts]:
        """Return a split for each piece; none if a part of one is empty."""
        splits = list[Parts]()
        pieces = self.options.by_piece
        for options in pieces:
            parts = split(self.user_items, self.history, options)
            if parts.is_empty:
                return []
            most = max(1, _RANKED // (self.user_items.shape[1] * len(pieces)))
            splits.append(parts.sampled(most, self.options.seed))
        return splits


def _drawn_users(user_items: UserItems, history: History | None, options: SplitOptions) -> _DrawnUsers:
    """Draw the users of a search: all of them, or some with a million pairs and the items that these have.

    The minimum number of users per item counts all users, so it is dropped for a draw.
    """
    if user_items.nnz <= _SEARCHED_PAIRS:
        return _DrawnUsers(user_items, history, options)
    counts = items_per_user(user_items)
    order = np.random.default_rng(options.seed).permutation(len(counts))
    most = int(np.searchsorted(np.cumsum(counts[order]), _SEARCHED_PAIRS))
    users = np.zeros(len(counts), dtype=np.bool_)
    users[order[:most]] = True
    drawn = user_items[users]
    items = users_per_item(drawn) > 0
    drawn = drawn[:, items]
    drawn.has_canonical_format = True
    past = None if history is None else history.renumbered(users, items)
    return _DrawnUsers(drawn, past, replace(options, min_per_item=1))


class _Trials:
    """Runs trials of one search on *splits*, with lists of *k*.

    They are stored in *folder*, if any, by the *key* of the data and settings; all of them are in `done`, in order.
    """

    def __init__(self, splits: Sequence[Parts], k: int, folder: Path | None, key: str) -> None:
        self._splits = splits
        self._k = k
        self._folder = folder
        self._key = key
        self._fits = _Fits(splits)
        self.done: list[Trial] = []

    def run(self, cells: Sequence[Params], on_trial: OnProgress, to_come: int) -> list[Trial]:
        """Try *cells* and return their trials.

        *on_trial* is called with the number of trials so far, and in all, if *to_come* ones follow these.
        """
        total = len(self.done) + len(cells) + to_come
        for params in cells:
            self.done.append(self._stored_or_measured(params))
            on_trial(len(self.done), total)
        return self.done[len(self.done) - len(cells) :]

    def _stored_or_measured(self, params: Params) -> Trial:
        """Return the stored trial of *params*, or measure and store it."""
        tried = exploring(params)
        iterations = tried.iterations if isinstance(tried, ALSParams) else None
        file = None
        if self._folder is not None:
            name = blake2b(f"{self._key} {params!r}".encode(), digest_size=16).hexdigest()
            file = self._folder / f"{name}.npy"
            with suppress(OSError, ValueError, EOFError, IndexError):  # missing or half-written
                stored = np.load(file, allow_pickle=False)
                return Trial(params, iterations, per_user=stored[1:], seconds=float(stored[0]))
        start = perf_counter()
        per_user = self._measure(tried)
        trial = Trial(params, iterations, per_user=per_user, seconds=round(perf_counter() - start, 3))
        if file is not None:
            _store_trial(file, trial)
        return trial

    def _measure(self, params: Params) -> Values:
        """Return nDCG per user of all splits, zeros if *params* cannot be fitted."""
        rankers = self._fits.of(params)
        try:
            # Each ranker is released before the next fit.
            values = [_ndcg(next(rankers), parts, self._k) for parts in self._splits]
        except DataError:
            return np.zeros(sum(len(parts.tested) for parts in self._splits))
        measured = np.concatenate(values)
        self._fits.compare(params, float(measured.mean()))
        return measured


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

    def of(self, params: Params) -> Iterator[Ranker]:
        """Yield *params* fitted to each split."""
        recency = recency_of(params)
        if recency is not None:
            rankers = self._kept_or_fitted(without_recency(params))
            for ranker, parts, times in zip(rankers, self._splits, self._times, strict=True):
                yield with_recency(ranker, recency.weights(parts.train, times))
        elif isinstance(params, ALSParams) and self._bytes(params) <= _KEPT_BYTES:
            yield from self._kept_or_fitted(params)
        else:
            for parts in self._splits:
                yield fit_parts(parts, params)

    def compare(self, params: Params, ndcg: float) -> None:
        """Keep the rankers of *params* if they are the best of ALS."""
        last = self._last
        if last is None or last.params != params:
            return
        if ndcg > self._best_ndcg:
            self._best = last
            self._best_ndcg = ndcg
        self._last = None

    def _kept_or_fitted(self, plain: Params) -> list[Ranker]:
        """Return the rankers of *plain*, which has no recency: those that are kept, or new ones, which then are."""
        rankers = self._kept_rankers(plain)
        if rankers is not None:
            return rankers
        # They are released before the next fit.
        self._last = None
        if not isinstance(plain, ALSParams):
            self._best = None
        self._last = _Fitted(plain, [fit_parts(parts, plain) for parts in self._splits])
        return self._last.rankers

    def _kept_rankers(self, plain: Params) -> list[Ranker] | None:
        for fitted in (self._last, self._best):
            if fitted is not None and fitted.params == plain:
                return fitted.rankers
        return None

    def _bytes(self, params: Params) -> int:
        """Estimate the memory of the rankers of *params* for all splits."""
        return sum(fit_bytes(params, parts.train) for parts in self._splits)


def _store_trial(path: Path, trial: Trial) -> None:
    """Write the seconds and then the nDCG of each user; raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.r_[trial.seconds, trial.per_user], allow_pickle=False)
    except OSError as error:
        raise DataError(f"The trials cannot be written to {path.parent}: {error.strerror or error}.") from error


def _ndcg(ranker: Ranker, parts: Parts, k: int) -> Values:
    return measure_users(recommend_all(ranker, parts, k), parts.test).values["ndcg"]


def _by_ndcg(trials: Sequence[Trial]) -> list[int]:
    """Return the numbers of *trials*, the best first."""
    return sorted(range(len(trials)), key=lambda number: -trials[number].ndcg)


def _best_of_each(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the number of each engine's best trial, the best first."""
    best: dict[Engine, int] = {}
    for number in _by_ndcg(trials):
        best.setdefault(engine_of(trials[number].params), number)
    return tuple(best.values())


def _to_json(trial: Trial) -> dict[str, Any]:
    """Return JSON values of a trial."""
    return {
        "engine": engine_of(trial.params),
        "params": asdict(trial.params),
        "iterations": trial.iterations,
        "ndcg": trial.ndcg,
        "se": trial.se,
        "seconds": trial.seconds,
    }


def digest_of(user_items: UserItems, history: History | None, *settings: object) -> str:
    """Return a digest of data, settings (by repr) and library versions."""
    versions = [version(name) for name in ("hotplate", "implicit", "numpy", "scipy")]
    weighing = None if history is None else history.weighing
    digest = blake2b(repr((user_items.shape, settings, weighing, versions)).encode(), digest_size=16)
    rows = () if history is None else (history.pair_numbers, history.times, history.weights, history.ended)
    for array in (user_items.indptr, user_items.indices, user_items.data, *rows):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def default_cells(defaults: ALSParams, items: int, engine: Engine | None = None) -> list[Params]:
    """Return the default cells for a catalogue of *items*, perhaps of one *engine*.

    *defaults* are those of ALS, and give the others iterations and seed.
    """
    cells: list[Params] = [defaults]
    for most_factors, regularization, alpha in _ALS:
        factors = min(most_factors, items)
        cells.append(replace(defaults, factors=factors, regularization=regularization, alpha=alpha))
    cells += [EASEParams(regularization) for regularization in _EASE]
    for weighting, numbers in _NEIGHBOURS:
        cells += [NeighbourParams(weighting, number) for number in numbers if number <= max(items, _FEWEST)]
    cells.append(PopularityParams())
    return [params for params in dict.fromkeys(cells) if engine in (None, engine_of(params))]


def beyond(ranked: Sequence[Params], items: int) -> list[Params]:
    """Return new cells beyond the edge of those tried, for each engine whose best cell lies there.

    *ranked* are the cells tried, the best first; there are *items* in the catalogue. The powers of rp3beta are always
    searched around its best cell.
    """
    als = [params for params in ranked if isinstance(params, ALSParams)]
    ease = [params for params in ranked if isinstance(params, EASEParams)]
    neighbours = [params for params in ranked if isinstance(params, NeighbourParams)]
    walks = [params for params in neighbours if params.weighting == "rp3beta"]
    cells: list[Params] = []
    if als:
        cells += _beyond_als(als, items)
    if ease:
        cells += _beyond_ease(ease)
    if neighbours:
        cells += _beyond_neighbours(neighbours, items)
    if walks:
        cells += _powers_around(walks[0])
    return [params for params in dict.fromkeys(cells) if params not in ranked]


def _beyond_als(ranked: Sequence[ALSParams], items: int) -> Iterator[Params]:
    """Yield cells with more factors, and with larger or smaller regularization and alpha, if the best is at an edge."""
    best = ranked[0]
    # The best regularization and alpha are kept.
    for factors in (2 * best.factors, _MOST_FACTORS):
        if best.factors < factors <= min(_MOST_FACTORS, items):
            yield replace(best, factors=factors)
    for times in _factors_past_edge([params.alpha for params in ranked], 2, 0.5):
        yield replace(best, regularization=times * best.regularization, alpha=times * best.alpha)


def _beyond_ease(ranked: Sequence[EASEParams]) -> Iterator[Params]:
    """Yield a larger or smaller regularization, if the best one is at an edge."""
    for times in _factors_past_edge([params.regularization for params in ranked], 3, 1 / 3):
        yield EASEParams(float(f"{times * ranked[0].regularization:.3g}"))


def _beyond_neighbours(ranked: Sequence[NeighbourParams], items: int) -> Iterator[Params]:
    """Yield other numbers of neighbours, at the best weighting and powers."""
    best = ranked[0]
    numbers = [params.neighbours for params in ranked if replace(params, neighbours=best.neighbours) == best]
    most = max(2, min(items, _MOST_SIMILARITIES // items))
    for times in _factors_past_edge(numbers, 5, 0.5):
        yield replace(best, neighbours=int(np.clip(times * best.neighbours, 2, most)))


def _powers_around(walk: NeighbourParams) -> Iterator[Params]:
    """Yield the neighbouring powers of a random walk."""
    for alpha_step, beta_step in ((_WALK_STEP, 0), (-_WALK_STEP, 0), (0, _WALK_STEP), (0, -_WALK_STEP)):
        alpha = round(walk.walk_alpha + alpha_step, 2)
        beta = round(walk.walk_beta + beta_step, 2)
        if alpha > 0 and beta >= 0:
            yield replace(walk, walk_alpha=alpha, walk_beta=beta)


def _factors_past_edge(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return factors that move the first of *values*, the best one, beyond all others; none inside the range."""
    return [times for times, edge in ((up, max), (down, min)) if values and values[0] == edge(values)]


def more_recency(
    params: Params, tried: Mapping[Params, Trial], popular: PopularityParams | None = None
) -> list[Params]:
    """Return *params* with recencies to try next, given the trials of those *tried*.

    First half-lives, and the highest power at the half-life of *popular*; then half-lives and powers around the best,
    and higher powers as long as they equal it.
    """
    timings = [_Timing(half_life, 1.0) for half_life in _HALF_LIVES]
    if popular is not None and popular.half_life_days is not None:
        timings.append(_Timing(popular.half_life_days, _MOST_GAMMA))
    if tried:
        timings = list(_timings_around_best(params, list(tried.values())))
    cells: dict[Params, None] = {}
    for timing in timings:
        if not timing.is_in_range:
            continue
        if isinstance(params, PopularityParams):
            cells[PopularityParams(timing.days)] = None
        else:
            cells[replace(params, recency=Recency(timing.days, timing.gamma))] = None
    return [cell for cell in cells if cell not in tried]


class _Timing(NamedTuple):
    """A half-life in days, and a power of recency (*gamma*)."""

    days: float
    gamma: float

    @property
    def is_in_range(self) -> bool:
        """Whether it may be tried."""
        return _SHORTEST_DAYS <= self.days <= _LONGEST_DAYS and _LEAST_GAMMA <= self.gamma <= _MOST_GAMMA


def _timings_around_best(params: Params, tried: Sequence[Trial]) -> Iterator[_Timing]:
    """Yield timings around that of the best trial."""
    best = max(tried, key=lambda trial: trial.ndcg)
    days, gamma = _timing(best.params)
    yield _Timing(days * _STEP, gamma)
    yield _Timing(days / _STEP, gamma)
    if not isinstance(params, PopularityParams):
        yield _Timing(days, gamma * _STEP)
        yield _Timing(days, gamma / _STEP)
        for trial in tried:
            if _is_as_good_and_recent(trial, best):
                yield _Timing(days, _timing(trial.params).gamma * _STEP)


def _is_as_good_and_recent(trial: Trial, best: Trial) -> bool:
    """Return whether *trial* has the half-life of *best*, a power as high, and cannot be told apart from it."""
    timing = _timing(trial.params)
    best_timing = _timing(best.params)
    is_as_recent = timing.days == best_timing.days and timing.gamma >= best_timing.gamma
    return is_as_recent and best.leads_by(trial) <= EQUAL


def _timing(params: Params) -> _Timing:
    """Return the half-life and the power of recency of a cell; defaults of 1 without."""
    if isinstance(params, PopularityParams):
        return _Timing(params.half_life_days or 1.0, 1.0)
    recency = recency_of(params)
    return _Timing(1.0, 1.0) if recency is None else _Timing(recency.half_life_days, recency.gamma)

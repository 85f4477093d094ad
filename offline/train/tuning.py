"""The search for an engine and its parameters within a budget.

A *cell* is an engine with its parameters, and a *trial* measures one: it is fitted to inner splits of the training
part, and ranks items for their test users. With recency, scores are multiplied by a power of recent popularity.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
from hotplate.offline.evaluate.metrics import (
    EQUAL_WITHIN_SE,
    LEADING_BY_SE,
    Values,
    leads_by,
    measure_users,
    standard_error,
)
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.matrix import History, UserItems, items_per_user, users_per_item
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.budget import BUDGET_BYTES, BUDGET_S, TRIAL_ITERATIONS, Budget, Cost, with_fewer_iterations
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    engine_of,
    estimate_fit_bytes,
    estimate_fit_s,
    recency_of,
    with_recency,
    without_recency,
)
from hotplate.offline.train.item_based import EASEParams, NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.repeats import RepeatSearch, choose_repeats
from hotplate.stores.verification import OnProgress, unreported

# A larger log is sampled by user.
_SEARCHED_PAIRS = 1_000_000
_EXTENSIONS = 3
# Pieces of a log, prefixes in time, that are split; with one, a single week decides.
_PIECES_IN_TIME = 2
# Fits of the best ALS cell that are kept for recency.
_MOST_KEPT_BYTES = 200e6
# Pairs of a tested user and any item that a trial ranks; users are sampled to remain below.
_MOST_RANKED_PAIRS = 60_000_000

# Each won on some real data and split.
_ALS_CELLS = ((128, 60.0, 6.0), (128, 150.0, 20.0), (128, 10.0, 1.3), (512, 30.0, 6.0))
_EASE_CELLS = (6.0, 20.0, 60.0)
_NEIGHBOUR_CELLS: tuple[tuple[NeighbourWeighting, tuple[int, ...]], ...] = (
    ("tfidf", (5, 10, 20, 100)),
    ("bm25", (5, 100)),
    ("rp3beta", (100,)),
)
_FEWEST_NEIGHBOURS = 5
# Twice the factors take two to three times as long.
_MOST_FACTORS = 512
# A fit takes 28 bytes for each.
_MOST_SIMILARITIES = 5_000_000
_WALK_STEP = 0.1
# In days.
_FIRST_HALF_LIVES = (2.0, 8.0)
# Further half-lives and powers of recency are this factor larger or smaller.
_RECENCY_STEP = 2.0
_SHORTEST_DAYS = 0.125
_LONGEST_DAYS = 512.0
_LOWEST_GAMMA = 0.125
_HIGHEST_GAMMA = 16.0


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

    @property
    def limit_s(self) -> float | None:
        """`budget_s`; unlimited (inf) if there are `cells` alone, None for the default."""
        return math.inf if self.cells and self.budget_s is None else self.budget_s


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

    @property
    def recency_power(self) -> float:
        """The power of recent popularity that multiplies scores, 0 without."""
        recency = recency_of(self.params)
        return 0.0 if recency is None else recency.gamma

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
        """The index of the recommended trial in `trials`.

        A trial leads another by its mean difference of nDCG per user, in standard errors. Engines other than popularity
        are personal: their lists differ by user. Recommended are:

        1. Popularity, if it leads the best personal trial by more than a 95 % interval.
        2. Else, if it leads the best personal trial without recency by so much, interactions follow trends. Then tests
           on the past come late, and of the personal trials only those with the highest power of recency are compared.
        3. Of the personal trials within 1.5 standard errors of the best one, the preferred one of `_preference`.
        """
        best_first = _sort_by_ndcg(self.trials)
        personal = [trial for trial in best_first if not isinstance(trial.params, PopularityParams)]
        popularity = [trial for trial in best_first if isinstance(trial.params, PopularityParams)]
        if not personal:
            return self.trials.index(popularity[0])

        if popularity:
            if popularity[0].leads_by(personal[0]) > LEADING_BY_SE:
                return self.trials.index(popularity[0])

            without_recency = [trial for trial in personal if not trial.recency_power]
            if without_recency and popularity[0].leads_by(without_recency[0]) > LEADING_BY_SE:
                most_recent = [trial for trial in personal if trial.recency_power == _HIGHEST_GAMMA]
                personal = most_recent or personal

        best = personal[0]
        as_good = [trial for trial in personal if best.leads_by(trial) <= EQUAL_WITHIN_SE]
        return self.trials.index(min(as_good, key=self._preference))

    def _preference(self, trial: Trial) -> tuple[float, ...]:
        """Return a sort key: of personal trials that are equally good, the one with the least key is recommended.

        Its parts, the most important first, are lower with recency, for ALS, for simpler parameters, for a higher power
        of recency, and for a half-life of recency nearer to that of the best popularity.
        """
        params = trial.params
        complexity = 0.0
        match params:
            case ALSParams():
                complexity = params.factors
            case EASEParams():
                complexity = -params.regularization  # weights are smaller with more of it
            case NeighbourParams():
                complexity = params.neighbours
        is_other_engine = float(not isinstance(params, ALSParams))

        recency = recency_of(params)
        if recency is None:
            return 1.0, is_other_engine, complexity, 0.0, 0.0
        popular_half_life = self.popular.half_life_days or recency.half_life_days
        half_life_distance = abs(math.log(recency.half_life_days / popular_half_life))
        return 0.0, is_other_engine, complexity, -recency.gamma, half_life_distance

    @property
    def best_of_each(self) -> tuple[int, ...]:
        """The index of each engine's best trial, the best first."""
        return tuple(self.trials.index(trial) for trial in _best_of_each_engine(self.trials))

    @property
    def popular(self) -> PopularityParams:
        """Popularity's best parameters, else its defaults."""
        for trial in _sort_by_ndcg(self.trials):
            if isinstance(trial.params, PopularityParams):
                return trial.params
        return PopularityParams()

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
    trials_folder: Path | None = None,
    evaluated: bool = False,
    on_trial: OnProgress = unreported,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Search | None:
    """Compare cells by the nDCG at *k* of their lists, on splits of *user_items* into train and test parts.

    A cell is an engine with its parameters. The cells of *tuning* are tried. If it has none, the default ones are, then
    cells beyond those if the best lie at the edge, and for a split in time the best cell of each engine with recency:
    with scores multiplied by a power of recent popularity. A log of more than a million pairs is sampled by user.

    user_items     the training part [users, items]; *history* are its rows with times
    options        the kind of split; the seed differs from that of the outer split
    defaults       ALS parameters of the first cell; all cells of ALS take their iterations and seed
    trials_folder  where trials are stored for repeated searches
    evaluated      whether the announced cost includes the evaluation after the search
    on_trial       called with the trials done and their expected total, which may grow
    on_notice      called with the estimated cost, the number of users if they are sampled, and the cells left out

    Returns None for too few pairs. Raises DataError if the folder cannot be written.
    """
    sample = _sample_users(user_items, history, _inner_split(options, pieces=_PIECES_IN_TIME))
    splits = sample.splits()
    if not splits:
        return None

    items = sample.user_items.shape[1]
    tries_recency = sample.options.in_time and not tuning.cells
    budget = Budget(splits, user_items, tuning.limit_s)
    cells = budget.affordable(tuning.cells or default_cells(defaults or ALSParams(), items, tuning.engine))
    cost_s = Cost(splits, user_items, cells).seconds(
        growth=1.0 if tuning.cells else budget.growth(cells),
        tries_recency=tries_recency,
        is_evaluated=evaluated,
        has_repeats=tries_recency and sample.has_repeats,
    )
    for notice in _notices(sample, user_items, len(cells), cost_s):
        on_notice(notice)

    on_trial(0, len(cells))
    digest = digest_of_search(sample.user_items, sample.history, sample.options, TRIAL_ITERATIONS, k)
    trials = _Trials(splits, k, trials_folder, digest, on_trial)
    _run_trials(trials, cells, budget, items, extends_cells=not tuning.cells, tries_recency=tries_recency)
    on_trial(len(trials.done), len(trials.done))

    if budget.left_out:
        on_notice(budget.limits)
    return Search(
        split=sample.options,
        k=k,
        trials=tuple(trials.done),
        left_out=tuple(budget.left_out),
        users=sample.user_items.shape[0] if sample.is_drawn else None,
    )


def _notices(sample: "_UserSample", user_items: UserItems, cells: int, cost_s: float) -> Iterator[str]:
    """Yield sentences on the cost of a search of a number of *cells*, and on the users it is of if they are drawn."""
    yield (
        f"searching {cells} cells on an inner {sample.options.kind} split, the evaluation and the last fit take "
        f"about {cost_s:.0f} s of a core; --no-tune skips the search"
    )
    if sample.is_drawn:
        users = sample.user_items.shape[0]
        yield f"the search is of {users:,} of {user_items.shape[0]:,} users, drawn at random, as the log is large"


def _run_trials(
    trials: "_Trials", cells: Sequence[Params], budget: Budget, items: int, *, extends_cells: bool, tries_recency: bool
) -> None:
    """Try *cells*, then if it *extends_cells* those past their edge, and if it *tries_recency* the best with recency.

    A cell past the edge has a larger value of a parameter than all others, or a smaller one. It is tried if the best
    cell of its engine lies at the edge, at most three times.
    """
    # At least one trial with recency follows the others.
    expected_later = int(tries_recency)
    trials.run(cells, expected_later=expected_later)
    if extends_cells:
        for _ in range(_EXTENSIONS):
            best_first = [trial.params for trial in _sort_by_ndcg(trials.done)]
            trials.run(budget.affordable(cells_past_edge(best_first, items)), expected_later=expected_later)
    if tries_recency:
        _try_recency(trials, budget)


def _try_recency(trials: "_Trials", budget: Budget) -> None:
    """Try the best parameters of each engine with recency: scores multiplied by a power of recent popularity.

    The next half-lives and powers of an engine depend on its trials so far. It is done when there are none that may
    help, or *budget* is spent. All trials are added to *trials*. Popularity comes first, as the other engines start
    from its best half-life.
    """
    best_of_engines = [trial.params for trial in _best_of_each_engine(trials.done)]
    # Fits of ALS are kept in memory until another engine is fitted.
    best_of_engines.sort(key=lambda params: not isinstance(params, ALSParams))
    best_of_engines.sort(key=lambda params: not isinstance(params, PopularityParams))
    popularity: PopularityParams | None = None
    for params in best_of_engines:
        tried = list[Trial]()
        cells = budget.affordable_recencies(cells_with_recency(params, tried, popularity))
        while cells:
            tried += trials.run(cells, expected_later=1)
            cells = budget.affordable_recencies(cells_with_recency(params, tried, popularity))

        if tried:
            best = max(tried, key=lambda trial: trial.ndcg).params
            if isinstance(best, PopularityParams):
                popularity = best


def inner_splits(user_items: UserItems, history: History | None, options: SplitOptions) -> list[Parts]:
    """Return the inner splits of a search with *options*; none if a part of one is empty."""
    return _sample_users(user_items, history, _inner_split(options, pieces=_PIECES_IN_TIME)).splits()


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

    *user_items* and *history* (its rows with times) are split once more by time. The engine of *params* is fitted to
    the train part with fewer iterations, and lists of *k* items are compared by their nDCG on the test part. A large
    log is sampled by user. Neighbours are fitted instead if the fit takes half of a search's time, or too much memory.

    With the half-life of *popular*, own choices weighed by the item's recent popularity are tried, too. Returns
    None without times, for a split (*options*) that is not by time, and if no tested pair is a repeat.
    """
    if history is None or not options.in_time:
        return None

    repeats_split = replace(_inner_split(options, pieces=1), repeats=True)
    splits = _sample_users(user_items, history, repeats_split).splits()
    if not splits:
        return None
    (parts,) = splits  # there is one piece
    if not parts.is_repeat.any():
        return None

    fitted = with_fewer_iterations(params)
    if estimate_fit_s(fitted, parts.train) > BUDGET_S / 2 or estimate_fit_bytes(fitted, parts.train) > BUDGET_BYTES:
        fitted = NeighbourParams(recency=recency_of(params))
    ranker = fit_parts(parts, fitted)

    half_life_days = None if popular is None else popular.half_life_days
    return choose_repeats(parts, ranker, k, half_life_days)


class _UserSample(NamedTuple):
    """The interactions of a search's users, all of them or, if it *is_drawn*, some, and the options of its split."""

    user_items: UserItems
    history: History | None
    options: SplitOptions
    is_drawn: bool

    @property
    def has_repeats(self) -> bool:
        """Whether there are more rows than pairs."""
        return self.history is not None and len(self.history.times) > self.user_items.nnz

    def splits(self) -> list[Parts]:
        """Return a split for each piece, a prefix of the log in time; none if the train or test part of one is empty.

        Tested users are sampled, as each is ranked against all items.
        """
        splits = list[Parts]()
        pieces = self.options.by_piece
        most_users = max(1, _MOST_RANKED_PAIRS // (self.user_items.shape[1] * len(pieces)))
        for options in pieces:
            parts = split(self.user_items, self.history, options)
            if parts.is_empty:
                return []
            splits.append(parts.sampled(most_users, self.options.seed))
        return splits


def _sample_users(user_items: UserItems, history: History | None, options: SplitOptions) -> _UserSample:
    """Draw the users of a search at random, with a million pairs in all, and leave out items that none of them has.

    *history* are the rows of *user_items* with times. With fewer pairs, all users and items remain. The minimum number
    of users per item in *options* is meant for all users, so it is dropped for a sample.
    """
    if user_items.nnz <= _SEARCHED_PAIRS:
        return _UserSample(user_items, history, options, is_drawn=False)

    counts = items_per_user(user_items)
    order = np.random.default_rng(options.seed).permutation(len(counts))
    sampled_users = int(np.searchsorted(np.cumsum(counts[order]), _SEARCHED_PAIRS))
    is_sampled = np.zeros(len(counts), dtype=np.bool_)
    is_sampled[order[:sampled_users]] = True

    pairs = user_items[is_sampled]
    has_users = users_per_item(pairs) > 0
    pairs = pairs[:, has_users]
    pairs.has_canonical_format = True
    rows = None if history is None else history.renumbered(is_sampled, has_users)
    return _UserSample(pairs, rows, replace(options, min_per_item=1), is_drawn=True)


class _Trials:
    """Runs trials of one search on *splits*, with lists of *k*.

    They are stored in *folder*, if any, by the *key* of the data and settings; all of them are in `done`, in order.
    *on_trial* is called with the number of trials done and the expected total.
    """

    def __init__(self, splits: Sequence[Parts], k: int, folder: Path | None, key: str, on_trial: OnProgress) -> None:
        self._splits = splits
        self._k = k
        self._folder = folder
        self._key = key
        self._on_trial = on_trial
        self._fits = _Fits(splits)
        self.done: list[Trial] = []

    def run(self, cells: Sequence[Params], *, expected_later: int) -> list[Trial]:
        """Try *cells* and return their trials; *expected_later* trials are expected to follow."""
        expected_total = len(self.done) + len(cells) + expected_later
        trials = list[Trial]()
        for params in cells:
            trial = self._stored_or_measured(params)
            trials.append(trial)
            self.done.append(trial)
            self._on_trial(len(self.done), expected_total)
        return trials

    def _stored_or_measured(self, params: Params) -> Trial:
        """Return the trial of *params* stored in the folder; else measure it, and store it if there is a folder.

        `_key` is a digest of the data and settings. With the parameters, it names the file, so this is never out of
        date. A file holds the seconds of the trial, and then the nDCG of each user.
        """
        params_of_trial = with_fewer_iterations(params)
        iterations = params_of_trial.iterations if isinstance(params_of_trial, ALSParams) else None

        file = None
        if self._folder is not None:
            name = blake2b(f"{self._key} {params!r}".encode(), digest_size=16).hexdigest()
            file = self._folder / f"{name}.npy"
            with suppress(OSError, ValueError, EOFError, IndexError):  # missing or half-written
                stored = np.load(file, allow_pickle=False)
                return Trial(params, iterations, per_user=stored[1:], seconds=float(stored[0]))

        start = perf_counter()
        per_user = self._measure_ndcg(params_of_trial)
        trial = Trial(params, iterations, per_user=per_user, seconds=round(perf_counter() - start, 3))
        if file is not None:
            _store_trial(file, trial)
        return trial

    def _measure_ndcg(self, params: Params) -> Values:
        """Return nDCG per user of all splits, zeros if *params* cannot be fitted."""
        rankers = self._fits.rankers(params)
        values = list[Values]()
        try:
            for parts in self._splits:
                # The ranker is released before the next fit.
                lists = recommend_all(next(rankers), parts, self._k)
                values.append(measure_users(lists, parts.test).values["ndcg"])
        except DataError:
            return np.zeros(sum(len(parts.tested) for parts in self._splits))
        ndcg = np.concatenate(values)
        self._fits.keep_if_best(params, float(ndcg.mean()))
        return ndcg


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

        Recency multiplies the scores of a fitted model by recent popularity, so trials that differ in it alone share a
        fit, which is kept. Small fits of ALS are kept, too, as trials of recency need the best one again. Others are
        fitted one at a time, to save memory.
        """
        recency = recency_of(params)
        if recency is not None:
            fitted = self._kept_or_fitted(without_recency(params))
            for ranker, parts, times in zip(fitted, self._splits, self._times, strict=True):
                yield with_recency(ranker, recency.weights(parts.train, times))
            return

        is_kept = isinstance(params, ALSParams) and self._fits_bytes(params) <= _MOST_KEPT_BYTES
        if is_kept:
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
        """Return the kept rankers of *plain*, or None; separate, so that no variable keeps others alive."""
        for fitted in (self._last, self._best):
            if fitted is not None and fitted.params == plain:
                return fitted.rankers
        return None

    def _fits_bytes(self, params: Params) -> int:
        """Estimate the memory of the rankers of *params* for all splits."""
        return sum(estimate_fit_bytes(params, parts.train) for parts in self._splits)


def _store_trial(path: Path, trial: Trial) -> None:
    """Write the seconds and then the nDCG of each user; raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.r_[trial.seconds, trial.per_user], allow_pickle=False)
    except OSError as error:
        raise DataError(f"The trials cannot be written to {path.parent}: {error.strerror or error}.") from error


def _sort_by_ndcg(trials: Sequence[Trial]) -> list[Trial]:
    """Return *trials*, the best first."""
    return sorted(trials, key=lambda trial: -trial.ndcg)


def _best_of_each_engine(trials: Sequence[Trial]) -> list[Trial]:
    """Return each engine's best trial, the best first."""
    best: dict[Engine, Trial] = {}
    for trial in _sort_by_ndcg(trials):
        best.setdefault(engine_of(trial.params), trial)
    return list(best.values())


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


def digest_of_search(user_items: UserItems, history: History | None, *settings: object) -> str:
    """Return a hexadecimal digest of interactions, their rows, *settings* (by repr) and the versions of libraries.

    Trials with the same digest have the same result.
    """
    versions = [version(name) for name in ("hotplate", "implicit", "numpy", "scipy")]
    weighing = None if history is None else history.weighing
    digest = blake2b(repr((user_items.shape, settings, weighing, versions)).encode(), digest_size=16)
    rows = () if history is None else (history.pair_numbers, history.times, history.weights, history.ended)
    for array in (user_items.indptr, user_items.indices, user_items.data, *rows):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def default_cells(defaults: ALSParams, items: int, engine: Engine | None = None) -> list[Params]:
    """Return the default cells, engines with parameters, of all engines or of one *engine*.

    The first one is *defaults*; other cells of ALS take its iterations and seed. None has more factors than there are
    *items* in the catalogue, and none more neighbours, but for the fewest.
    """
    cells: list[Params] = [defaults]
    for most_factors, regularization, alpha in _ALS_CELLS:
        factors = min(most_factors, items)
        cells.append(replace(defaults, factors=factors, regularization=regularization, alpha=alpha))
    cells += [EASEParams(regularization) for regularization in _EASE_CELLS]
    for weighting, numbers in _NEIGHBOUR_CELLS:
        cells += [NeighbourParams(weighting, number) for number in numbers if number <= max(items, _FEWEST_NEIGHBOURS)]
    cells.append(PopularityParams())
    return [params for params in dict.fromkeys(cells) if engine in (None, engine_of(params))]


def cells_past_edge(best_first: Sequence[Params], items: int) -> list[Params]:
    """Return cells to try next, for each engine whose best one has the largest or smallest value of a parameter.

    *best_first* are the cells tried, engines with parameters; there are *items* in the catalogue. The two powers of
    rp3beta, a kind of neighbours, are always searched around its best cell.
    """
    als = [params for params in best_first if isinstance(params, ALSParams)]
    ease = [params for params in best_first if isinstance(params, EASEParams)]
    neighbours = [params for params in best_first if isinstance(params, NeighbourParams)]
    rp3beta = [params for params in neighbours if params.weighting == "rp3beta"]

    cells: list[Params] = []
    if als:
        cells += _als_past_edge(als, items)
    if ease:
        cells += _ease_past_edge(ease)
    if neighbours:
        cells += _neighbours_past_edge(neighbours, items)
    if rp3beta:
        cells += _powers_around(rp3beta[0])
    return [params for params in dict.fromkeys(cells) if params not in best_first]


def _als_past_edge(best_first: Sequence[ALSParams], items: int) -> Iterator[Params]:
    """Yield the best of the parameters tried with twice the factors, and with 512, unless there are fewer *items*.

    If its alpha is the largest one tried, it is also yielded with alpha and regularization doubled; if it is the
    smallest, with both halved.
    """
    best = best_first[0]
    for factors in (2 * best.factors, _MOST_FACTORS):
        if best.factors < factors <= min(_MOST_FACTORS, items):
            yield replace(best, factors=factors)
    for scale in _scales_past_edge([params.alpha for params in best_first], 2, 0.5):
        yield replace(best, regularization=scale * best.regularization, alpha=scale * best.alpha)


def _ease_past_edge(best_first: Sequence[EASEParams]) -> Iterator[Params]:
    """Yield a larger or smaller regularization, if the best one is at an edge."""
    for scale in _scales_past_edge([params.regularization for params in best_first], 3, 1 / 3):
        yield EASEParams(float(f"{scale * best_first[0].regularization:.3g}"))


def _neighbours_past_edge(best_first: Sequence[NeighbourParams], items: int) -> Iterator[Params]:
    """Yield the best of the parameters tried with more or fewer neighbours, if its number is at an edge.

    The edge is that of trials with the same other parameters. A model of all *items* keeps at most 5 million
    similarities, for its memory.
    """
    best = best_first[0]
    # Of parameters that differ from the best in the number of neighbours alone.
    numbers = [params.neighbours for params in best_first if replace(params, neighbours=best.neighbours) == best]
    most_neighbours = max(2, min(items, _MOST_SIMILARITIES // items))
    for scale in _scales_past_edge(numbers, 5, 0.5):
        yield replace(best, neighbours=int(np.clip(scale * best.neighbours, 2, most_neighbours)))


def _powers_around(walk: NeighbourParams) -> Iterator[Params]:
    """Yield the neighbouring powers of a random walk."""
    for alpha_step, beta_step in ((_WALK_STEP, 0), (-_WALK_STEP, 0), (0, _WALK_STEP), (0, -_WALK_STEP)):
        alpha = round(walk.walk_alpha + alpha_step, 2)
        beta = round(walk.walk_beta + beta_step, 2)
        if alpha > 0 and beta >= 0:
            yield replace(walk, walk_alpha=alpha, walk_beta=beta)


def _scales_past_edge(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return *up* if the first of *values*, the best one, is the largest, and *down* if it is the smallest."""
    scales = []
    if values[0] == max(values):
        scales.append(up)
    if values[0] == min(values):
        scales.append(down)
    return scales


def cells_with_recency(
    params: Params, tried: Sequence[Trial], popularity: PopularityParams | None = None
) -> list[Params]:
    """Return *params* with half-lives and powers of recency to try next, without those *tried*; none at the end.

    Recency multiplies scores by a power (gamma) of recent popularity, halved per half-life. First come two half-lives,
    and the highest power at the half-life of *popularity*. After trials, it is half-lives and powers around the best
    trial, and higher powers as long as they are as good.
    """
    if tried:
        timings = list(_timings_around_best(tried))
    else:
        timings = [_Timing(half_life_days, gamma=1.0) for half_life_days in _FIRST_HALF_LIVES]
        if popularity is not None and popularity.half_life_days is not None:
            timings.append(_Timing(popularity.half_life_days, _HIGHEST_GAMMA))

    known_cells = {trial.params for trial in tried}
    cells = list[Params]()
    for timing in timings:
        if not timing.is_in_range:
            continue
        cell: Params = PopularityParams(timing.half_life_days)
        if not isinstance(params, PopularityParams):
            cell = replace(params, recency=Recency(timing.half_life_days, timing.gamma))
        if cell not in known_cells:
            known_cells.add(cell)
            cells.append(cell)
    return cells


class _Timing(NamedTuple):
    """The half-life of recent popularity in days, and the power (*gamma*) of it that multiplies scores."""

    half_life_days: float
    gamma: float

    @property
    def is_in_range(self) -> bool:
        """Whether it may be tried."""
        return _SHORTEST_DAYS <= self.half_life_days <= _LONGEST_DAYS and _LOWEST_GAMMA <= self.gamma <= _HIGHEST_GAMMA


def _timings_around_best(tried: Sequence[Trial]) -> Iterator[_Timing]:
    """Yield twice and half the half-life of the best of the trials of an engine, and twice and half its power.

    Popularity has no power. For other engines, a trial that is as good as the best one, with the same half-life and at
    least its power, is followed by one with twice that power, too.
    """
    best = max(tried, key=lambda trial: trial.ndcg)
    half_life_days, gamma = _timing_of(best.params)
    yield _Timing(half_life_days * _RECENCY_STEP, gamma)
    yield _Timing(half_life_days / _RECENCY_STEP, gamma)
    if isinstance(best.params, PopularityParams):
        return

    yield _Timing(half_life_days, gamma * _RECENCY_STEP)
    yield _Timing(half_life_days, gamma / _RECENCY_STEP)
    for trial in tried:
        if _is_as_good_and_recent(trial, best):
            yield _Timing(half_life_days, _timing_of(trial.params).gamma * _RECENCY_STEP)


def _is_as_good_and_recent(trial: Trial, best: Trial) -> bool:
    """Return whether *trial* has the half-life of *best*, a power as high, and cannot be told apart from it."""
    timing = _timing_of(trial.params)
    best_timing = _timing_of(best.params)
    is_as_recent = timing.half_life_days == best_timing.half_life_days and timing.gamma >= best_timing.gamma
    return is_as_recent and best.leads_by(trial) <= EQUAL_WITHIN_SE


def _timing_of(params: Params) -> _Timing:
    """Return the half-life and the power of recency of a cell; defaults of 1 without."""
    if isinstance(params, PopularityParams):
        return _Timing(params.half_life_days or 1.0, 1.0)
    recency = recency_of(params)
    return _Timing(1.0, 1.0) if recency is None else _Timing(recency.half_life_days, recency.gamma)

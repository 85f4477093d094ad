"""The search for an engine and its parameters within a budget."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from hotplate.offline.evaluate.metrics import EQUAL, LEADING, Values, leads_by, measure_users, standard_error
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.matrix import History, Times, UserItems, are_among, cells_of, users_per_item
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    engine_of,
    fit_bytes,
    fit_s,
    rank_s,
    recency_of,
    with_recency,
)
from hotplate.offline.train.item_based import EASEParams, NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.repeats import RepeatSearch
from hotplate.offline.train.repeats import search as choose_repeats
from hotplate.stores.folders import room_bytes
from hotplate.stores.verification import OnProgress, unreported

# A larger log is sampled by user.
_SEARCHED_PAIRS = 1_000_000
# Ranks cells as well as more iterations, in half of the time.
_EXPLORING = 8
_EXTENSIONS = 3
# Cuts of a split by time; with one, a single week decides.
_CUTS = 2
# Budget: seconds of a core for cells, share of that for recency, bytes of a fit, seconds of the last fit.
_BUDGET_S = 36.0
_RECENCY = 0.4
_BUDGET_BYTES = 650e6
_LAST_FIT_S = 900.0
# Measured: cost of all cells by that of the first ones, and trials of recency per engine.
_GROWTH = 1.6
_RECENCIES = 10
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
_MOST_SIMILARITIES = 10_000_000
_WALK_STEP = 0.1
# First half-lives in days; steps multiply.
_HALF_LIVES = (2.0, 8.0)
_STEP = 2.0
_SHORTEST_DAYS, _LONGEST_DAYS = 0.125, 512.0
_LEAST_GAMMA, _MOST_GAMMA = 0.125, 16.0


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What to search.

    cells     to try; () for the default cells, extended beyond their edge
    engine    the only one to try
    budget_s  estimated seconds of a core; None for 36 and 40 % of it for recency, unlimited for *cells*
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
    def best(self) -> int:
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
        recency = recency_of(self.trials[number].params)
        return 0.0 if recency is None else recency.gamma

    def _preference(self, number: int) -> tuple[float, ...]:
        """Return a key that is least for the cell to prefer among equals."""
        params = self.trials[number].params
        size = 0.0
        match params:
            case ALSParams():
                size = params.factors
            case EASEParams():
                size = -params.regularization
            case NeighbourParams():
                size = params.neighbours
        recency = recency_of(params)
        if recency is None:
            return 1.0, float(not isinstance(params, ALSParams)), size, 0.0, 0.0
        days = self.popular.half_life_days or recency.half_life_days
        distance = abs(math.log(recency.half_life_days / days))
        return 0.0, float(not isinstance(params, ALSParams)), size, -recency.gamma, distance

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
    """Compare cells on an inner split of *user_items*, of the kind of *options*.

    Logs of more than a million pairs are sampled by user. In a split by time, the best cell of each engine is tried
    with recency. The folder *kept* stores trials for repeated searches. *defaults* give iterations and seed of ALS.
    *on_trial* is called with (done, total), which may grow; *on_notice* with the cost, including *evaluations* and the
    last fit, and with the cells beyond the budget. Returns None for too few pairs. Raises DataError if the folder
    cannot be written.
    """
    defaults = defaults or ALSParams()
    # The outer seed holds back the same pairs.
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=_CUTS, repeats=False)
    searched, past, inner = _drawn(user_items, history, inner)
    splits = _splits(searched, past, inner)
    if not splits:
        return None
    items, is_recent = searched.shape[1], inner.in_time and not tuning.cells
    budget = _Budget(splits, user_items, tuning)
    cells = budget.affordable(tuning.cells or default_cells(defaults, items, tuning.engine))
    on_notice(budget.announced(cells, inner.kind, evaluations, is_recent=is_recent))
    users = searched.shape[0] if searched is not user_items else None
    if users:
        on_notice(f"the search is of {users:,} of {user_items.shape[0]:,} users, drawn at random, as the log is large")
    on_trial(0, len(cells))
    known = _Trials(splits, k, kept, digest_of(searched, past, inner, _EXPLORING, k))
    trials = known.made
    known.run(cells, on_trial, int(is_recent))
    for _ in range(0 if tuning.cells else _EXTENSIONS):
        more = budget.affordable(beyond([trials[number].params for number in _by_ndcg(trials)], items))
        known.run(more, on_trial, int(is_recent))
    if is_recent:
        _add_recency(known, budget, on_trial)
    on_trial(len(trials), len(trials))
    if budget.left_out:
        on_notice(budget.sentence())
    return Search(inner, k, tuple(trials), tuple(budget.left_out), users)


def _add_recency(known: "_Trials", budget: "_Budget", on_trial: OnProgress) -> None:
    """Try the best cell of each engine with recency; popularity's half-life comes first, as others start from it."""
    best = [known.made[number].params for number in _best_of_each(known.made)]
    popular: PopularityParams | None = None
    for params in sorted(best, key=lambda params: not isinstance(params, PopularityParams)):
        tried: dict[Params, Trial] = {}
        while waiting := budget.recencies(more_recency(params, tried, popular)):
            tried |= {trial.params: trial for trial in known.run(waiting, on_trial, 1)}
        if isinstance(params, PopularityParams) and tried:
            popular = max(tried, key=lambda each: tried[each].ndcg)  # type: ignore[assignment]  # all are popularity's


def inner_parts(
    user_items: UserItems, history: History | None, options: SplitOptions, *, repeats: bool = False
) -> Parts | None:
    """Return one inner split, perhaps with *repeats* in its test; None if a part is empty."""
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=1, piece=0, repeats=repeats)
    drawn, past, inner = _drawn(user_items, history, inner)
    parts = split(drawn, past, inner).sampled(max(1, _RANKED // drawn.shape[1]), inner.seed)
    return parts if parts.train.nnz and parts.test.nnz else None


def search_repeats(
    user_items: UserItems,
    history: History | None,
    options: SplitOptions,
    params: Params,
    *,
    k: int,
    popular: PopularityParams | None = None,
) -> RepeatSearch | None:
    """Choose how a user's own interactions count in lists of *params* that keep seen items.

    Recent popularity has the half-life of *popular*.

    Returns None without times or repeats. Neighbours replace a fit beyond the budget.
    """
    parts = inner_parts(user_items, history, options, repeats=True) if history is not None and options.in_time else None
    if parts is None or not are_among(cells_of(parts.train), cells_of(parts.test)).any():
        return None
    tried = _exploring(params)
    if fit_s(tried, parts.train) > _BUDGET_S / 2 or fit_bytes(tried, parts.train) > _BUDGET_BYTES:
        tried = NeighbourParams(recency=recency_of(params))
    half_life_days = None if popular is None else popular.half_life_days
    return choose_repeats(parts, fit_parts(parts, tried), k, half_life_days)


def _drawn(
    user_items: UserItems, history: History | None, options: SplitOptions
) -> tuple[UserItems, History | None, SplitOptions]:
    """Draw users, and leave out the minimum per item, which is of all users."""
    has = np.diff(user_items.indptr)
    if user_items.nnz <= _SEARCHED_PAIRS:
        return user_items, history, options
    order = np.random.default_rng(options.seed).permutation(len(has))
    users = np.zeros(len(has), dtype=np.bool_)
    users[order[: int(np.searchsorted(np.cumsum(has[order]), _SEARCHED_PAIRS))]] = True
    some = user_items[users]
    items = users_per_item(some) > 0
    some = some[:, items]
    some.has_canonical_format = True
    drawn = None if history is None else history.renumbered(users, items)
    return some, drawn, replace(options, min_per_item=1)


def _splits(user_items: UserItems, history: History | None, options: SplitOptions) -> list[Parts]:
    found = []
    for each in options.draws:
        parts = split(user_items, history, each)
        if not (parts.train.nnz and parts.test.nnz):
            return []
        most = max(1, _RANKED // (user_items.shape[1] * len(options.draws)))
        found.append(parts.sampled(most, options.seed))
    return found


class _Trials:
    """Keeps trials in *folder*, and the last fit."""

    def __init__(self, splits: Sequence[Parts], k: int, folder: Path | None, key: str) -> None:
        self._splits, self._k = splits, k
        self._folder, self._key = folder, key
        self._learnt: tuple[Params, list[tuple[Ranker, Times | None]]] | None = None
        self.made: list[Trial] = []

    def run(self, cells: Sequence[Params], on_trial: OnProgress, to_come: int) -> list[Trial]:
        for at, params in enumerate(cells, 1):
            self.made.append(self._trial(params))
            on_trial(len(self.made), len(self.made) + len(cells) - at + to_come)
        return self.made[len(self.made) - len(cells) :]

    def _trial(self, params: Params) -> Trial:
        tried = _exploring(params)
        iterations = tried.iterations if isinstance(tried, ALSParams) else None
        name = blake2b(f"{self._key} {params!r}".encode(), digest_size=16).hexdigest()
        kept = None if self._folder is None else self._folder / f"{name}.npy"
        with suppress(OSError, ValueError, EOFError):  # missing or half-written
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
        try:
            # Each ranker is released before the next fit.
            values = [_ndcg(self._ranker(params, number), parts, self._k) for number, parts in enumerate(self._splits)]
            return np.concatenate(values)
        except DataError:
            return np.zeros(sum(int(np.count_nonzero(np.diff(parts.test.indptr))) for parts in self._splits))

    def _ranker(self, params: Params, number: int) -> Ranker:
        """Return *params* fitted to a split; with recency, the fits without are kept."""
        parts = self._splits[number]
        recency = recency_of(params)
        if recency is None or isinstance(params, PopularityParams):
            return fit_parts(parts, params)
        plain = replace(params, recency=None)
        if self._learnt is None or self._learnt[0] != plain:
            self._learnt = None
            self._learnt = plain, [(fit_parts(each, plain), each.train_times) for each in self._splits]
        ranker, times = self._learnt[1][number]
        return with_recency(ranker, recency.weights(parts.train, times))


def _write(path: Path, trial: Trial) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.r_[trial.seconds, trial.per_user], allow_pickle=False)
    except OSError as error:
        raise DataError(f"The trials cannot be written to {path.parent}: {error.strerror or error}.") from error


class _Budget:
    """The budget of a search, by estimates that do not depend on the machine."""

    def __init__(self, splits: Sequence[Parts], user_items: UserItems, options: TuneOptions) -> None:
        self._splits = [(each.train, each.seen[np.flatnonzero(np.diff(each.test.indptr))]) for each in splits]
        self._user_items = user_items
        self.total_s = options.budget_s or (math.inf if options.cells else _BUDGET_S)
        self.most_bytes = _BUDGET_BYTES if options.budget_s is None and not options.cells else float(room_bytes())
        self._left = {"cells": self.total_s, "recency": _RECENCY * self.total_s}
        self._growth = 1.0 if options.cells else _GROWTH
        self.left_out: dict[Params, None] = {}

    def affordable(self, cells: Sequence[Params]) -> list[Params]:
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
        return [params for params in cells if self._take("recency", self._ranks(params))]

    def announced(self, cells: Sequence[Params], kind: str, evaluations: int, *, is_recent: bool) -> str:
        dearest = {engine_of(params): params for params in sorted(cells, key=self._trial_s)}.values()
        seconds = min(self.total_s, self._growth * sum(map(self._trial_s, cells)))
        if is_recent:
            ranks = _RECENCIES * sum(map(self._ranks, dearest))
            seconds += min(_RECENCY * self.total_s, ranks)
        whole = [fit_s(params, self._user_items) for params in dearest]
        seconds += evaluations * sum(whole) + max(whole, default=0)
        return (
            f"searching {len(cells)} cells on an inner {kind} split, the evaluation and the last fit take about "
            f"{seconds:.0f} s of a core; --no-tune skips the search"
        )

    def sentence(self) -> str:
        engines = Counter(map(engine_of, self.left_out))
        counts = ", ".join(f"{count} of {engine}" for engine, count in engines.items())
        return (
            f"not tried within {self.total_s:.0f} s of a core, {self.most_bytes / 1e9:.1f} GB, and {_LAST_FIT_S:.0f} s "
            f"of a last fit: {counts}; --tune SECONDS allows more"
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
    return replace(params, iterations=min(_EXPLORING, params.iterations)) if isinstance(params, ALSParams) else params


def _ndcg(ranker: Ranker, parts: Parts, k: int) -> Values:
    return measure_users(recommend_all(ranker, parts, k), parts.test).values["ndcg"]


def _by_ndcg(trials: Sequence[Trial]) -> list[int]:
    return sorted(range(len(trials)), key=lambda number: -trials[number].ndcg)


def _best_of_each(trials: Sequence[Trial]) -> tuple[int, ...]:
    best: dict[Engine, int] = {}
    for number in _by_ndcg(trials):
        best.setdefault(engine_of(trials[number].params), number)
    return tuple(best.values())


def _to_json(trial: Trial) -> dict[str, Any]:
    figures = {name: getattr(trial, name) for name in ("iterations", "ndcg", "se", "seconds")}
    return {"engine": engine_of(trial.params), "params": asdict(trial.params), **figures}


def digest_of(user_items: UserItems, history: History | None, *settings: object) -> str:
    """Return a digest of data, settings (by repr) and library versions."""
    versions = [version(name) for name in ("hotplate", "implicit", "numpy", "scipy")]
    weighing = None if history is None else history.weighing
    digest = blake2b(repr((user_items.shape, settings, weighing, versions)).encode(), digest_size=16)
    rows = () if history is None else (history.cells, history.times, history.weights, history.ended)
    for array in (user_items.indptr, user_items.indices, user_items.data, *rows):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def default_cells(defaults: ALSParams, items: int, engine: Engine | None = None) -> list[Params]:
    """Return the default cells, perhaps of one *engine*."""
    als = (
        replace(defaults, factors=min(factors, items), regularization=regularization, alpha=alpha)
        for factors, regularization, alpha in _ALS
    )
    neighbours = (
        NeighbourParams(weighting, number)
        for weighting, numbers in _NEIGHBOURS
        for number in numbers
        if number <= max(items, _FEWEST)
    )
    ease = (EASEParams(regularization) for regularization in _EASE)
    cells: dict[Params, None] = dict.fromkeys((defaults, *als, *ease, *neighbours, PopularityParams()))
    return [params for params in cells if engine in (None, engine_of(params))]


def beyond(ranked: Sequence[Params], items: int) -> list[Params]:
    """Return new cells if an engine's best cell, its first in *ranked*, lies at the edge.

    The powers of rp3beta are always searched around its best cell.
    """
    als = [params for params in ranked if isinstance(params, ALSParams)]
    ease = [params for params in ranked if isinstance(params, EASEParams)]
    neighbours = [params for params in ranked if isinstance(params, NeighbourParams)]
    found: list[Params] = []
    for best in als[:1]:
        # The best regularization and alpha are kept.
        more = (factors for factors in (2 * best.factors, _MOST_FACTORS) if factors <= min(_MOST_FACTORS, items))
        found += [replace(best, factors=factors) for factors in more if factors > best.factors]
        for times in _past([params.alpha for params in als], 2, 0.5):
            found.append(replace(best, regularization=times * best.regularization, alpha=times * best.alpha))
    for times in _past([params.regularization for params in ease], 3, 1 / 3):
        found.append(EASEParams(float(f"{times * ease[0].regularization:.3g}")))
    alike = [
        each.neighbours for each in neighbours if replace(each, neighbours=2) == replace(neighbours[0], neighbours=2)
    ]
    for times in _past(alike, 5, 0.5):
        number = int(np.clip(times * alike[0], 2, max(2, min(items, _MOST_SIMILARITIES // items))))
        found.append(replace(neighbours[0], neighbours=number))
    for walk in [params for params in neighbours if params.weighting == "rp3beta"][:1]:
        for alpha, beta in ((_WALK_STEP, 0), (-_WALK_STEP, 0), (0, _WALK_STEP), (0, -_WALK_STEP)):
            powers = round(walk.walk_alpha + alpha, 2), round(walk.walk_beta + beta, 2)
            if powers[0] > 0 and powers[1] >= 0:
                found.append(replace(walk, walk_alpha=powers[0], walk_beta=powers[1]))
    return [params for params in dict.fromkeys(found) if params not in ranked]


def _past(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return factors that move the first of *values*, the best one, beyond all others; none inside the range."""
    return [times for times, edge in ((up, max), (down, min)) if values and values[0] == edge(values)]


def more_recency(
    params: Params, tried: Mapping[Params, Trial], popular: PopularityParams | None = None
) -> list[Params]:
    """Return *params* with recencies to try next, given the trials of those *tried*.

    First half-lives, and the highest power at the half-life of *popular*; then half-lives and powers around the best,
    and higher powers as long as they equal it.
    """
    near = [(half_life, 1.0) for half_life in _HALF_LIVES]
    if popular is not None and popular.half_life_days is not None:
        near.append((popular.half_life_days, _MOST_GAMMA))
    if tried:
        best = max(tried.values(), key=lambda trial: trial.ndcg)
        days, gamma = _timing(best.params)
        near = [(days * _STEP, gamma), (days / _STEP, gamma)]
        if not isinstance(params, PopularityParams):
            near += [(days, gamma * _STEP), (days, gamma / _STEP)]
            near += [(days, _timing(trial.params)[1] * _STEP) for trial in tried.values() if _equals(trial, best)]
    found = [
        PopularityParams(days)
        if isinstance(params, PopularityParams)
        else replace(params, recency=Recency(days, gamma))
        for days, gamma in near
        if _SHORTEST_DAYS <= days <= _LONGEST_DAYS and _LEAST_GAMMA <= gamma <= _MOST_GAMMA
    ]
    return [each for each in dict.fromkeys(found) if each not in tried]


def _equals(trial: Trial, best: Trial) -> bool:
    """Return whether *trial* has the half-life of *best*, a power as high, and cannot be told apart from it."""
    days, gamma = _timing(trial.params)
    best_days, best_gamma = _timing(best.params)
    return days == best_days and gamma >= best_gamma and best.leads_by(trial) <= EQUAL


def _timing(params: Params) -> tuple[float, float]:
    if isinstance(params, PopularityParams):
        return params.half_life_days or 1.0, 1.0
    recency = recency_of(params)
    return (1.0, 1.0) if recency is None else (recency.half_life_days, recency.gamma)

"""The search for an engine and its parameters: cells are compared on an inner split of what may be learnt from."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from hotplate.offline.errors import DataError, SettingError, require_at_least
from hotplate.offline.evaluate.evaluation import fit_parts, recommend_all
from hotplate.offline.evaluate.metrics import Values, measure_users
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.matrix import History, Times, UserItems
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.cells import beyond, default_cells, draw
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    described,
    engine_of,
    fit_bytes,
    fit_s,
    params_from,
    rank_s,
    recency_of,
    with_recency,
)
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.stores.verification import OnProgress, unreported

# Above so many pairs a search takes minutes to hours, so it must be requested.
MAX_PAIRS = 1_000_000
# As many iterations rank cells as the full number does, in half of the time.
_EXPLORING = 8
# Lists that are the same for everybody are simpler: personal lists must be better by so much.
_SIMPLER_WORTH = 1.01
_EXTENSIONS = 3
# Recency is tried with these half-lives in days first, then with others and other powers around the best.
_HALF_LIVES = (2.0, 8.0)
_FIRST_GAMMA = 1.0
_STEP = 2.0
_SHORTEST_DAYS = 0.125
_LONGEST_DAYS = 512.0
_LEAST_GAMMA = 0.125
_MOST_GAMMA = 4.0
# As a rule an engine has so many trials with recency: the first two, four around the better one, three around the next.
_RECENT_TRIALS = 9
# A split by time is searched at so many cuts: with one, a week decides for the next.
_CUTS = 2
# What a search takes at most, by estimate, unless more is wanted: seconds of a core for its cells, and memory for each.
_BUDGET_S = 45.0
_BUDGET_BYTES = 650e6
# A trial ranks at most so many pairs of user and item, over all cuts; of more, some users are drawn.
_RANKED = 100_000_000


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What is searched.

    cells      are tried first; () for those that were good on real data, and more where the best lies at their edge
    engine     is the only one that is tried; SettingError for cells of others
    draws      so many more are drawn at random around the best
    max_pairs  data with more are not searched; None searches whatever their size, and whatever a cell takes
    """

    cells: tuple[Params, ...] = ()
    engine: Engine | None = None
    draws: int = 0
    max_pairs: int | None = MAX_PAIRS

    def __post_init__(self) -> None:
        require_at_least("tune", self.draws, 0)
        others = {engine_of(cell) for cell in self.cells} - {self.engine}
        if self.engine is not None and others:
            raise SettingError(
                f"Cells are of {', '.join(sorted(others))}, and the engine is to be {self.engine}; leave them out."
            )


@dataclass(frozen=True, slots=True)
class Trial:
    """How well one combination of parameters (a cell) ranks: the mean *ndcg* of the users and its standard error *se*.

    A trial of ALS usually has fewer *iterations* than a training, and other engines have None. If a cell cannot be
    fitted, its ndcg is 0.
    """

    params: Params
    iterations: int | None
    ndcg: float
    se: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell that was not tried, because its trial would take more than a search may, by estimate."""

    params: Params
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Search:
    """All *trials* on one inner *split*, at lists of *k*; *defaults* are those that the search started from.

    What is *left_out* would have taken too much.
    """

    split: SplitOptions
    k: int
    trials: tuple[Trial, ...]
    defaults: ALSParams
    left_out: tuple[LeftOut, ...] = ()

    @property
    def best(self) -> int:
        """The number of the trial that is recommended: the one with the highest nDCG, or popularity close to it."""
        return max(range(len(self.trials)), key=lambda number: _worth(self.trials[number]))

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
            "trials": [_to_json(trial) for trial in self.trials],
            "left_out": [_to_json(each) for each in self.left_out],
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
    journal: Path | None = None,
    evaluations: int = 0,
    on_trial: OnProgress = unreported,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Search | None:
    """Compare cells on a split of *user_items*, the part that may be learnt from, of the kind that *options* say.

    *history* holds the rows of the pairs. In a split in time the best of each engine is tried with recency, too. Trials
    are appended to the file *journal*. If it holds a trial of the same data and split, that is not made again.
    *defaults* say the iterations and the seed of ALS. *on_trial* is called with (done, total); the total grows if the
    best cell lies at an edge, and with recency. *on_notice* is called with an estimate of the cost, which includes the
    last fit and the number of *evaluations* after the search, and with the cells left out for their cost. Returns None
    if there are too few pairs to hold some back. Raises DataError if the journal cannot be written.
    """
    defaults = defaults or ALSParams()
    # With the same seed the same numbers would hold back twice.
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=_CUTS, repeats=False)
    splits = _splits(user_items, history, inner)
    if not splits:
        return None
    known = _Trials(splits, k, journal, digest_of(user_items, history, inner, _EXPLORING, k))
    items, is_recent = user_items.shape[1], inner.in_time and not tuning.cells
    budget = _Budget(
        splits, inner.test_share, is_limited=tuning.max_pairs is not None and not (tuning.engine or tuning.cells)
    )
    cells = budget.affordable(tuning.cells or default_cells(defaults, items, tuning.engine))
    trials: list[Trial] = []

    def run(waiting: Sequence[Params], more: int) -> list[Trial]:
        for at, params in enumerate(waiting, 1):
            trials.append(known.trial(params))
            on_trial(len(trials), len(trials) + len(waiting) - at + more)
            if len(trials) == 1:
                core_s = budget.training_s(cells, tuning.draws, evaluations, is_recent=is_recent)
                seconds = trials[0].seconds * core_s / budget.trial_s(params)
                on_notice(_estimate(len(cells) + tuning.draws, inner, seconds))
        return trials[len(trials) - len(waiting) :]

    on_trial(0, len(cells) + tuning.draws)
    run(cells, tuning.draws)
    for _ in range(0 if tuning.cells else _EXTENSIONS):
        run(budget.affordable(beyond(_ranked(trials), items)), tuning.draws)
    for number in range(tuning.draws):
        drawn = draw(_ranked(trials), np.random.default_rng([inner.seed, number]), items)
        run([] if drawn is None else [drawn], tuning.draws - number - 1)
    for number in _best_of_each(trials) if is_recent else ():
        _climb(trials[number].params, lambda waiting: run(waiting, 1))
    if budget.left_out:
        on_notice(_left_out(budget.left_out))
    return Search(inner, k, tuple(trials), defaults, budget.left_out)


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
    """Makes trials, and keeps them as lines of JSON in a journal, so a search that was stopped goes on.

    Lines of other data, splits or versions are passed by. What was learnt last serves all recencies of its engine.
    """

    def __init__(self, splits: Sequence[Parts], k: int, journal: Path | None, key: str) -> None:
        self._splits, self._k = splits, k
        self._journal, self._key = journal, key
        self._known: dict[Params, Trial] = {trial.params: trial for trial in self._read()}
        self._learnt: tuple[Params, list[tuple[Ranker, Times | None]]] | None = None

    def trial(self, params: Params) -> Trial:
        """Return the trial of *params*, which is made if the journal does not have it."""
        if params not in self._known:
            self._known[params] = self._measure(params)
            self._keep(self._known[params])
        return self._known[params]

    def _measure(self, params: Params) -> Trial:
        """Learn from each split with few iterations, and measure each user."""
        start, tried = perf_counter(), _exploring(params)
        try:
            values = np.concatenate(
                [
                    _ndcg(ranker, parts, self._k)
                    for ranker, parts in zip(self._rankers(tried), self._splits, strict=True)
                ]
            )
        except DataError:  # with such parameters the factors grow beyond all bounds
            values = np.zeros(1)
        iterations = tried.iterations if isinstance(tried, ALSParams) else None
        se = float(values.std() / math.sqrt(len(values)))
        return Trial(params, iterations, float(values.mean()), se, round(perf_counter() - start, 3))

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

    def _keep(self, trial: Trial) -> None:
        if self._journal is None:
            return
        try:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a") as file:
                file.write(json.dumps({"key": self._key, **_to_json(trial)}) + "\n")
        except OSError as error:
            raise DataError(f"The trials cannot be written to {self._journal}: {error.strerror or error}.") from error

    def _read(self) -> Iterator[Trial]:
        try:
            lines = [] if self._journal is None else self._journal.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                found = json.loads(line)
                if found.pop("key") == self._key:
                    params = params_from(found.pop("engine"), found["params"])
                    yield Trial(**found | {"params": params})
            except (ValueError, KeyError, TypeError, AttributeError, DataError):
                continue  # the line that was being written when the search was killed


def _climb(params: Params, run: Callable[[Sequence[Params]], list[Trial]]) -> None:
    """Try *params* with recency: half-lives first, then those and powers around the best, as far as it gets better.

    Popularity has a half-life alone. *run* makes trials.
    """
    tried: dict[tuple[float, float], float] = {}
    waiting = [(half_life, _FIRST_GAMMA) for half_life in _HALF_LIVES]
    while waiting:
        made = run([_recent(params, *each) for each in waiting])
        tried |= zip(waiting, (trial.ndcg for trial in made), strict=True)
        half_life, gamma = max(tried, key=lambda each: tried[each])
        gammas = [] if isinstance(params, PopularityParams) else [gamma * _STEP, gamma / _STEP]
        near = [(half_life * _STEP, gamma), (half_life / _STEP, gamma), *((half_life, each) for each in gammas)]
        waiting = [
            (days, power)
            for days, power in near
            if (days, power) not in tried
            and _SHORTEST_DAYS <= days <= _LONGEST_DAYS
            and _LEAST_GAMMA <= power <= _MOST_GAMMA
        ]


def _recent(params: Params, half_life: float, gamma: float) -> Params:
    if isinstance(params, PopularityParams):
        return PopularityParams(half_life)
    return replace(params, recency=Recency(half_life, gamma))


class _Budget:
    """What the cells of a search may take together, by estimates that are the same on every machine."""

    def __init__(self, splits: Sequence[Parts], test_share: float, *, is_limited: bool) -> None:
        # What is learnt from, and what those who are tested have.
        self._splits = [(each.train, each.seen[np.flatnonzero(np.diff(each.test.indptr))]) for each in splits]
        self._more = 1 / (1 - test_share)
        self._left_s, self._most_bytes = (_BUDGET_S, _BUDGET_BYTES) if is_limited else (math.inf, math.inf)
        self._left_out: dict[Params, LeftOut] = {}

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The cells that could not be afforded."""
        return tuple(self._left_out.values())

    def trial_s(self, params: Params, rankings: int = 1) -> float:
        """Return how many seconds of a core a trial takes, or so many that differ in recency alone, over all splits."""
        return self._seconds(_exploring(params), rankings)

    def training_s(self, cells: Sequence[Params], draws: int, evaluations: int, *, is_recent: bool) -> float:
        """Return how many seconds of a core a training takes: its trials, then *evaluations*, and a last fit.

        With *is_recent* each engine is fitted once more, and its lists are made for each recency. An evaluation fits
        each engine, too, and then one is fitted on all data. These have more pairs, and ALS all of its iterations.
        """
        dearest = {engine_of(params): params for params in sorted(cells, key=self.trial_s)}.values()
        searched = sum(map(self.trial_s, cells)) + draws * max(map(self.trial_s, cells))
        if is_recent:
            searched += sum(self.trial_s(params, _RECENT_TRIALS) for params in dearest)
        whole = [self._more * self._seconds(params) / len(self._splits) for params in dearest]
        return searched + evaluations * sum(whole) + self._more * max(whole)

    def affordable(self, cells: Sequence[Params]) -> list[Params]:
        """Return those of *cells* that can still be tried, the cheapest of them first of all."""
        kept: set[Params] = set()
        for params in sorted(cells, key=self.trial_s):
            seconds, needed = self.trial_s(params), max(fit_bytes(params, train) for train, _ in self._splits)
            if seconds <= self._left_s and needed <= self._most_bytes:
                self._left_s -= seconds
                kept.add(params)
            else:
                self._left_out[params] = LeftOut(params, round(seconds, 1), needed)
        return [params for params in cells if params in kept]

    def _seconds(self, params: Params, rankings: int = 1) -> float:
        return sum(fit_s(params, train) + rankings * rank_s(params, rows) for train, rows in self._splits)


def _exploring(params: Params) -> Params:
    """Return *params* with as few iterations as rank cells."""
    return replace(params, iterations=min(_EXPLORING, params.iterations)) if isinstance(params, ALSParams) else params


def _ndcg(ranker: Ranker, parts: Parts, k: int) -> Values:
    return measure_users(recommend_all(ranker, parts, k), parts.test).values["ndcg"]


def _best_of_each(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the number of the best trial of each engine that was tried, the best engine first."""
    best: dict[Engine, int] = {}
    for number in sorted(range(len(trials)), key=lambda number: -trials[number].ndcg):
        best.setdefault(engine_of(trials[number].params), number)
    return tuple(best.values())


def _worth(trial: Trial) -> float:
    return trial.ndcg * (_SIMPLER_WORTH if isinstance(trial.params, PopularityParams) else 1)


def _ranked(trials: Sequence[Trial]) -> list[Params]:
    return [trial.params for trial in sorted(trials, key=lambda trial: -trial.ndcg)]


def _to_json(found: Trial | LeftOut) -> dict[str, Any]:
    return {"engine": engine_of(found.params), **asdict(found)}


def _estimate(cells: int, inner: SplitOptions, seconds: float) -> str:
    return (
        f"searching {cells} cells on an inner {inner.kind} split, the evaluation and the last fit take about "
        f"{seconds:.0f} s, longer if the best lies at an edge; --no-tune skips the search"
    )


def _left_out(cells: Sequence[LeftOut]) -> str:
    named = "; ".join(
        f"{described(each.params)}, {each.seconds:,.0f} s and {each.bytes / 1e9:.1f} GB" for each in cells
    )
    return (
        f"not tried, because a search takes at most about {_BUDGET_S:.0f} s of a core and {_BUDGET_BYTES / 1e9:.1f} "
        f"GB: {named}; --tune 0 tries everything"
    )


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

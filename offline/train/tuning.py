"""The search for an engine and its parameters: cells are compared on an inner split of what may be learnt from."""

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from offline.errors import DataError, SettingError, require_at_least
from offline.evaluate.evaluation import fit_parts, recommend_all
from offline.evaluate.metrics import measure_users
from offline.evaluate.splits import Parts, SplitOptions, split
from offline.input.matrix import Floats, History, Times, UserItems, part
from offline.train.als import ALSParams
from offline.train.cells import beyond, default_cells, draw
from offline.train.cost import fit_bytes, fit_s, rank_s
from offline.train.engine import Engine, Params, Ranker, described, engine_of, params_from, with_recency
from offline.train.popularity import PopularityParams
from offline.train.recency import Recency

# Above so many pairs a search takes minutes to hours, which nobody should wait for who did not ask for it.
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
_SHORTEST = 0.125
_LONGEST = 512.0
_LEAST_GAMMA, _MOST_GAMMA = 0.125, 4.0
# A split by time is searched at so many cuts: with one, a week decides for the next.
_CUTS = 2
# What a search takes at most, by estimate, unless more is wanted: seconds of a core for its cells, and memory for each.
_BUDGET_S, _BUDGET_BYTES = 45.0, 650e6
# A trial ranks at most so many pairs of user and item, over all cuts; of more, some users are drawn.
_RANKED = 100_000_000

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """
    What is searched.

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
    """
    How well one cell ranks: the mean *ndcg* of the users with its standard error *se*, and each user's in *values*.

    *iterations* of ALS are fewer than the fit of a model makes. A cell that cannot be fitted has an ndcg of 0.
    """

    params: Params
    iterations: int | None
    seconds: float
    values: Floats

    @property
    def ndcg(self) -> float:
        """The mean over the users that have test items."""
        return float(self.values.mean(dtype=np.float64))

    @property
    def se(self) -> float:
        """The standard error of the mean."""
        return float(self.values.std(dtype=np.float64) / math.sqrt(len(self.values)))

    def to_json(self) -> dict[str, Any]:
        """Return what a model keeps of it."""
        return {
            "engine": engine_of(self.params),
            "params": asdict(self.params),
            "iterations": self.iterations,
            "ndcg": round(self.ndcg, 6),
            "se": round(self.se, 6),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell that was not tried, because its trial would take more than a search may, by estimate."""

    params: Params
    seconds: float
    bytes: float

    def to_json(self) -> dict[str, Any]:
        """Return what a model keeps of it."""
        cost = {"seconds": round(self.seconds, 1), "bytes": round(self.bytes)}
        return {"engine": engine_of(self.params), "params": asdict(self.params), **cost}


@dataclass(frozen=True, slots=True)
class Search:
    """
    All *trials* on one inner *split*, at lists of *k*; *defaults* are those that the search started from.

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
        tried = [trial for trial in self.trials if isinstance(trial.params, PopularityParams)]
        best = max(tried, key=lambda trial: trial.ndcg, default=None)
        return best.params if best is not None and isinstance(best.params, PopularityParams) else PopularityParams()

    @property
    def usual(self) -> Trial | None:
        """The trial of the defaults, if it was made."""
        return next((trial for trial in self.trials if trial.params == self.defaults), None)

    def to_json(self) -> dict[str, Any]:
        """Return what a model keeps of it."""
        return {
            "objective": f"ndcg@{self.k}",
            "split": asdict(self.split),
            "trials": [trial.to_json() for trial in self.trials],
            "left_out": [each.to_json() for each in self.left_out],
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
    on_trial: Report = lambda _done, _total: None,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Search | None:
    """
    Compare cells on a split of *user_items*, the part that may be learnt from, of the kind that *options* say.

    *history* holds the rows of the pairs. In a split in time the best of each engine is tried with recency, too.
    Trials are appended to the file *journal*, and those that it holds of the same data and split are not made again.
    *defaults* say the iterations and the seed of ALS. *on_trial* is called with (done, total), whose total grows where
    the best cell lies at an edge and with recency; *on_notice* with what it is going to cost, together with a last fit
    and so many *evaluations*, which come after it, and with what is left out for that. Returns None if there are too
    few pairs to hold some back. Raises DataError if the journal cannot be written.
    """
    defaults = defaults or ALSParams()
    # With the same seed the same numbers would hold back twice.
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=_CUTS, repeats=False)
    splits = _splits(user_items, history, inner)
    if not splits:
        return None
    known, items = _Journal(journal, digest_of(user_items, history, inner, _EXPLORING, k)), user_items.shape[1]
    budget = _Budget(splits, is_limited=tuning.max_pairs is not None and not (tuning.engine or tuning.cells))
    cells = budget.affordable(tuning.cells or default_cells(defaults, items, tuning.engine))
    trials: list[Trial] = []

    def run(waiting: Sequence[Params], draws: int) -> None:
        for at, params in enumerate(waiting, 1):
            trials.append(known.find(params) or known.keep(_trial(splits, params, k)))
            on_trial(len(trials), len(trials) + len(waiting) - at + draws)
            if len(trials) == 1:
                on_notice(_estimate(trials[0], cells, budget, inner, draws=tuning.draws, evaluations=evaluations))

    on_trial(0, len(cells) + tuning.draws)
    run(cells, tuning.draws)
    for _ in range(0 if tuning.cells else _EXTENSIONS):
        run(budget.affordable(beyond(_ranked(trials), items)), tuning.draws)
    for number in range(tuning.draws):
        drawn = draw(_ranked(trials), np.random.default_rng([inner.seed, number]), items)
        run([] if drawn is None else [drawn], tuning.draws - number - 1)
    best = _best_of_each(trials) if inner.in_time and not tuning.cells else ()
    for params in [trials[number].params for number in best]:
        for trial in _recent_trials(splits, params, k, known):
            trials.append(trial)
            on_trial(len(trials), len(trials) + 1)
    if budget.left_out:
        on_notice(_left_out(budget.left_out))
    return Search(inner, k, tuple(trials), defaults, budget.left_out)


class _Budget:
    """What the cells of a search may take together, by estimates that are the same on every machine."""

    def __init__(self, splits: Sequence[Parts], *, is_limited: bool) -> None:
        self._splits, self._left_s = splits, _BUDGET_S if is_limited else math.inf
        self._most_bytes = _BUDGET_BYTES if is_limited else math.inf
        self._left_out: dict[Params, LeftOut] = {}

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The cells that could not be afforded."""
        return tuple(self._left_out.values())

    def seconds(self, params: Params) -> float:
        """Return what a trial takes of a core, over all splits."""
        tried, items = _exploring(params), self._splits[0].train.shape[1]
        return sum(fit_s(tried, each.train) + rank_s(tried, items, _tested(each)) for each in self._splits)

    def affordable(self, cells: Sequence[Params]) -> list[Params]:
        """Return those of *cells* that can still be tried, the cheapest of them first of all."""
        kept: set[Params] = set()
        for params in sorted(cells, key=self.seconds):
            seconds, needed = self.seconds(params), max(fit_bytes(params, each.train) for each in self._splits)
            if seconds <= self._left_s and needed <= self._most_bytes:
                self._left_s -= seconds
                kept.add(params)
            else:
                self._left_out[params] = LeftOut(params, seconds, needed)
        return [params for params in cells if params in kept]


def _splits(user_items: UserItems, history: History | None, options: SplitOptions) -> list[Parts]:
    """Return the splits of a search, of many users a draw of those to test; none if one leaves a part without pairs."""
    found = []
    for each in options.draws:
        parts = split(user_items, history, each)
        if not (parts.train.nnz and parts.test.nnz):
            return []
        tested = np.random.default_rng(options.seed).permutation(np.flatnonzero(np.diff(parts.test.indptr)))
        drawn = np.zeros(user_items.shape[0], dtype=np.bool_)
        drawn[tested[: max(1, _RANKED // (user_items.shape[1] * len(options.draws)))]] = True
        found.append(parts._replace(test=part(parts.test, np.repeat(drawn, np.diff(parts.test.indptr)))))
    return found


def _recent_trials(splits: Sequence[Parts], params: Params, k: int, known: "_Journal") -> Iterator[Trial]:
    """
    Try *params* with recency: half-lives first, then half-lives and powers around the best, as far as it gets better.

    Popularity has a half-life alone. What was fitted once serves all of them.
    """
    fitted: list[tuple[Ranker, Times | None]] = []
    tried: dict[tuple[float, float], float] = {}
    is_popularity = isinstance(params, PopularityParams)

    def trial_of(half_life: float, gamma: float) -> Trial:
        if isinstance(params, PopularityParams):
            wanted: Params = PopularityParams(half_life)
            return known.find(wanted) or known.keep(_trial(splits, wanted, k))
        recency = Recency(half_life, gamma)
        wanted = replace(params, recency=recency)
        if (found := known.find(wanted)) is not None:
            return found
        if not fitted:
            fitted.extend((fit_parts(parts, _exploring(params)), parts.train_times) for parts in splits)
        start = perf_counter()
        values = [
            _ndcg(with_recency(ranker, recency.weights(parts.train, times)), parts, k)
            for parts, (ranker, times) in zip(splits, fitted, strict=True)
        ]
        return known.keep(
            Trial(wanted, _iterations(_exploring(params)), perf_counter() - start, np.concatenate(values))
        )

    waiting = [(half_life, _FIRST_GAMMA) for half_life in _HALF_LIVES]
    while waiting:
        for half_life, gamma in waiting:
            trial = trial_of(half_life, gamma)
            tried[half_life, gamma] = trial.ndcg
            yield trial
        half_life, gamma = max(tried, key=lambda each: tried[each])
        gammas = [] if is_popularity else [gamma * _STEP, gamma / _STEP]
        near = [(half_life * _STEP, gamma), (half_life / _STEP, gamma), *((half_life, each) for each in gammas)]
        waiting = [
            (days, power)
            for days, power in near
            if (days, power) not in tried and _SHORTEST <= days <= _LONGEST and _LEAST_GAMMA <= power <= _MOST_GAMMA
        ]


def _tested(parts: Parts) -> int:
    return int(np.count_nonzero(np.diff(parts.test.indptr)))


def _trial(splits: Sequence[Parts], params: Params, k: int) -> Trial:
    """Learn from each of *splits* with few iterations, and measure each user."""
    start = perf_counter()
    tried = _exploring(params)
    try:
        values = np.concatenate([_ndcg(fit_parts(parts, tried), parts, k) for parts in splits])
    except DataError:  # with such parameters the factors grow beyond all bounds
        values = np.zeros(sum(map(_tested, splits)), dtype=np.float32)
    return Trial(params, _iterations(tried), perf_counter() - start, values)


def _exploring(params: Params) -> Params:
    """Return *params* with as few iterations as rank cells."""
    return replace(params, iterations=min(_EXPLORING, params.iterations)) if isinstance(params, ALSParams) else params


def _iterations(params: Params) -> int | None:
    return params.iterations if isinstance(params, ALSParams) else None


def _ndcg(ranker: Ranker, parts: Parts, k: int) -> Floats:
    """Return the nDCG of each user that has test items."""
    lists = recommend_all(ranker, parts, k)
    found: Floats = measure_users(lists, parts.test).values["ndcg"].astype(np.float32)
    return found


def _best_of_each(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the number of the best trial of each engine that was tried, the best engine first."""
    best: dict[Engine, int] = {}
    for number in sorted(range(len(trials)), key=lambda number: -trials[number].ndcg):
        best.setdefault(engine_of(trials[number].params), number)
    return tuple(best.values())


def _worth(trial: Trial) -> float:
    return trial.ndcg * (_SIMPLER_WORTH if isinstance(trial.params, PopularityParams) else 1)


def _ranked(trials: Sequence[Trial]) -> list[Params]:
    """Return what was tried, the best first."""
    return [trial.params for trial in sorted(trials, key=lambda trial: -trial.ndcg)]


def _estimate(
    first: Trial, cells: Sequence[Params], budget: _Budget, inner: SplitOptions, *, draws: int, evaluations: int
) -> str:
    """
    Say what a training will take from its first trial on, by what that took and how much dearer the others are.

    Each evaluation fits every engine once more, and so does the search if recency is tried; then one is fitted on all
    data. These have more pairs, and ALS all of its iterations.
    """
    costs = [budget.seconds(params) for params in cells]
    dearest: dict[Engine, float] = {}
    for params, cost in zip(cells, costs, strict=True):
        full = cost * params.iterations / _EXPLORING if isinstance(params, ALSParams) else cost
        dearest[engine_of(params)] = max(full / len(inner.draws), dearest.get(engine_of(params), 0.0))
    later = (
        evaluations * sum(dearest.values()) / (1 - inner.test_share)
        + max(dearest.values()) / (1 - inner.test_share) ** 2
    )
    seconds = first.seconds / costs[0] * (sum(costs) + draws * max(costs) + later)
    return (
        f"searching {len(cells) + draws} cells on an inner {inner.kind} split, the evaluation and the last fit take "
        f"about {seconds:.0f} s, longer if the best lies at an edge; --no-tune skips the search"
    )


def _left_out(cells: Sequence[LeftOut]) -> str:
    """Say which cells were not tried, and why."""
    named = "; ".join(
        f"{described(each.params)}, {each.seconds:,.0f} s and {each.bytes / 1e9:.1f} GB" for each in cells
    )
    return (
        f"not tried, because a search takes at most about {_BUDGET_S:.0f} s of a core and {_BUDGET_BYTES / 1e9:.1f} "
        f"GB: {named}; --tune 0 tries everything"
    )


class _Journal:
    """The trials of a search, as lines of JSON, so that one that was stopped goes on; others' are passed by."""

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key
        self._trials: dict[Params, Trial] = dict(self._read())

    def find(self, params: Params) -> Trial | None:
        return self._trials.get(params)

    def keep(self, trial: Trial) -> Trial:
        """Append *trial* and return it."""
        if self._path is not None:
            values = b64encode(trial.values.astype("<f4").tobytes()).decode()
            line = json.dumps({"key": self._key, **trial.to_json(), "values": values}) + "\n"
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a") as file:
                    file.write(line)
            except OSError as error:
                raise DataError(f"The trials cannot be written to {self._path}: {error.strerror or error}.") from error
        return trial

    def _read(self) -> Iterator[tuple[Params, Trial]]:
        try:
            lines = [] if self._path is None else self._path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                found = json.loads(line)
                if found["key"] != self._key:
                    continue
                params = params_from(found["engine"], found["params"])
                values = np.frombuffer(b64decode(found["values"]), dtype="<f4")
                yield params, Trial(params, found["iterations"], found["seconds"], values)
            except (ValueError, KeyError, TypeError, DataError):
                continue  # the line that was being written when the search was killed


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

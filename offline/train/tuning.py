"""The search for an engine and its parameters: cells are compared on an inner split of what may be learnt from."""

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from offline.input.matrix import Floats, History, Times, UserItems
from offline.train.als import ALSParams
from offline.train.cells import beyond, default_cells, draw
from offline.train.ease import EASEParams
from offline.train.engine import Engine, Params, Ranker, engine_of, params_from, recency_of, with_recency
from offline.train.neighbours import NeighbourParams, NeighbourWeighting
from offline.train.popularity import PopularityParams
from offline.train.recency import Recency

# Above so many pairs a search takes minutes to hours, which nobody should wait for who did not ask for it.
MAX_PAIRS = 1_000_000
# As many iterations rank cells as the full number does, in half of the time.
_EXPLORING = 8
# The best of each engine meet again where they are within such a share of the highest: so little is held back then
# that they learn from nearly as much as a model does, and from several draws where one tests few users.
_CLOSE, _FINAL_SHARE = 0.05, 0.1
_ENOUGH_USERS, _MOST_DRAWS = 1000, 3
# So many standard errors of their difference apart, two trials are no longer a tie.
_SURE = 1.96
# What a simpler engine, or fewer factors or neighbours of one engine, are worth at most, as a share of the nDCG: few
# users leave more open.
_SIMPLER_WORTH = 0.01
# By how many numbers are chosen.
_SIMPLEST_FIRST: tuple[Engine, ...] = ("popularity", "ease", "neighbours", "als")
_PLAINEST_FIRST: tuple[NeighbourWeighting, ...] = ("cosine", "tfidf", "bm25", "rp3beta")
_EXTENSIONS = 3
# Recency is tried with these half-lives in days first, then with others and other powers around the best.
_HALF_LIVES = (1.0, 4.0, 16.0, 64.0)
_FIRST_GAMMA = 1.0
_STEP = 2.0
_SHORTEST = 0.125
_LONGEST = 512.0
_MOST_GAMMA = 4.0
# A split by time is searched at so many cuts.
_INNER_PIECES = 1

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """
    What is searched.

    cells      are tried first; () for those that were good on real data, and more where the best lies at their edge
    engine     is the only one that is tried; SettingError for cells of others
    draws      so many more are drawn at random around the best
    max_pairs  data with more are not searched; None searches whatever their size
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

    *iterations* of ALS are fewer than the fit of a model makes, but in finals. A cell that cannot be fitted has an ndcg
    of 0.
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
        return _standard_error(self.values)

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
class Finals:
    """
    The best of each engine that are close, the simplest engine first, with all iterations and less held back.

    There are as many *draws* of the *split*, by its seed and those that follow, as give users enough together.
    """

    split: SplitOptions
    draws: int
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what a model keeps of it."""
        return {
            "split": asdict(self.split),
            "draws": self.draws,
            "trials": [trial.to_json() for trial in self.trials],
        }


@dataclass(frozen=True, slots=True)
class Search:
    """
    All *trials* on one inner *split*, at lists of *k*; *defaults* are those that the search started from.

    Its properties number the trials: *leader* has the highest nDCG; *best* is what is recommended, which is of a
    simpler engine where the users of the split leave it open which of the two is better. Where engines are close, the
    *finals* decide between them.
    """

    split: SplitOptions
    k: int
    trials: tuple[Trial, ...]
    defaults: ALSParams
    finals: Finals | None = None

    @property
    def leader(self) -> int:
        """The number of the trial with the highest nDCG."""
        return _highest(self.trials, range(len(self.trials)))

    @property
    def best(self) -> int:
        """The number of the trial of the simplest engine that ties with the best of all, or does in the finals."""
        last = self.finals.trials if self.finals else [self.trials[number] for number in self.best_of_each]
        leader = last[_highest(last, range(len(last)))]
        params = next(trial.params for trial in last if _ties(leader, trial))
        return next(number for number, trial in enumerate(self.trials) if trial.params == params)

    @property
    def best_of_each(self) -> tuple[int, ...]:
        """The number of the best trial of each engine that was tried, the simplest engine first."""
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
            "finals": self.finals.to_json() if self.finals else None,
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
    the best cell lies at an edge and where engines are close; *on_notice* with what it is going to cost, together with
    a last fit and so many *evaluations*, which come after it. Returns None if there are too few pairs to hold some
    back. Raises DataError if the journal cannot be written.
    """
    defaults = defaults or ALSParams()
    # With the same seed the same numbers would hold back twice.
    inner = replace(options, seed=(options.seed + 1) % 2**32, pieces=_INNER_PIECES, repeats=False)
    splits = [split(user_items, history, each) for each in inner.draws]
    if any(map(_is_empty, splits)):
        return None
    known, items = _Journal(journal, digest_of(user_items, history, inner, _EXPLORING, k)), user_items.shape[1]
    has_recency = inner.in_time and not tuning.cells
    cells = list(tuning.cells or default_cells(defaults, items, tuning.engine))
    trials: list[Trial] = []

    def run(waiting: Sequence[Params], draws: int) -> None:
        for at, params in enumerate(waiting, 1):
            trials.append(known.find(params) or known.keep(_trial(splits, params, k, _EXPLORING)))
            on_trial(len(trials), len(trials) + len(waiting) - at + draws)
            if len(trials) == 1:
                on_notice(_estimate(trials[0], cells, tuning.draws, inner, evaluations))

    on_trial(0, len(cells) + tuning.draws)
    run(cells, tuning.draws)
    for _ in range(0 if tuning.cells else _EXTENSIONS):
        run(beyond(_ranked(trials), items), tuning.draws)
    for number in range(tuning.draws):
        drawn = draw(_ranked(trials), np.random.default_rng([inner.seed, number]), items)
        run([] if drawn is None else [drawn], tuning.draws - number - 1)
    if has_recency:
        for params in [trials[number].params for number in _best_of_each(trials)]:
            for trial in _recent_trials(splits, params, k, known):
                trials.append(trial)
                on_trial(len(trials), len(trials) + 1)
    found = Search(inner, k, tuple(trials), defaults)
    return replace(found, finals=_finals(found, user_items, history, journal, on_trial))


def _recent_trials(splits: Sequence[Parts], params: Params, k: int, known: "_Journal") -> Iterator[Trial]:
    """
    Try *params* with recency: half-lives first, then powers, then half-lives again, as far as it gets better.

    Popularity has a half-life alone.
    """
    fitted: list[tuple[Ranker, Times | None]] | None = None
    best: Trial | None = None
    tried = set[tuple[float, float]]()

    def with_recency_of(half_life: float, gamma: float) -> Params:
        if isinstance(params, PopularityParams):
            return PopularityParams(half_life)
        return replace(params, recency=Recency(half_life, gamma))

    waiting = [(half_life, _FIRST_GAMMA) for half_life in _HALF_LIVES]
    while waiting:
        for half_life, gamma in waiting:
            tried.add((half_life, gamma))
            wanted = with_recency_of(half_life, gamma)
            trial = known.find(wanted)
            if trial is None:
                if fitted is None:
                    fitted = [(fit_parts(parts, _exploring(params)), parts.train_times) for parts in splits]
                trial = known.keep(_recent_trial(splits, fitted, wanted, k))
            yield trial
            if best is None or trial.ndcg > best.ndcg:
                best, at = trial, (half_life, gamma)
        half_life, gamma = at
        gammas = [] if isinstance(params, PopularityParams) else [gamma * _STEP, gamma / _STEP]
        near = [(half_life * _STEP, gamma), (half_life / _STEP, gamma), *((half_life, each) for each in gammas)]
        waiting = [
            (days, power)
            for days, power in near
            if (days, power) not in tried and _SHORTEST <= days <= _LONGEST and power <= _MOST_GAMMA
        ]


def _recent_trial(
    splits: Sequence[Parts], fitted: Sequence[tuple[Ranker, Times | None]], params: Params, k: int
) -> Trial:
    """Measure engines that were fitted already, each with the times of its pairs, with another recency."""
    start = perf_counter()
    values = []
    for parts, (ranker, times) in zip(splits, fitted, strict=True):
        recency = recency_of(params)
        if recency is None:
            changed = fit_parts(parts, params)
        else:
            changed = with_recency(ranker, recency.weights(parts.train, times))
        values.append(_ndcg(changed, parts, k))
    iterations = min(_EXPLORING, params.iterations) if isinstance(params, ALSParams) else None
    return Trial(params, iterations, perf_counter() - start, np.concatenate(values))


def _finals(
    search: Search, user_items: UserItems, history: History | None, journal: Path | None, report: Report
) -> Finals | None:
    """
    Compare the best of each engine that are close to the highest once more, if there are several.

    Of a split in time, to hold back less is to test a nearer future than the model is for, so that there are none.
    """
    best = [search.trials[number] for number in search.best_of_each]
    highest = max(trial.ndcg for trial in best)
    close = [trial.params for trial in best if trial.ndcg >= (1 - _CLOSE) * highest]
    share, seed = min(search.split.test_share, _FINAL_SHARE), (search.split.seed + 1) % 2**32
    options = replace(search.split, test_share=share, seed=seed)
    wanted = len(close) > 1 and not options.in_time
    splits = _draw_splits(user_items, history, options) if wanted else []
    if not splits:
        return None
    known, before = _Journal(journal, digest_of(user_items, history, options, None, search.k)), len(search.trials)
    trials: list[Trial] = []
    for params in close:
        trials.append(known.find(params) or known.keep(_trial(splits, params, search.k, None)))
        report(before + len(trials), before + len(close))
    return Finals(options, len(splits), tuple(trials))


def _draw_splits(user_items: UserItems, history: History | None, options: SplitOptions) -> list[Parts]:
    """Return the draws of a split whose users are enough together; none where one leaves a part without pairs."""
    found: list[Parts] = []
    users = 0
    while users < _ENOUGH_USERS and len(found) < _MOST_DRAWS:
        parts = split(user_items, history, replace(options, seed=(options.seed + len(found)) % 2**32))
        if _is_empty(parts):
            return []
        found.append(parts)
        users += _tested(parts)
    return found


def _is_empty(parts: Parts) -> bool:
    return not (parts.train.nnz and parts.test.nnz)


def _tested(parts: Parts) -> int:
    return int(np.count_nonzero(np.diff(parts.test.indptr)))


def _trial(splits: Sequence[Parts], params: Params, k: int, most: int | None) -> Trial:
    """Learn from each of *splits*, with *most* iterations if they are limited, and measure each user."""
    start = perf_counter()
    tried = params if most is None else _exploring(params)
    iterations = tried.iterations if isinstance(tried, ALSParams) else None
    try:
        values = np.concatenate([_measured(parts, tried, k) for parts in splits])
    except DataError:  # with such parameters the factors grow beyond all bounds
        values = np.zeros(sum(map(_tested, splits)), dtype=np.float32)
    return Trial(params, iterations, perf_counter() - start, values)


def _exploring(params: Params) -> Params:
    """Return *params* with as few iterations as rank cells."""
    return replace(params, iterations=min(_EXPLORING, params.iterations)) if isinstance(params, ALSParams) else params


def _measured(parts: Parts, params: Params, k: int) -> Floats:
    return _ndcg(fit_parts(parts, params), parts, k)


def _ndcg(ranker: Ranker, parts: Parts, k: int) -> Floats:
    """Return the nDCG of each user that has test items."""
    lists = recommend_all(ranker, parts, k)
    found: Floats = measure_users(lists, parts.test).values["ndcg"].astype(np.float32)
    return found


def _best_of_each(trials: Sequence[Trial]) -> tuple[int, ...]:
    """
    Return the number of the best trial of each engine that was tried, the simplest engine first.

    Of the trials of one engine that tie with its highest, it is one with the fewest factors or neighbours, or the least
    regularization of EASE: the more there is to learn from, the less of that is best.
    """
    found = []
    for engine in _SIMPLEST_FIRST:
        numbers = [number for number, trial in enumerate(trials) if engine_of(trial.params) == engine]
        if numbers:
            highest = trials[_highest(trials, numbers)]
            close = [each for each in numbers if _ties(highest, trials[each])]
            found.append(min(close, key=lambda number: (_size(trials[number].params), -trials[number].ndcg)))
    return tuple(found)


def _highest(trials: Sequence[Trial], numbers: Iterable[int]) -> int:
    return max(numbers, key=lambda number: trials[number].ndcg)


def _ranked(trials: Sequence[Trial]) -> list[Params]:
    """Return what was tried: the best of each engine first, and both they and the others by their nDCG."""
    first = _best_of_each(trials)
    numbers = sorted(range(len(trials)), key=lambda number: (number not in first, -trials[number].ndcg))
    return [trials[number].params for number in numbers]


def _size(params: Params) -> tuple[float, int]:
    """Return by what trials of one engine are ordered that tie, the simplest first."""
    match params:
        case ALSParams():
            return params.factors, 0
        case EASEParams():
            return params.regularization, 0
        case NeighbourParams():
            return params.neighbours, _PLAINEST_FIRST.index(params.weighting)
        case _:
            return 0, 0


def _ties(leader: Trial, other: Trial) -> bool:
    """Tell whether the users of the split leave it open which is better, and *other* is hardly worse."""
    differences = leader.values - other.values
    is_open = float(differences.mean(dtype=np.float64)) <= _SURE * _standard_error(differences)
    return is_open and other.ndcg >= (1 - _SIMPLER_WORTH) * leader.ndcg


def _standard_error(values: Floats) -> float:
    return float(values.std(dtype=np.float64) / math.sqrt(len(values)))


def _estimate(first: Trial, cells: Sequence[Params], draws: int, inner: SplitOptions, evaluations: int) -> str:
    """
    Say what a training will take from its first trial on, by what that took and how much dearer the others are.

    Each evaluation fits every engine once more, and so does the search if recency is tried; then one is fitted on all
    data. These have more pairs, and ALS all of its iterations.
    """
    weights = [_cost(params) for params in cells]
    dearest: dict[Engine, float] = {}
    for params, weight in zip(cells, weights, strict=True):
        full = weight * params.iterations / _EXPLORING if isinstance(params, ALSParams) else weight
        dearest[engine_of(params)] = max(full, dearest.get(engine_of(params), 0.0))
    later = (
        evaluations * sum(dearest.values()) / (1 - inner.test_share)
        + max(dearest.values()) / (1 - inner.test_share) ** 2
    )
    seconds = first.seconds / weights[0] * (sum(weights) + draws * max(weights) + later)
    return (
        f"searching {len(cells) + draws} cells on an inner {inner.kind} split, the evaluation and the last fit take "
        f"about {seconds:.0f} s, longer if the best lies at an edge or engines are close; --no-tune skips the search"
    )


def _cost(params: Params) -> float:
    """Return what a trial takes, in those of 256 factors; measured."""
    match params:
        case ALSParams():
            return float((params.factors / 256) ** 1.4)
        case EASEParams():
            return 1.0
        case NeighbourParams():
            return 0.2
        case _:
            return 0.1


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

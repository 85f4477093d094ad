"""The search for an engine and its parameters within a budget.

A *cell* is an engine with its parameters, and a *trial* measures one: it is fitted to inner splits of the training
part, and ranks items for their test users. With recency, scores are multiplied by a power of recent popularity.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hotplate.base.report import format_count
from hotplate.offline.errors import require_above_zero
from hotplate.offline.evaluate.evaluation import fit_parts
from hotplate.offline.evaluate.metrics import LEADING_BY_SE
from hotplate.offline.evaluate.records import CellRecord, RepeatSearch, SearchRecord
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.history import History
from hotplate.offline.input.pairs import UserItems, items_per_user, users_per_item
from hotplate.offline.search.budget import (
    BUDGET_BYTES,
    BUDGET_S,
    TRIAL_ITERATIONS,
    Budget,
    announced_s,
    counts_by_engine,
    with_fewer_iterations,
)
from hotplate.offline.search.cells import (
    cells_past_edge,
    default_cells,
    next_cells_with_recency,
    with_recency_first,
)
from hotplate.offline.search.popular_lists import ALL_TIME, PopularSearch, search_popular
from hotplate.offline.search.repeat_weights import choose_repeats
from hotplate.offline.search.trials import (
    Trial,
    Trials,
    best_of_each_engine,
    digest_of_search,
    is_as_good,
    sort_by_ndcg,
)
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.blend import BlendParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    engine_of,
    estimate_fit_bytes,
    estimate_fit_s,
    without_recency,
)
from hotplate.offline.train.item_based import EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from hotplate.stores.verification import OnProgress, unreported

# A larger log is sampled by user.
_SEARCHED_PAIRS = 1_000_000
_EXTENSIONS = 2
# Pieces of a log, prefixes in time, that are split; with one, a single week decides.
_PIECES_IN_TIME = 3
# Of the popular list in blends.
_POPULARITY_WEIGHTS = (0.3, 0.6)
# Share of the best nDCG that the most varied choice may lack.
_VARIETY_LOSS = 0.05
# Pairs of a tested user and any item that a trial ranks; users are sampled to remain below.
_MOST_RANKED_PAIRS = 60_000_000


Preference = Literal["accuracy", "balance", "variety"]


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """Options of a search.

    cells     to try; () for the default cells, extended beyond their edge
    engine    the only one to try
    budget_s  estimated seconds of a core, and 40 % more for recency; None is 36, or unlimited with *cells*
    prefer    which of `Search.choices` is recommended
    """

    cells: tuple[Params, ...] = ()
    engine: Engine | None = None
    budget_s: float | None = None
    prefer: Preference = "balance"

    def __post_init__(self) -> None:
        if self.budget_s is not None:
            require_above_zero("tune", self.budget_s)

    @property
    def limit_s(self) -> float | None:
        """`budget_s`; unlimited (inf) if there are `cells` alone, None for the default."""
        return math.inf if self.cells and self.budget_s is None else self.budget_s


@dataclass(frozen=True, slots=True)
class Search:
    """All *trials* on one inner *split* with lists of *k*.

    *popular* has the popular lists; *left_out* are cells beyond the budget or the free memory; *users* is the number
    sampled, None for all.
    """

    split: SplitOptions
    k: int
    trials: tuple[Trial, ...]
    popular: PopularSearch
    prefer: Preference = "balance"
    left_out: tuple[Params, ...] = ()
    users: int | None = None

    @property
    def recommended(self) -> int:
        """The index in `trials` of the preferred choice; each trial has measured an engine with its parameters."""
        return self.trials.index(self.choices[self.prefer])

    @property
    def choices(self) -> dict[Preference, Trial]:
        """The trial of each preference.

        accuracy  the best one
        balance   of those within a standard error of the best, and at most 1 % below it, the most personal one
        variety   of those at most 5 % below it, the most personal one

        The most personal one shows the most items (`Spread.effective_items`). Popularity is chosen only if it leads all
        other engines by more than a 95 % interval, and for accuracy and balance.
        """
        best_first = sort_by_ndcg(self.trials)
        best = best_first[0]
        personal = [trial for trial in best_first if not isinstance(trial.params, PopularityParams)]
        if personal and best.leads_by(personal[0]) <= LEADING_BY_SE:
            best = personal[0]

        balanced = best
        if best in personal:
            balanced = _most_personal(trial for trial in personal if is_as_good(trial, best))
        varied = [trial for trial in personal if trial.ndcg >= (1 - _VARIETY_LOSS) * best.ndcg]
        return {"accuracy": best, "balance": balanced, "variety": _most_personal(varied or [balanced])}

    def record(self, repeats: RepeatSearch | None) -> SearchRecord:
        """Return the search, with that of *repeats*, without figures by user."""
        return SearchRecord(
            objective=f"ndcg@{self.k}",
            split=self.split,
            users_searched=self.users,
            trials=[trial.record for trial in self.trials],
            left_out=[CellRecord(engine=engine_of(params), params=asdict(params)) for params in self.left_out],
            best=self.recommended,
            repeats=repeats,
        )


@dataclass(frozen=True, slots=True)
class SearchData:
    """The interactions on which parameters are chosen: the train part of an evaluation, or without one all of a log.

    user_items  the pairs, a sparse matrix [users, items]
    history     their rows with times; None without times
    evaluation  the split that they are the train part of; None without an evaluation
    """

    user_items: UserItems
    history: History | None
    evaluation: SplitOptions | None = None

    @property
    def split(self) -> SplitOptions:
        """The kind of split into an inner train and test part; the evaluation's, or else by time if there are times."""
        if self.evaluation is not None:
            return self.evaluation
        return SplitOptions("by-item" if self.history is None else "by-time")

    def sample(self, *, repeats: bool = False) -> "_UserSample":
        """Return the interactions of some users if there are more than a million pairs, else of all.

        With *repeats*, they are for one split that also tests items that a user chose again.
        """
        # The seed of the evaluation's split would hold back the same pairs.
        seed = (self.split.seed + 1) % 2**32
        pieces = 1 if repeats else _PIECES_IN_TIME
        options = replace(self.split, seed=seed, pieces=pieces, piece=0, repeats=repeats)
        return _sample_users(self.user_items, self.history, options)


def tune(
    data: SearchData,
    tuning: TuneOptions,
    *,
    k: int = 10,
    defaults: ALSParams | None = None,
    trials_folder: Path | None = None,
    on_trial: OnProgress = unreported,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Search | None:
    """Compare cells by the nDCG at *k* of their lists, on splits of *data* into train and test parts.

    A cell is an engine with its parameters. The cells of *tuning* are tried. If it has none, the default ones are, then
    cells beyond those if the best lies at the edge. For a split in time all have recency, scores multiplied by a power
    of recent popularity, and the best of each engine is tried with others. A log of more than a million pairs is
    sampled by user.

    defaults       ALS parameters of the first cell; all cells of ALS take their iterations and seed
    trials_folder  where trials are stored for repeated searches
    on_trial       called with the trials done and their expected total, which may grow
    on_notice      called with the estimated cost, the number of users if they are sampled, and the cells left out

    Returns None for too few pairs. Raises DataError if the folder cannot be written.
    """
    sample = data.sample()
    splits = sample.splits()
    if not splits:
        return None

    items = sample.user_items.shape[1]
    tries_recency = sample.options.in_time and not tuning.cells
    budget = Budget(splits, data.user_items, tuning.limit_s)
    cells = budget.affordable(tuning.cells or default_cells(defaults or ALSParams(), items, tuning.engine))
    cost_s = announced_s(
        splits,
        cells,
        tries_recency=tries_recency,
        is_evaluated=data.evaluation is not None,
    )
    for notice in _notices(sample, data.user_items, len(cells), cost_s):
        on_notice(notice)

    on_trial(0, len(cells))
    digest = digest_of_search(sample.user_items, sample.history, sample.options, TRIAL_ITERATIONS, k)
    popular = search_popular(splits, k, in_time=sample.options.in_time)
    trials = Trials(splits, k, popular.for_new_users, folder=trials_folder, key=digest, on_trial=on_trial)
    if not tuning.cells and tuning.engine in (None, "popularity"):
        trials.done += popular.as_engine
        on_trial(len(trials.done), len(trials.done) + len(cells))
    _run_trials(
        trials,
        cells,
        budget,
        items,
        extends_cells=not tuning.cells,
        recent=popular.baselines[-1] if tries_recency else ALL_TIME,
    )
    on_trial(len(trials.done), len(trials.done))

    if budget.left_out:
        on_notice(budget.limits)
    if trials.short_of_memory:
        on_notice(_shortage(trials.short_of_memory))
    return Search(
        split=sample.options,
        k=k,
        trials=tuple(trials.done),
        popular=popular,
        prefer=tuning.prefer,
        left_out=(*budget.left_out, *trials.short_of_memory),
        users=sample.user_items.shape[0] if sample.is_drawn else None,
    )


def _notices(sample: "_UserSample", user_items: UserItems, cells: int, cost_s: float) -> Iterator[str]:
    """Yield a sentence on the cost of a search, and one on the number of its users if they are a sample.

    *cells* is the number of cells, each an engine with its parameters. *cost_s* is in seconds of a core. *user_items*
    are the interactions of all users.
    """
    yield (
        f"searching {format_count(cells, 'cell')} on an inner {sample.options.kind} split, the evaluation and the last "
        f"fit take about {cost_s:.0f} s of a core; --no-tune skips the search"
    )
    if sample.is_drawn:
        users = format_count(user_items.shape[0], "user")
        yield f"the search is of {sample.user_items.shape[0]:,} of {users}, drawn at random, as the log is large"


def _shortage(reasons: Mapping[Params, str]) -> str:
    """Return a sentence on cells, each an engine with its parameters, left out for lack of memory with *reasons*."""
    reason = next(iter(reasons.values())).rstrip(".")
    return f"left out for lack of memory: {counts_by_engine(reasons)}; the first: {reason}"


def _run_trials(
    trials: Trials,
    cells: Sequence[Params],
    budget: Budget,
    items: int,
    *,
    extends_cells: bool,
    recent: PopularityParams,
) -> None:
    """Try *cells*, each an engine with its parameters, as far as *budget* allows, then others that look promising.

    extends_cells  then try cells past the edge, with a larger or smaller value of a parameter than all others, if the
                   best cell lies at the edge, at most twice; and at last blends of the best cells
    recent         the best recent popularity; if it has a half-life, all cells have recency, scores multiplied by a
                   power of recent popularity, and the best cell of each engine is then tried with others

    *items* is the number of items in the catalogue. All trials are added to *trials*.
    """
    half_life_days = recent.half_life_days
    blends = 0
    if extends_cells and {"als", "neighbours"} <= set(map(engine_of, cells)):
        blends = len(_POPULARITY_WEIGHTS)
    later = int(half_life_days is not None) + blends  # at least one trial of another recency
    trials.run(with_recency_first(cells, half_life_days), expected_later=later)

    if extends_cells:
        for _ in range(_EXTENSIONS):
            tried = [without_recency(trial.params) for trial in sort_by_ndcg(trials.done)]
            best_first = [*dict.fromkeys(tried), *map(without_recency, trials.short_of_memory)]
            further = budget.affordable(cells_past_edge(best_first, items))
            trials.run(with_recency_first(further, half_life_days), expected_later=later)

    if half_life_days is not None:
        _try_recency(trials, budget, later)
    if blends:
        _try_blends(trials, budget)


def _try_recency(trials: Trials, budget: Budget, expected_later: int) -> None:
    """Try other half-lives and powers of recency: scores multiplied by a power of recent popularity.

    The next ones of an engine depend on its trials so far. An engine is done when none are left that may help, or when
    *budget* is spent. All trials are added to *trials*; *expected_later* are expected after each one, with the blends.
    """
    # The best fit of ALS is kept in memory until another engine is fitted.
    engines = [engine_of(trial.params) for trial in best_of_each_engine(trials.done)]
    for engine in sorted(engines, key=lambda engine: engine != "als"):
        tried = [trial for trial in trials.done if engine_of(trial.params) == engine and trial.params.recency]
        new = tried
        while new:
            # The expected total counts one more trial, until the results show that none follows.
            cells = budget.affordable_recencies(next_cells_with_recency(tried))
            new = trials.run(cells, expected_later=expected_later, keeps_fits=True)
            tried += new


def _try_blends(trials: Trials, budget: Budget) -> None:
    """Try blends of the best cells, if all engines have lists, and *budget* allows."""
    best: dict[str, Any] = {
        engine_of(trial.params): trial.params
        for trial in best_of_each_engine(trials.done)
        if trial.ndcg and not isinstance(trial.params, EASEParams)
    }
    if len(best) == len(BlendParams().parts):
        blends = [BlendParams(**best, popularity_weight=weight) for weight in _POPULARITY_WEIGHTS]
        trials.run(budget.affordable(blends), expected_later=0)


def _most_personal(trials: Iterable[Trial]) -> Trial:
    """Return the trial with the most effective items; of equal ones the first."""
    return max(trials, key=lambda trial: trial.spread.effective_items)


def search_repeats(
    data: SearchData, params: Params, *, k: int, popular: PopularityParams | None = None
) -> RepeatSearch | None:
    """Choose how much a user's own earlier choices raise the scores of those items, in lists that may repeat them.

    *data* are split once more by time. The engine of *params* is fitted to the train part with fewer iterations, and
    lists of *k* items are compared by their nDCG on the test part. A large log is sampled by user. Neighbours are
    fitted instead if the fit takes half of a search's time, or too much memory.

    If *popular* has a half-life, own choices multiplied by the recent popularity of the item are tried, too. Returns
    None without times, for a split that is not by time, and if no tested user chose an item again (a repeat).
    """
    if data.history is None or not data.split.in_time:
        return None

    splits = data.sample(repeats=True).splits()
    if not splits:
        return None
    (parts,) = splits  # there is one piece
    if not parts.is_repeat.any():
        return None

    fit_params = with_fewer_iterations(params)
    fit_s = estimate_fit_s(fit_params, parts.train)
    if fit_s > BUDGET_S / 2 or estimate_fit_bytes(fit_params, parts.train) > BUDGET_BYTES:
        fit_params = NeighbourParams(recency=params.recency)
    ranker = fit_parts(parts, fit_params)

    half_life_days = None if popular is None else popular.half_life_days
    return choose_repeats(parts, ranker, k, half_life_days)


class _UserSample(NamedTuple):
    """The interactions of a search's users, all of them or, if it *is_drawn*, some, and the options of its split."""

    user_items: UserItems
    history: History | None
    options: SplitOptions
    is_drawn: bool

    def splits(self) -> list[Parts]:
        """Return a split into train and test for each piece of the log; none if a part of one is empty.

        A piece is the first part of the log in time. Tested users are sampled, as all items are ranked for each.
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

    *history* are the rows of *user_items* [users, items] with times. With fewer pairs, all users and items remain. The
    minimum number of users per item in *options* is meant for all users, so it is dropped for a sample. Users with a
    million pairs, such as robots, are drawn last; at least one user is.
    """
    if user_items.nnz <= _SEARCHED_PAIRS:
        return _UserSample(user_items, history, options, is_drawn=False)

    counts = items_per_user(user_items)
    order = np.random.default_rng(options.seed).permutation(len(counts))
    order = order[np.argsort(counts[order] >= _SEARCHED_PAIRS, kind="stable")]
    sampled_users = max(1, int(np.searchsorted(np.cumsum(counts[order]), _SEARCHED_PAIRS)))
    is_sampled = np.zeros(len(counts), dtype=np.bool_)
    is_sampled[order[:sampled_users]] = True

    # scipy does not know that a selection of rows and columns stays sorted.
    pairs = user_items[is_sampled]
    has_users = users_per_item(pairs) > 0
    pairs = pairs[:, has_users]
    pairs.has_canonical_format = True

    rows = None if history is None else history.renumbered(is_sampled, has_users)
    return _UserSample(pairs, rows, replace(options, min_per_item=1), is_drawn=True)

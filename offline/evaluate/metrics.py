"""Metrics of lists: how well they rank what was held back, of each user and on average, and what else they are like."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from offline.evaluate.splits import Parts
from offline.input.matrix import Floats, Indices, Mask, UserItems, cells_of, part, users_per_item
from offline.train.popularity import by_popularity

Interval = tuple[float, float]
Values = npt.NDArray[np.float64]
# Scores all items for some users; see `Ranker.scores`.
Score = Callable[[UserItems, Indices], Floats]
# What costs more than a sort is measured of so many users, drawn at random.
_SAMPLED_USERS = 1000
# Scores of all items are computed of so many users, and so many in all, but of 100 users at least.
_SCORED_USERS = 500
_SCORES = 2_000_000
_SEED = 42
_LISTS_AT_ONCE = 128
# Head items have so much of all interactions in train (Abdollahpouri et al., UMAP 2021).
_HEAD_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """
    Averages at *k* over the *users* that have test items; a user without a list counts, with zeros.

    *users_with_lists* of them had at least one recommendation. All are binary: an item is liked or not.

    precision    hits / k
    recall       hits / test items
    recall_at_k  hits / min(k, test items)
    map          the sum of the precisions at the hits / test items
    map_at_k     the same / min(k, test items)
    ndcg         discounted hits / those of the ideal list, which has min(k, test items) hits
    mrr          1 / the rank of the first hit
    hit_rate     1 where there is a hit
    """

    k: int
    precision: float
    recall: float
    recall_at_k: float
    map: float
    map_at_k: float
    ndcg: float
    mrr: float
    hit_rate: float
    users: int
    users_with_lists: int


@dataclass(frozen=True, slots=True)
class ListMetrics:
    """
    What lists are like, whether they hit or not; users without a list are left out, and all is 0 where nobody has one.

    coverage       the share of all items that are in any list
    gini           how unequally the places of all lists are shared among all items: 0 evenly, 1 all to one
    diversity      of two items of a list, 1 - the cosine of their users in train, on average (Ziegler et al., WWW 2005)
    novelty        -log2 of the share of users that have an item in train (Vargas and Castells, RecSys 2011)
    popular_share  the share of places that head items have: the most popular ones, which have a fifth of all train
                   interactions, so that it is 0.2 where lists are as popular as histories are
    """

    coverage: float
    gini: float
    diversity: float
    novelty: float
    popular_share: float


@dataclass(frozen=True, slots=True)
class RatingMetrics:
    """
    How far predicted ratings are from what users gave, over all pairs of a user and an item; each pair counts alike.

    rmse                the root of the mean squared error
    mae                 the mean absolute error
    r2                  the share of the ratings' variance that is predicted; below 0 for worse than their mean
    explained_variance  the same, if the mean error is forgiven
    """

    rmse: float
    mae: float
    r2: float
    explained_variance: float


RANKING = tuple(field.name for field in fields(RankingMetrics) if field.type is float)


@dataclass(frozen=True, slots=True)
class UserMetrics:
    """
    Of each of the *users* (rows) that have test items, every metric of `RankingMetrics` by its name, [users].

    Means over them are the metrics; differences of two engines' are paired, as long as the test is the same.
    """

    k: int
    users: Indices
    with_list: Mask
    values: Mapping[str, Values]

    @property
    def metrics(self) -> RankingMetrics:
        """The averages over all users."""
        return self.mean()

    @property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of the averages."""
        return intervals(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return the averages by their names as plain JSON values, and their intervals below `intervals`."""
        return {**asdict(self.metrics), "intervals": self.intervals}

    def mean(self, of: Mask | None = None) -> RankingMetrics:
        """Return the averages, over those users for which *of* [users] is true; raises ValueError for none."""
        chosen = np.ones(len(self.users), dtype=np.bool_) if of is None else of
        if not chosen.any():
            raise ValueError("no user has test items")
        means = {name: float(values[chosen].mean()) for name, values in self.values.items()}
        return RankingMetrics(
            k=self.k, users=int(chosen.sum()), users_with_lists=int(self.with_list[chosen].sum()), **means
        )


def interval(values: Values | Sequence[float]) -> Interval | None:
    """
    Return the interval of 95 % of the mean of *values*, of users or of runs, by Student's t.

    NaN do not count. None for fewer than two values.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 -- takes 0.07 s to load

    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return None
    reach = float(stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / np.sqrt(len(known)))
    return float(known.mean()) - reach, float(known.mean()) + reach


def intervals(values: Mapping[str, Values] | Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """Return the intervals of several means by their names, those that there are."""
    found = {name: interval(each) for name, each in values.items()}
    return {name: each for name, each in found.items() if each is not None}


def measure_users(recommended: Indices, test: UserItems) -> UserMetrics:
    """
    Measure the lists *recommended* [users, k], best first, -1 where there is none, against *test* [users, items].

    Both have one row per user, in one order.
    """
    k = recommended.shape[1]
    users = np.flatnonzero(np.diff(test.indptr)).astype(np.int32)
    liked = np.diff(test.indptr)[users]
    hits = _hits(recommended, test, users)
    ranks = np.arange(1, k + 1)
    found = hits.sum(axis=1)
    possible = np.minimum(liked, k)
    precisions_at_hits = ((np.cumsum(hits, axis=1) / ranks) * hits).sum(axis=1)
    discounts = 1 / np.log2(ranks + 1)
    values = {
        "precision": found / k,
        "recall": found / liked,
        "recall_at_k": found / possible,
        "map": precisions_at_hits / liked,
        "map_at_k": precisions_at_hits / possible,
        "ndcg": (hits * discounts).sum(axis=1) / np.cumsum(discounts)[possible - 1],
        "mrr": (hits / ranks).max(axis=1),
        "hit_rate": (found > 0).astype(np.float64),
    }
    with_list: Mask = np.any(recommended[users] >= 0, axis=1)
    return UserMetrics(k, users, with_list, values)


def _hits(recommended: Indices, test: UserItems, users: Indices) -> Mask:
    """Return [users, k]: whether the item at that rank of the list is among the user's test items."""
    if test.nnz == 0:
        return np.zeros((len(users), recommended.shape[1]), dtype=np.bool_)
    keys = np.sort(cells_of(test))
    lists = recommended[users]
    wanted = users.astype(np.int64)[:, None] * test.shape[1] + lists
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    hits: Mask = (lists >= 0) & (keys[places] == wanted)
    return hits


def as_served(lists: Indices, popular: Indices) -> Indices:
    """Return *lists* [users, k], the *popular* items, best first, for those who have none, as the service answers."""
    served = lists.copy()
    first = popular[: lists.shape[1]]
    served[(lists < 0).all(axis=1), : len(first)] = first
    return served


def measure_lists(lists: Indices, train: UserItems) -> ListMetrics:
    """
    Measure *lists* [lists, k], -1 where one ends, by the interactions *train* [users, items] that they were made from.

    Diversity is of lists with two items or more, of 1,000 at most.
    """
    counts = users_per_item(train)
    places = np.bincount(lists[lists >= 0], minlength=train.shape[1])
    at = np.maximum(lists, 0)
    # An item that nobody has is as new as one that a single user has.
    information = -np.log2(np.maximum(counts, 1) / max(1, np.count_nonzero(np.diff(train.indptr))))
    return ListMetrics(
        coverage=float((places > 0).mean()),
        gini=_gini(places),
        diversity=_diversity(lists, train, counts),
        novelty=_mean_of_lists(information[at], lists >= 0),
        popular_share=_mean_of_lists(_head(counts)[at], lists >= 0),
    )


def measure_ratings(predicted: Values, actual: Values) -> RatingMetrics:
    """Measure *predicted* against *actual*, both [pairs]; if ratings do not vary, r2 is 1 or 0, as in scikit-learn.

    Raises ValueError for no pairs, or for arrays of two lengths.
    """
    if len(predicted) != len(actual) or len(actual) == 0:
        raise ValueError(f"there are {len(predicted)} predictions of {len(actual)} ratings")
    error = actual.astype(np.float64) - predicted
    squares = float((error**2).mean())
    return RatingMetrics(
        rmse=float(np.sqrt(squares)),
        mae=float(np.abs(error).mean()),
        r2=_explained(squares, actual),
        explained_variance=_explained(float(error.var()), actual),
    )


def _explained(unexplained: float, ratings: Values) -> float:
    whole = float(ratings.var(dtype=np.float64))
    return float(unexplained <= 1e-12) if whole <= 1e-12 else 1 - unexplained / whole


def mean_of(values: Values) -> float | None:
    """Return the mean of those of *values* that are numbers, or None where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _mean_of_lists(values: Values | Mask, present: Mask) -> float:
    length = present.sum(axis=1)
    total: Values = np.where(present, values, 0).sum(axis=1, dtype=np.float64)
    return float((total[length > 0] / length[length > 0]).mean()) if length.any() else 0.0


def _head(counts: npt.NDArray[np.int64]) -> Mask:
    """Tell which items are the most popular ones, as many as it takes for their share of all interactions."""
    order = by_popularity(counts)
    before = np.cumsum(counts[order]) - counts[order]
    head = np.zeros(len(counts), dtype=np.bool_)
    head[order] = before < _HEAD_SHARE * counts.sum()
    return head


def _gini(places: npt.NDArray[np.int64]) -> float:
    """Return the Gini coefficient of how many places each item has."""
    total, items = int(places.sum()), len(places)
    if total == 0:
        return 0.0
    ranks = np.arange(1, items + 1)
    return float(((2 * ranks - items - 1) * np.sort(places)).sum() / (items * total))


def _diversity(lists: Indices, train: UserItems, counts: npt.NDArray[np.int64]) -> float:
    """Return 1 - the mean cosine over all pairs of a list, of a sample of lists with two items or more."""
    lengths = (lists >= 0).sum(axis=1)
    drawn = _sample(np.flatnonzero(lengths >= 2), _SAMPLED_USERS)
    norms = np.sqrt(np.maximum(counts, 1))
    has = csr_matrix((np.ones(train.nnz, dtype=np.float32), train.indices, train.indptr), shape=train.shape)
    found = list[float]()
    for start in range(0, len(drawn), _LISTS_AT_ONCE):
        batch = drawn[start : start + _LISTS_AT_ONCE]
        members = lists[batch]
        of_list, items = np.nonzero(members >= 0)[0], members[members >= 0]
        # An item is a vector of length 1 of the users that have it; these are the sums of a list's, users by lists.
        sums = has @ csr_matrix((1 / norms[items], (items, of_list)), shape=(len(counts), len(batch)))
        sums.data **= 2
        # The square of a sum of vectors has each pair's product twice, and each vector's square once.
        products = np.asarray(sums.sum(axis=0)).ravel() - np.bincount(of_list, counts[items] > 0, len(batch))
        found += (1 - products / (lengths[batch] * (lengths[batch] - 1))).tolist()
    return float(np.mean(found)) if found else 0.0


def _sample(candidates: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if len(candidates) <= count:
        return candidates
    return np.sort(np.random.default_rng(_SEED).permutation(candidates)[:count])


def measure_auc(score: Score, parts: Parts) -> Values:
    """
    Return of users that have test items (in order) the area under the ROC curve, NaN for those who were not drawn.

    It is the share of pairs of a test item and an item that the user has neither in *seen* nor in *test* in which the
    test item scores higher; ties count half. At most 500 users are scored, and where there are more than 4,000 items
    fewer, down to 100.
    """
    tested = np.flatnonzero(np.diff(parts.test.indptr))
    items = parts.test.shape[1]
    places = _sample(np.arange(len(tested)), min(_SCORED_USERS, max(100, _SCORES // items)))
    found = np.full(len(tested), np.nan)
    for start in range(0, len(places), _LISTS_AT_ONCE):
        batch = places[start : start + _LISTS_AT_ONCE]
        users = tested[batch].astype(np.int32)
        scores, seen = score(parts.seen, users), parts.seen[users]
        seen = part(seen, ~np.isin(cells_of(seen), cells_of(parts.test[users])))  # a repeat is tested
        scores[np.repeat(np.arange(len(users)), np.diff(seen.indptr)), seen.indices] = np.inf
        ascending = np.sort(scores, axis=1)
        candidates = items - np.diff(seen.indptr)
        for place, user, row, rest in zip(batch, users, scores, zip(ascending, candidates, strict=True), strict=True):
            wanted = parts.test.indices[parts.test.indptr[user] : parts.test.indptr[user + 1]]
            found[place] = _area(rest[0][: rest[1]], np.sort(row[wanted]))
    return found


def _area(scores: Floats, of_wanted: Floats) -> float:
    """Return the area for one user, of whose *scores*, ascending, some are *of_wanted* items, ascending, too."""
    others = len(scores) - len(of_wanted)
    if others == 0:
        return np.nan
    # How many rank below each test item, ties counted half, less the test items among them.
    below, or_tied, wanted_below, wanted_or_tied = (
        np.searchsorted(of, of_wanted, side) for of in (scores, of_wanted) for side in ("left", "right")
    )
    in_order = (below + or_tied - wanted_below - wanted_or_tied).sum() / 2
    return float(in_order / (len(of_wanted) * others))

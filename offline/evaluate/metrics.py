"""Metrics of lists and of predicted ratings, with 95 % intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from hotplate.base.intervals import Z
from hotplate.offline.input.pairs import Indices, Mask, UserItems, has_items, items_per_user, users_per_item

# Low and high end of a 95 % interval; a plain tuple, as orjson writes no other.
MetricInterval = tuple[float, float]
Values = npt.NDArray[np.float64]
CandidateT = TypeVar("CandidateT")
# In a search, results within one standard error cannot be told apart (Breiman et al., 1984).
EQUAL_WITHIN_SE = 1.0
# The best of another kind leads by more, a 95 % interval.
LEADING_BY_SE = Z


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Means at *k* over *users* with test items, of binary relevance; a missing list counts with zeros.

    precision    hits / k
    recall       hits / test items
    recall_at_k  hits / min(k, test items)
    map          sum of the precisions at the hits / test items
    ndcg         discounted hits / those of the ideal list, which has min(k, test items) hits
    mrr          1 / rank of the first hit
    hit_rate     1 if there is a hit
    intervals    95 %, by metric; missing for fewer than two users
    """

    k: int
    precision: float
    recall: float
    recall_at_k: float
    map: float
    ndcg: float
    mrr: float
    hit_rate: float
    users: int
    users_with_lists: int
    intervals: Mapping[str, MetricInterval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListMetrics(RankingMetrics):
    """Metrics of lists and how they vary; None for what was not measured.

    coverage         share of the items of train in any list
    list_similarity  mean similarity of two items of a list, as of `ItemSimilarity`
    new_items        share of places with items of the last days
    shared_items, half_places, effective_items  as of `Spread`
    """

    coverage: float | None = None
    shared_items: float | None = None
    half_places: float | None = None
    effective_items: float | None = None
    list_similarity: float | None = None
    new_items: float | None = None


@dataclass(frozen=True, slots=True)
class RatingMetrics:
    """Errors of predicted ratings; the explained variance is R² after removing the mean error."""

    rmse: float
    mae: float
    r2: float
    explained_variance: float


def measured(metrics: RankingMetrics | RatingMetrics) -> dict[str, float]:
    """Return the metrics that were measured by name, without counts."""
    return {name: value for name, value in asdict(metrics).items() if isinstance(value, float)}


def with_interval(value: float, around: MetricInterval | None) -> str:
    """Format a metric, and half of the interval *around* it if that is known."""
    if around is None:
        return f"{value:.4f}"
    low, high = around
    return f"{value:.4f} ± {(high - low) / 2:.4f}"


@dataclass(frozen=True, slots=True)
class UserMetrics:
    """Values of each metric of `RankingMetrics` [users with test items].

    users      numbers of the users with test items
    with_list  which of them have a list
    """

    k: int
    users: Indices
    with_list: Mask
    values: Mapping[str, Values]

    @property
    def metrics(self) -> RankingMetrics:
        """The mean of each metric over users with test items, with its 95 % interval; ValueError without such users.

        `values` holds an array [users with test items] by the name of each metric, such as `ndcg`.
        """
        if not len(self.users):
            raise ValueError("no user has test items")

        means = dict[str, float]()
        intervals = dict[str, MetricInterval]()
        for name, values in self.values.items():
            means[name] = float(values.mean())
            interval = interval_of_mean(values)
            if interval is not None:
                intervals[name] = interval
        return RankingMetrics(
            self.k,
            **means,
            users=len(self.users),
            users_with_lists=int(self.with_list.sum()),
            intervals=intervals,
        )


def interval_of_mean(values: Values | Sequence[float]) -> MetricInterval | None:
    """Return the 95 % interval of the mean by Student's t; None for fewer than two values.

    Its degrees of freedom count values other than 0: most users have none, and of 30, the usual number would make
    intervals that miss the mean in 7 to 13 % of all draws instead of 2 to 6 %.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 -- takes 0.07 s to load

    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    deviation = np.std(values, ddof=1)
    freedom = max(1, np.count_nonzero(values) - 1)
    reach = float(stdtrit(freedom, 0.975) * deviation / np.sqrt(len(values)))
    return mean - reach, mean + reach


def standard_error(values: Values) -> float:
    """Return the standard error of the mean."""
    return float(values.std() / np.sqrt(len(values)))


def leads_by(values: Values, baseline: Values) -> float:
    """Return the mean difference of *values* to *baseline* per user, in standard errors."""
    apart = values - baseline
    error = standard_error(apart)
    if error:
        return float(apart.mean()) / error
    return math.copysign(math.inf, apart.mean()) if apart.any() else 0.0


def unbeaten(values: Mapping[CandidateT, Values]) -> list[CandidateT]:
    """Return the candidates that the best one does not lead by more than a 95 % interval; *values* are per user."""
    best = max(values.values(), key=lambda per_user: float(per_user.mean()))
    return [candidate for candidate, per_user in values.items() if leads_by(best, per_user) <= LEADING_BY_SE]


def measure_users(recommended: Indices, test: UserItems) -> UserMetrics:
    """Return ranking metrics, such as recall and nDCG, of each user with test items.

    *recommended* [users, k] are lists of item numbers, best first, -1 after the end; *test* [users, items] is a sparse
    matrix. A recommended item is a hit if it is among the user's test items.
    """
    k = recommended.shape[1]
    test_items_per_user = items_per_user(test)
    users = np.flatnonzero(test_items_per_user).astype(np.int32)
    test_items = test_items_per_user[users]
    most_hits = np.minimum(test_items, k)

    lists = recommended[users]
    is_hit = has_items(test, users, lists)  # [users with test items, k]
    hits = is_hit.sum(axis=1)

    # The definitions of the metrics are in `RankingMetrics`.
    ranks = np.arange(1, k + 1)
    precision_at_rank = np.cumsum(is_hit, axis=1) / ranks
    discounts = 1 / np.log2(ranks + 1)
    best_gains = np.cumsum(discounts)[most_hits - 1]
    values = {
        "precision": hits / k,
        "recall": hits / test_items,
        "recall_at_k": hits / most_hits,
        "map": (precision_at_rank * is_hit).sum(axis=1) / test_items,
        "ndcg": (is_hit * discounts).sum(axis=1) / best_gains,
        "mrr": (is_hit / ranks).max(axis=1),
        "hit_rate": (hits > 0).astype(np.float64),
    }
    with_list: Mask = np.any(lists >= 0, axis=1)
    return UserMetrics(k, users, with_list, values)


class Spread(NamedTuple):
    """How the places of lists are spread over items.

    shared_items     mean number of items that two users' lists have in common
    half_places      the smallest number of items that take half of all places
    effective_items  exp of the entropy of the items' shares of all places
    """

    shared_items: float
    half_places: float
    effective_items: float

    @classmethod
    def of(cls, lists: Indices) -> "Spread":
        """Measure *lists* [users, k], -1 after the end of one; NO_SPREAD without any item."""
        counts = np.unique(lists[lists >= 0], return_counts=True)[1].astype(np.float64)
        if not len(counts):
            return NO_SPREAD

        users = max(2, int((lists[:, 0] >= 0).sum()))
        shares = counts / counts.sum()
        taken = np.cumsum(np.sort(shares)[::-1])
        return cls(
            shared_items=float((counts * (counts - 1)).sum() / (users * (users - 1))),
            half_places=float(np.searchsorted(taken, 0.5 - 1e-9) + 1),
            effective_items=float(np.exp(-(shares * np.log(shares)).sum())),
        )

    @classmethod
    def mean(cls, spreads: "Sequence[Spread]") -> "Spread":
        """Return the mean of each figure."""
        return cls(*np.mean(spreads, axis=0).tolist())


NO_SPREAD = Spread(0.0, 0.0, 0.0)


def coverage(lists: Indices, train: UserItems) -> float:
    """Return the share of the items of *train* that are in any of the *lists*, -1 after the end of one.

    It is the catalogue coverage of Shani and Gunawardana (2010). Items without a user in *train* [users, items] cannot
    be recommended, and do not count.
    """
    is_trained = users_per_item(train) > 0
    listed_items = np.unique(lists[lists >= 0])
    return float(np.count_nonzero(is_trained[listed_items]) / np.count_nonzero(is_trained))


def measure_ratings(predicted: Values, actual: Values) -> RatingMetrics:
    """Measure *predicted* against *actual* [pairs]; if ratings do not vary, r2 is 1 or 0, as in scikit-learn."""
    error = actual.astype(np.float64) - predicted
    squares = float((error**2).mean())
    return RatingMetrics(
        rmse=float(np.sqrt(squares)),
        mae=float(np.abs(error).mean()),
        r2=_explained(squares, actual),
        explained_variance=_explained(float(error.var()), actual),
    )


def _explained(unexplained: float, ratings: Values) -> float:
    """Return the share of the variance of *ratings* that is not *unexplained*; 1 or 0 if they do not vary."""
    whole = float(ratings.var(dtype=np.float64))
    return float(unexplained <= 1e-12) if whole <= 1e-12 else 1 - unexplained / whole

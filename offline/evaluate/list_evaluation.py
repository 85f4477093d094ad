"""Evaluation of lists that exist already: compared with a truth, next to popular items or other lists."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.candidate import Candidate, Truth
from hotplate.offline.evaluate.evaluation import recommend_all
from hotplate.offline.evaluate.metrics import (
    RANKING,
    ListMetrics,
    MetricInterval,
    RankingMetrics,
    RatingMetrics,
    as_served,
    interval,
    measure_lists,
    measure_ratings,
    measure_users,
)
from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.input.matrix import Indices, Matrix, UserItems, users_per_item
from hotplate.offline.list_encoder import check_length
from hotplate.offline.train.popularity import Popularity, by_popularity


@dataclass(frozen=True, slots=True)
class ListEvaluation:
    """What the lists of one origin achieve against a truth.

    ranking     of its own lists; who has none counts with zeros
    as_served   where users without a list get the popular one; None if no popular list is known
    popularity  of the most popular items that a user did not have; None without a history, as is *variety*
    variety     what the lists are like, whether they hit or not
    rating      of the scores as predictions of ratings, over *predicted* pairs; None if there are no ratings
    pairs       of the truth; *seen_pairs* of them users had before, so no list of new items can hit them
    """

    origin: str
    pairs: int
    seen_pairs: int
    ranking: RankingMetrics
    as_served: RankingMetrics | None
    popularity: RankingMetrics | None
    variety: ListMetrics | None
    rating: RatingMetrics | None
    predicted: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MetricChange:
    """One metric of two lists; *interval* is of the difference, user by user, and None if it cannot be said."""

    metric: str
    a: float
    b: float
    interval: MetricInterval | None

    @property
    def verdict(self) -> str:
        """Say whether the second is better or worse, or that the data do not decide."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "cannot tell"
        return "better" if self.interval[0] > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two held against each other, metric by metric, at lists of *k*: each user's two lists are compared."""

    a: str
    b: str
    k: int
    users: int
    changes: tuple[MetricChange, ...]

    @property
    def verdict(self) -> str:
        """Say what nDCG says, which decides."""
        return self._decisive.verdict

    @property
    def sentence(self) -> str:
        """Say which is better, and by how much, or that the data do not decide."""
        change = self._decisive
        difference = f"nDCG@{self.k} {change.b - change.a:+.4f}"
        if change.interval is not None:
            difference += f" (95 %: {change.interval[0]:+.4f} to {change.interval[1]:+.4f})"
        if change.verdict == "cannot tell":
            return f"cannot tell whether {self.b} is better than {self.a}: {difference}"
        return f"{self.b} is {change.verdict} than {self.a}: {difference}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        changes = [asdict(change) | {"verdict": change.verdict} for change in self.changes]
        return {"sentence": self.sentence, "verdict": self.verdict, **asdict(self), "changes": changes}

    @property
    def _decisive(self) -> MetricChange:
        return next(change for change in self.changes if change.metric == "ndcg")


class Evaluator:
    """Holds lists against one truth; lives as long as one evaluation, or comparison.

    The rows of its matrices are all users of the truth and of the history, the columns all items, both in the order of
    their ids.
    """

    def __init__(self, truth: Truth, candidates: Sequence[Candidate], k: int, history: Matrix | None) -> None:
        """Number all users and items; *history* is what users had before, None if that is not known."""
        check_length(k, "k")
        self._k = k
        self.truth = truth
        users, items = truth.pairs.get_column("user"), truth.pairs.get_column("item")
        named = [each.lists.get_column("item") for each in candidates]
        named += [each.popular for each in candidates if each.popular is not None]
        known = ([], []) if history is None else (history.user_ids, history.item_ids)
        self._users = pl.Enum(pl.concat([users, pl.Series("user", known[0], pl.String)]).unique().sort())
        self._items = pl.Enum(pl.concat([items, *named, pl.Series("item", known[1], pl.String)]).unique().sort())
        self._test = self._matrix(_numbers(users, self._users), _numbers(items, self._items))
        self._history: UserItems | None = None
        if history is not None:
            of_users, of_items = (
                _numbers(pl.Series(ids, dtype=pl.String), kind)
                for ids, kind in zip(known, (self._users, self._items), strict=True)
            )
            pairs = history.user_items.tocoo()
            self._history = self._matrix(of_users[pairs.row], of_items[pairs.col])

    def evaluate(self, candidate: Candidate) -> ListEvaluation:
        """Measure the lists of one origin.

        Raises DataError if no user of the truth has a list, or if the lists leave out all pairs of the truth because
        they were learnt from.
        """
        lists, history, test = self._lists(candidate), self._history, self._test
        seen_pairs = 0 if history is None else int(history.multiply(test).nnz)
        ranking = measure_users(lists, test).metrics
        if seen_pairs == test.nnz and not ranking.recall:
            raise DataError(
                f"All {seen_pairs:,} pairs of the truth are in what {candidate.origin} learnt from, so its lists leave "
                "them out. Give a truth from after the training data, or other users' interactions."
            )
        popular = None if history is None else _most_popular(history)
        served = popular if candidate.popular is None else _numbers(candidate.popular, self._items)
        rating, predicted = self._rating(candidate)
        popularity = variety = None
        if history is not None and popular is not None:
            ranker = Popularity(users_per_item(history).astype(np.float32))
            other = recommend_all(ranker, Parts(history, None, history, test), self._k)
            popularity = measure_users(as_served(other, popular), test).metrics
            variety = measure_lists(lists, history)
        return ListEvaluation(
            origin=candidate.origin,
            pairs=int(test.nnz),
            seen_pairs=seen_pairs,
            ranking=ranking,
            as_served=None if served is None else measure_users(as_served(lists, served), test).metrics,
            popularity=popularity,
            variety=variety,
            rating=rating,
            predicted=predicted,
        )

    def compare(self, one: Candidate, other: Candidate) -> Comparison:
        """Compare the metrics of the same users, each with itself, so what both have in common cancels out."""
        a, b = (measure_users(self._lists(each), self._test) for each in (one, other))
        means = asdict(a.metrics), asdict(b.metrics)
        changes = (
            MetricChange(name, means[0][name], means[1][name], interval(b.values[name] - a.values[name]))
            for name in RANKING
        )
        return Comparison(one.origin, other.origin, self._k, len(a.users), tuple(changes))

    def _lists(self, candidate: Candidate) -> Indices:
        """Return [users, k]: items in their order, -1 where a list ends."""
        if candidate.lists.is_empty():
            raise DataError(
                f"Of {len(self.truth.users):,} users in the truth, none has a list in {candidate.origin}; "
                "see that both write the ids of users in the same way."
            )
        users = _numbers(candidate.lists.get_column("user"), self._users)
        first = np.r_[0, np.flatnonzero(np.diff(users)) + 1]
        ranks = np.arange(len(users)) - np.repeat(first, np.diff(np.r_[first, len(users)]))
        lists = np.full((self._test.shape[0], self._k), -1, dtype=np.int32)
        lists[users, ranks] = _numbers(candidate.lists.get_column("item"), self._items)
        return lists

    def _rating(self, candidate: Candidate) -> tuple[RatingMetrics | None, int]:
        """Measure the scores as predictions of ratings, and return of how many pairs there are both."""
        if "rating" not in self.truth.pairs.columns:
            return None, 0
        both = candidate.predictions.join(self.truth.pairs, on=["user", "item"]).sort("user", "item")
        if both.is_empty():
            raise DataError(
                f"Of {self.truth.pairs.height:,} pairs in the truth, none has a score in {candidate.origin}; leave "
                "--rating-column out, or give scores of the pairs that were rated."
            )
        predicted, actual = both.get_column("score").to_numpy(), both.get_column("rating").to_numpy()
        return measure_ratings(predicted, actual), both.height

    def _matrix(self, users: Indices, items: Indices) -> UserItems:
        """Return these pairs, none of which is there twice, with their columns in order."""
        shape = len(self._users.categories), len(self._items.categories)
        made = csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
        made.sort_indices()
        return made


def _numbers(ids: pl.Series, known: pl.Enum) -> Indices:
    return ids.cast(known).to_physical().to_numpy().astype(np.int32)


def _most_popular(history: UserItems) -> Indices:
    counts = users_per_item(history)
    return by_popularity(counts)[: np.count_nonzero(counts)]

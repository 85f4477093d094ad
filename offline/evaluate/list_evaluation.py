"""Evaluation of lists that exist already: held against a truth, beside the popular items of what users had before."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from offline.errors import DataError
from offline.evaluate.candidate import Candidate, from_model
from offline.evaluate.metrics import (
    ListMetrics,
    RatingMetrics,
    UserMetrics,
    as_served,
    measure_lists,
    measure_ratings,
    measure_users,
)
from offline.evaluate.splits import SplitOptions
from offline.evaluate.truth import Truth, read_lines
from offline.input.matrix import Indices, Matrix, UserItems, to_matrix, users_per_item
from offline.list_encoder import check_length
from offline.model import Model
from offline.train.engine import PARAMS, Params, fit
from offline.train.popularity import Popularity, by_popularity, most_popular
from offline.train.tuning import TuneOptions, tune


@dataclass(frozen=True, slots=True)
class ListEvaluation:
    """
    What the lists of one origin achieve against a truth.

    ranking     of its own lists; who has none counts with zeros
    as_served   where users without a list get the popular one; None where no popular list is known
    popularity  of the most popular items that a user did not have; None without a history, as is *variety*
    variety     what the lists are like, whether they hit or not
    rating      of the scores as predictions of ratings, over *predicted* pairs; None where there are no ratings
    pairs       of the truth; *seen_pairs* of them users had before, so that no list of new items can hit them
    """

    origin: str
    pairs: int
    seen_pairs: int
    ranking: UserMetrics
    as_served: UserMetrics | None
    popularity: UserMetrics | None
    variety: ListMetrics | None
    rating: RatingMetrics | None
    predicted: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        facts = {"origin": self.origin, "pairs": self.pairs, "seen_pairs": self.seen_pairs, "predicted": self.predicted}
        ranked = {name: getattr(self, name) for name in ("ranking", "as_served", "popularity")}
        facts |= {name: None if each is None else each.to_json() for name, each in ranked.items()}
        others = {"variety": self.variety, "rating": self.rating}
        return facts | {name: None if each is None else asdict(each) for name, each in others.items()}


def evaluate_files(
    train: Path,
    test: Path,
    params: Params | TuneOptions,
    k: int = 20,
    on_trial: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[ListEvaluation, Params]:
    """
    Learn from one file and test on the other, as the paper on LightGCN does (He et al., SIGIR 2020).

    Each line is `user item item …`. All items that a user does not have in *train* are ranked. Recall is hits / test
    items, nDCG is that of min(k, test items) hits at best, and both are averages over all users of *test*: items and
    users that *train* lacks count as misses. Parameters that are searched are compared on a split of *train* alone.
    """
    truth = read_lines(test)
    matrix = to_matrix(read_lines(train).pairs.with_columns(weight=pl.lit(1.0)))
    if isinstance(params, TuneOptions):
        search = tune(matrix.user_items, None, SplitOptions("by-item"), params, k=k, on_trial=on_trial)
        params = PARAMS[params.engine or "als"]() if search is None else search.trials[search.best].params
    ranker, popular = fit(matrix.user_items, params), most_popular(matrix, k)
    model = Model(ranker, matrix, {}, popular, {}, params, None, {}, datetime.now(UTC))
    candidate = from_model(model, str(train), truth.pairs, k)
    return Evaluator(truth, [candidate], k, matrix).evaluate(candidate), params


class Evaluator:
    """
    Holds lists against one truth; lives as long as one evaluation, or comparison.

    The rows of its matrices are the users of the truth, the columns all items, both in the order of their ids.
    """

    def __init__(self, truth: Truth, candidates: Sequence[Candidate], k: int, history: Matrix | None) -> None:
        """Number all users and items; *history* is what users had before, None where that is not known."""
        check_length(k, "k")
        self._k = k
        self.truth = truth
        items = [truth.pairs.get_column("item"), *(each.lists.get_column("item") for each in candidates)]
        items += [each.popular for each in candidates if each.popular is not None]
        items += [] if history is None else [pl.Series("item", history.item_ids)]
        self._users, self._items = pl.Enum(truth.users), pl.Enum(pl.concat(items).unique().sort())
        users, columns = _numbers(truth.pairs, "user", self._users), _numbers(truth.pairs, "item", self._items)
        shape = len(self._users.categories), len(self._items.categories)
        self._test = csr_matrix((np.ones(len(users), dtype=np.float32), (users, columns)), shape=shape)
        self._history: UserItems | None = None
        self._seen: UserItems | None = None
        if history is not None:
            self._history = self._with_all_items(history)
            self._seen = self._of_users(history.user_ids, self._history)

    def evaluate(self, candidate: Candidate) -> ListEvaluation:
        """Measure the lists of one origin; raises DataError where no user of the truth has one."""
        lists = self._lists(candidate)
        popular = self._popular(candidate)
        rating, predicted = self._rating(candidate)
        return ListEvaluation(
            origin=candidate.origin,
            pairs=int(self._test.nnz),
            seen_pairs=0 if self._seen is None else int(self._seen.multiply(self._test).nnz),
            ranking=measure_users(lists, self._test),
            as_served=None if popular is None else measure_users(as_served(lists, popular), self._test),
            popularity=self._popularity(),
            variety=None if self._history is None else measure_lists(lists, self._history),
            rating=rating,
            predicted=predicted,
        )

    def measure_users(self, candidate: Candidate) -> UserMetrics:
        """Measure the lists of one origin, each user alone; raises DataError as `evaluate` does."""
        return measure_users(self._lists(candidate), self._test)

    def _lists(self, candidate: Candidate) -> Indices:
        """Return [users, k]: items in their order, -1 where a list ends."""
        if candidate.lists.is_empty():
            raise DataError(
                f"None of the {self._test.shape[0]:,} users of the truth has a list in {candidate.origin}; "
                "see that both write the ids of users in the same way."
            )
        users = _numbers(candidate.lists, "user", self._users)
        first = np.r_[0, np.flatnonzero(np.diff(users)) + 1]
        ranks = np.arange(len(users)) - np.repeat(first, np.diff(np.r_[first, len(users)]))
        lists = np.full((self._test.shape[0], self._k), -1, dtype=np.int32)
        lists[users, ranks] = _numbers(candidate.lists, "item", self._items)
        return lists

    def _popular(self, candidate: Candidate) -> Indices | None:
        """Return the items that whoever has no list is served, best first; None where they are not known."""
        if candidate.popular is not None:
            return _numbers(candidate.popular.to_frame("item"), "item", self._items)
        return None if self._history is None else _most_popular(self._history)

    def _popularity(self) -> UserMetrics | None:
        if self._history is None:
            return None
        counts = users_per_item(self._history).astype(np.float32)
        users = np.arange(self._test.shape[0], dtype=np.int32)
        lists, _ = Popularity(counts).recommend(self._seen, users, self._k)
        return measure_users(as_served(lists, _most_popular(self._history)), self._test)

    def _rating(self, candidate: Candidate) -> tuple[RatingMetrics | None, int]:
        """Measure the scores as predictions of ratings, and return of how many pairs there are both."""
        if "rating" not in self.truth.pairs.columns:
            return None, 0
        both = candidate.predictions.join(self.truth.pairs, on=["user", "item"]).sort("user", "item")
        if both.is_empty():
            raise DataError(
                f"None of the {self.truth.pairs.height:,} pairs of the truth has a score in {candidate.origin}; leave "
                "--rating-column out, or give scores of the pairs that were rated."
            )
        predicted, actual = both.get_column("score").to_numpy(), both.get_column("rating").to_numpy()
        return measure_ratings(predicted, actual), both.height

    def _with_all_items(self, history: Matrix) -> UserItems:
        """Return its user_items with the columns of all items; they stay sorted, for ids ascend in both."""
        columns = _numbers(pl.DataFrame({"item": history.item_ids}), "item", self._items)
        pairs = history.user_items
        shape = pairs.shape[0], self._test.shape[1]
        return csr_matrix((pairs.data, columns[pairs.indices], pairs.indptr), shape=shape)

    def _of_users(self, user_ids: Sequence[str], pairs: UserItems) -> UserItems:
        """Return the rows of *pairs*, which are those of *user_ids*, for the users of the truth."""
        known = pl.DataFrame({"user": user_ids}).with_row_index("row")
        users = pl.DataFrame({"user": self._users.categories}).join(known, on="user", how="left", maintain_order="left")
        count = pairs.shape[0]
        with_nobody = csr_matrix(
            (pairs.data, pairs.indices, np.append(pairs.indptr, pairs.indptr[-1])), shape=(count + 1, pairs.shape[1])
        )
        return with_nobody[users.get_column("row").fill_null(count).to_numpy()]


def _numbers(frame: pl.DataFrame, column: str, ids: pl.Enum) -> Indices:
    return frame.get_column(column).cast(ids).to_physical().to_numpy().astype(np.int32)


def _most_popular(history: UserItems) -> Indices:
    """Return the items that anybody had."""
    counts = users_per_item(history)
    return by_popularity(counts)[: np.count_nonzero(counts)]

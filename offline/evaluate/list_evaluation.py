"""Evaluation of lists that exist already: compared with a truth, next to popular items or other lists.

A truth is read from files, and so are the histories of users. Lists are of files, a model, or a release of a store.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.evaluation import recommend_all
from hotplate.offline.evaluate.metrics import (
    RANKING,
    MetricInterval,
    RatingMetrics,
    as_served,
    interval,
    measure_lists,
    measure_ratings,
    measure_users,
)
from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.input.columns import choose_columns
from hotplate.offline.input.files import Format, data_errors, find_files
from hotplate.offline.input.matrix import Indices, Matrix, UserItems, to_matrix, users_per_item
from hotplate.offline.input.tables import Rows, Table, TableShape, id_reasons, open_tables, with_whole_numbers
from hotplate.offline.list_encoder import MAX_LENGTH, check_length
from hotplate.offline.list_import import read_scored
from hotplate.offline.measurement import read_lists
from hotplate.offline.model import Model
from hotplate.offline.train.popularity import Popularity, by_popularity
from hotplate.report import Report, Row
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import Item
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.keys import OVERALL, POPULAR, USER
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

_ROLES = ("user", "item")
_NO_NUMBER = "rating that is not a number"
_SCHEMA = {"user": pl.String, "item": pl.String, "score": pl.Float64}


@dataclass(frozen=True, slots=True)
class Truth:
    """What users chose; lives as long as one evaluation.

    pairs      [user, item, and rating: f64, if there is one], each pair once, by user and item in the order of bytes
    rows       how many there were, those left out among them
    left_out   how many rows were left out, by reason; zeros not listed
    """

    pairs: pl.DataFrame
    rows: int
    left_out: dict[str, int]

    @property
    def users(self) -> pl.Series:
        """All users, each once, in ascending order."""
        return self.pairs.get_column("user").unique().sort()


def read_truth(path: Path, named: Mapping[str, str | None], delimiter: str | None = None) -> Truth:
    """Read the file, or the folder of files of one kind, at *path*.

    *named* are columns by role, user, item and rating: the first two are guessed if they are None, a rating is read
    only if it is named, and is the mean of a pair's rows. Raises DataError for what cannot be read, for a rating
    that is not a finite number, and if nothing is left.
    """
    tables = open_tables(find_files(path), Format(delimiter), str(path))
    columns = choose_columns(named, list(tables[0].schema), str(path), guessed=_ROLES, required=_ROLES)
    tables, _ = with_whole_numbers(tables, [columns[role] for role in _ROLES])
    shapes = [_shape(table, columns) for table in tables]
    rows = Rows(shapes, str(path))
    ratings = [pl.col("rating").mean()] if "rating" in columns else []
    with data_errors(path):
        pairs = rows.kept.group_by(_ROLES).agg(ratings).sort(_ROLES).collect(engine="streaming")
    return Truth(pairs, rows.total, rows.left_out)


def read_history(path: Path, named: Mapping[str, str | None], delimiter: str | None = None) -> Matrix:
    """Read what users had before as `read_truth` does; raises DataError also for fewer than two users, or items."""
    return to_matrix(read_truth(path, named, delimiter).pairs.with_columns(weight=pl.lit(1.0)))


def _shape(table: Table, columns: Mapping[str, str]) -> TableShape:
    values = [table.text(columns[role]).alias(role) for role in _ROLES]
    left_out, bad = id_reasons({role: role for role in _ROLES}), dict[str, tuple[str, str]]()
    if "rating" in columns:
        name, rating = columns["rating"], pl.col("rating")
        number = table.number(name).fill_null(inf).fill_nan(None)
        values.append(pl.when(~table.is_absent(name)).then(number).alias("rating"))
        left_out |= {"no rating": rating.is_null(), _NO_NUMBER: rating.is_infinite()}
        bad[_NO_NUMBER] = name, "is not a finite number"
    return TableShape(table, values, left_out, bad)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Lists that are evaluated; lives as long as that.

    origin       what people call them
    lists        [user, item, score], at most k rows a user, who stand together, best first; users of the truth only
    predictions  [user, item, score], for as many pairs of the truth as there are scores
    popular      the items that users without a list are served, best first; None if that is not known
    history      what users had before, where the origin knows it
    """

    origin: str
    lists: pl.DataFrame
    predictions: pl.DataFrame
    popular: pl.Series | None = None
    history: Matrix | None = None


def from_files(
    path: Path, pairs: pl.DataFrame, k: int, named: Mapping[str, str | None], form: Format | None = None
) -> Candidate:
    """Read rows of user, item and score, as `import` does; of an item that a user has twice, the higher score counts.

    *pairs* [user, item] are those of the truth: memory grows with the lists of their users, and not with the file.
    Equal scores are in the order of the item ids. Raises DataError as `read_scored` does.
    """
    scored = read_scored(find_files(path), str(path), named, form or Format())[0].kept
    wanted = pairs.select(owner="user").unique().lazy()
    once = scored.join(wanted, on="owner", how="semi").group_by(user="owner", item="item").agg(pl.col("score").max())
    with data_errors(path):
        rows = once.sort("user", "score", "item", descending=[False, True, False]).collect(engine="streaming")
    return Candidate(str(path), rows.group_by("user", maintain_order=True).head(k), _predictions(rows, pairs))


def from_model(model: Model, origin: str, pairs: pl.DataFrame, k: int) -> Candidate:
    """Compute the lists of a model, without what users had already; those that it does not know have none."""
    matrix = model.matrix
    known = pl.DataFrame({"user": matrix.user_ids, "row": np.arange(len(matrix.user_ids), dtype=np.int32)})
    users = pairs.select("user").unique().join(known, on="user").sort("row")
    rows, ids = users.get_column("row").to_numpy(), pl.Series("item", matrix.item_ids, dtype=pl.String)
    items, scores = model.ranker.recommend(matrix.user_items, rows, k)
    listed = items >= 0
    lists = pl.DataFrame(
        {
            "user": users.get_column("user").gather(np.nonzero(listed)[0]),
            "item": ids.gather(items[listed]),
            "score": scores[listed],
        },
        schema=_SCHEMA,
    )
    popular = ids.gather(model.popular.items)
    return Candidate(origin, lists, _predictions(lists, pairs), popular, matrix)


async def from_release(reader: Reader, release: ReleaseRef, origin: str, pairs: pl.DataFrame, k: int) -> Candidate:
    """Read the lists of a release, one lookup for each user of *pairs*, and the popular list for everybody.

    Raises ReleaseCorrupt for a damaged list, and StoreError if one cannot be read.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    users = pairs.get_column("user").unique().sort()
    async for user, items in _read(reader, release, [USER + user for user in users]):
        columns["user"] += [user] * len(items)
        columns["item"] += [item["id"] for item in items]
        columns["score"] += [item["score"] for item in items]
    popular = [item["id"] async for _, items in _read(reader, release, [POPULAR + OVERALL]) for item in items]
    whole = pl.DataFrame(columns, schema=_SCHEMA)
    lists = whole.group_by("user", maintain_order=True).head(k)
    return Candidate(origin, lists, _predictions(whole, pairs), pl.Series("item", popular, dtype=pl.String))


async def _read(
    reader: Reader, release: ReleaseRef, keys: Sequence[str], depth: int = MAX_LENGTH
) -> AsyncIterator[tuple[str, list[Item]]]:
    """Yield those *keys* that *release* has, without their kind, and the first items of each; a damaged one raises."""
    decode = await load_decode(reader, release, await load_manifest(reader, release))
    async for name, found in read_lists(reader, release, decode, keys, depth):
        if isinstance(found, ReleaseCorrupt):
            raise found
        yield name, found


def _predictions(lists: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    return lists.join(pairs, on=["user", "item"], how="semi")


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

    def evaluate(self, candidate: Candidate) -> Report:
        """Measure the lists of one origin: alone, as served, beside popularity, and as predictions of ratings.

        Raises DataError if no user of the truth has a list, or if the lists leave out all pairs of the truth because
        they were learnt from.
        """
        lists, history, test = self._lists(candidate), self._history, self._test
        seen = 0 if history is None else int(history.multiply(test).nnz)
        ranking = measure_users(lists, test).metrics
        if seen == test.nnz and not ranking.recall:
            raise DataError(
                f"All {seen:,} pairs of the truth are in what {candidate.origin} learnt from, so its lists leave "
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
        found = {
            "ranking": ranking,
            "as_served": None if served is None else measure_users(as_served(lists, served), test).metrics,
            "popularity": popularity,
            "variety": variety,
            "rating": rating,
        }
        missing = ranking.users - ranking.users_with_lists
        notes = [f"{missing:,} of {ranking.users:,} users have no list of their own"] if missing else []
        notes += [f"{seen:,} of the pairs are of items that the user had before"] if seen else []
        notes += [f"ratings of {predicted:,} pairs were predicted"] if predicted else []
        if popularity is not None and popularity.ndcg > ranking.ndcg:
            notes.append("the popular items rank better than the lists")
        return Report(
            kind=f"evaluate {candidate.origin}",
            sentence=f"{test.nnz:,} pairs of {ranking.users:,} users, measured at {self._k} (95 % intervals):",
            rows=tuple(_rows(found)),
            notes=tuple(notes),
            listed=True,
            extra={name: None if each is None else asdict(each) for name, each in found.items()}
            | {"origin": candidate.origin, "pairs": int(test.nnz), "seen_pairs": seen, "predicted": predicted},
        )

    def compare(self, one: Candidate, other: Candidate) -> Report:
        """Compare the metrics of the same users, each with itself, so what both have in common cancels out.

        The report is broken if the other is worse, by nDCG.
        """
        a, b = (measure_users(self._lists(each), self._test) for each in (one, other))
        rows, apart = list[Row](), {name: interval(b.values[name] - a.values[name]) for name in RANKING}
        for name in RANKING:
            before, now = float(a.values[name].mean()), float(b.values[name].mean())
            low, high = apart[name] or (None, None)
            rows += [Row(name, "A", "", before), Row(name, "B", "", now)]
            rows.append(Row(name, "B - A", "", now - before, low=low, high=high, note=_verdict(apart[name])))
        verdict, decisive = _verdict(apart["ndcg"]), apart["ndcg"]
        difference = f"nDCG@{self._k} {float((b.values['ndcg'] - a.values['ndcg']).mean()):+.4f}"
        if decisive is not None:
            difference += f" (95 %: {decisive[0]:+.4f} to {decisive[1]:+.4f})"
        sentence = f"{other.origin} is {verdict} than {one.origin}: {difference}"
        if verdict == "cannot tell":
            sentence = f"cannot tell whether {other.origin} is better than {one.origin}: {difference}"
        return Report(
            kind=f"evaluate compare {one.origin} {other.origin}",
            sentence=sentence,
            rows=tuple(rows),
            notes=(f"{len(a.users):,} users, each user's two lists compared at {self._k}",),
            broken=("B is worse than A, beyond what chance explains",) if verdict == "worse" else (),
            extra={"verdict": verdict},
        )

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


def _verdict(apart: MetricInterval | None) -> str:
    if apart is None or apart[0] <= 0 <= apart[1]:
        return "cannot tell"
    return "better" if apart[0] > 0 else "worse"


def _rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield each metric of those tables that there are."""
    subjects = {
        "ranking": "lists",
        "as_served": "lists, as served",
        "popularity": "popularity",
        "variety": "what the lists are like",
        "rating": "scores as ratings",
    }
    for kind, metrics in found.items():
        figures = {} if metrics is None else asdict(metrics)
        for name, value in figures.items():
            if isinstance(value, float):
                low, high = figures.get("intervals", {}).get(name, (None, None))
                yield Row(subjects[kind], name, "", value, low=low, high=high)

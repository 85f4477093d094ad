"""The reports of `hotplate evaluate` on lists."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
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
    coverage,
    interval,
    measure_ratings,
    measure_users,
)
from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.input.columns import choose_columns
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataSource, Format, input_files, named_paths
from hotplate.offline.input.matrix import Indices, Matrix, UserItems, to_matrix, users_per_item
from hotplate.offline.input.tables import NOT_FINITE, Fault, Rows, Table, TableShape, open_tables
from hotplate.offline.list_encoder import check_length
from hotplate.offline.list_import import read_scored
from hotplate.offline.measurement import read_lists
from hotplate.offline.model import Model
from hotplate.offline.train.popularity import Popularity, by_popularity
from hotplate.report import Report, Row
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import OVERALL, POPULAR, USER, Item
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

_ROLES = ("user", "item")
_NO_NUMBER = "rating that is not a number"
_SCHEMA = {"user": pl.String, "item": pl.String, "score": pl.Float64}


@dataclass(frozen=True, slots=True)
class Truth:
    """The choices of users.

    pairs      [user, item, and rating: f64 if it was read], unique and sorted
    left_out   number of rows left out by reason
    """

    pairs: pl.DataFrame
    rows: int
    left_out: dict[str, int]

    @property
    def users(self) -> pl.Series:
        """All users, ascending."""
        return self.pairs.get_column("user").unique().sort()


def read_truth(path: DataSource, named: Mapping[str, str | None], delimiter: str | None = None) -> Truth:
    """Read a file, a folder of files of one kind, or a URL of one.

    *named* are columns by role: user and item are guessed if None; a rating is read only if named, and averaged per
    pair. Raises DataError.
    """
    source = named_paths([path])
    with input_files([path]) as files, data_errors(source, files):
        tables = open_tables(files, Format(delimiter))
        columns = choose_columns(named, list(tables[0].schema), source, guessed=_ROLES, required=_ROLES)
        shapes = [_shape(table, columns) for table in tables]
        rows = Rows(shapes, source)
        ratings = [pl.col("rating").mean()] if "rating" in columns else []
        pairs = rows.kept.group_by(_ROLES).agg(ratings).sort(_ROLES).collect(engine="streaming")
    return Truth(pairs, rows.total, rows.left_out)


def read_history(path: DataSource, named: Mapping[str, str | None], delimiter: str | None = None) -> Matrix:
    """Read histories as `read_truth`; DataError for fewer than two users or items, too."""
    return to_matrix(read_truth(path, named, delimiter).pairs.with_columns(weight=pl.lit(1.0)))


def _shape(table: Table, columns: Mapping[str, str]) -> TableShape:
    shape = TableShape(table, {role: table.text(columns[role]) for role in _ROLES})
    shape.leave_out_ids({role: columns[role] for role in _ROLES})
    if "rating" in columns:
        column = columns["rating"]
        rating = pl.col("rating")
        shape.values["rating"] = pl.when(~table.is_absent(column)).then(
            table.number(column).fill_null(inf).fill_nan(None)
        )
        shape.left_out["no rating"] = rating.is_null()
        shape.leave_out_bad(_NO_NUMBER, rating.is_infinite(), Fault(column, NOT_FINITE))
    return shape


@dataclass(frozen=True, slots=True)
class Candidate:
    """Lists to evaluate.

    lists        [user, item, score], best first; at most k contiguous rows a user, only users of the truth
    predictions  [user, item, score] of the truth's pairs with a score
    popular      the items served to users without a list, best first, if known
    """

    origin: str
    lists: pl.DataFrame
    predictions: pl.DataFrame
    popular: pl.Series | None = None
    history: Matrix | None = None


def from_files(
    path: DataSource, pairs: pl.DataFrame, k: int, named: Mapping[str, str | None], form: Format | None = None
) -> Candidate:
    """Read rows of user, item and score; of duplicates the highest score counts, ties by item id."""
    source = named_paths([path])
    wanted = pairs.select(owner="user").unique().lazy()
    with input_files([path]) as files, data_errors(source, files):
        scored = read_scored(files, source, named, form or Format()).kept.join(wanted, on="owner", how="semi")
        once = scored.group_by(user="owner", item="item").agg(pl.col("score").max())
        rows = once.sort("user", "score", "item", descending=[False, True, False]).collect(engine="streaming")
    return Candidate(source, rows.group_by("user", maintain_order=True).head(k), _predictions(rows, pairs))


def from_model(model: Model, origin: str, pairs: pl.DataFrame, k: int) -> Candidate:
    """Compute a model's lists, without seen items."""
    matrix = model.matrix
    known = pl.DataFrame({"user": matrix.user_ids, "row": np.arange(len(matrix.user_ids), dtype=np.int32)})
    users = pairs.select("user").unique().join(known, on="user").sort("row")
    rows = users.get_column("row").to_numpy()
    ids = pl.Series("item", matrix.item_ids, dtype=pl.String)
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
    """Look up the list of each user of *pairs*; raises ReleaseCorrupt and StoreError."""
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


async def _read(reader: Reader, release: ReleaseRef, keys: Sequence[str]) -> AsyncIterator[tuple[str, list[Item]]]:
    decode = await load_decode(reader, release, await load_manifest(reader, release))
    async for name, found in read_lists(reader, release, decode, keys):
        if isinstance(found, ReleaseCorrupt):
            raise found
        yield name, found


def _predictions(lists: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    return lists.join(pairs, on=["user", "item"], how="semi")


class Evaluator:
    """Measures candidates against one truth. Matrices are [users, items], both in id order."""

    def __init__(self, truth: Truth, candidates: Sequence[Candidate], k: int, history: Matrix | None) -> None:
        check_length(k, "k")
        self._k = k
        self.truth = truth
        users = truth.pairs.get_column("user")
        items = truth.pairs.get_column("item")
        named = [each.lists.get_column("item") for each in candidates]
        named += [each.popular for each in candidates if each.popular is not None]
        ids = ([], []) if history is None else (history.user_ids, history.item_ids)
        known_users, known_items = (pl.Series(each, dtype=pl.String) for each in ids)
        self._users = pl.Enum(pl.concat([users, known_users.alias("user")]).unique().sort())
        self._items = pl.Enum(pl.concat([items, *named, known_items.alias("item")]).unique().sort())
        self._test = self._matrix(_numbers(users, self._users), _numbers(items, self._items))
        self._history: UserItems | None = None
        if history is not None:
            pairs = history.user_items.tocoo()
            self._history = self._matrix(
                _numbers(known_users, self._users)[pairs.row], _numbers(known_items, self._items)[pairs.col]
            )

    def evaluate(self, candidate: Candidate) -> Report:
        """Measure lists, plain and as served, next to popularity, and as rating predictions.

        Raises DataError if no user of the truth has a list, or all its pairs are training data.
        """
        lists = self._lists(candidate)
        history = self._history
        test = self._test
        seen = 0 if history is None else int(history.multiply(test).nnz)
        ranking = measure_users(lists, test).metrics
        if seen == test.nnz and not ranking.recall:
            raise DataError(
                f"All {seen:,} pairs of the truth are in the training data of {candidate.origin}, so its lists leave "
                "them out; give later interactions, or other users'."
            )
        rating, predicted = self._rating(candidate)
        found: dict[str, Any] = {"ranking": ranking, "as_served": None, "popularity": None, "rating": rating}
        covered: float | None = None
        served = None if candidate.popular is None else _numbers(candidate.popular, self._items)
        if history is not None:
            counts = users_per_item(history)
            popular = by_popularity(counts)[: np.count_nonzero(counts)]
            served = popular if served is None else served
            ranker = Popularity(counts.astype(np.float32))
            other = recommend_all(ranker, Parts(history, None, history, test), self._k)
            found["popularity"] = measure_users(as_served(other, popular), test).metrics
            covered = coverage(lists, history.shape[1])
        if served is not None:
            found["as_served"] = measure_users(as_served(lists, served), test).metrics
        missing = ranking.users - ranking.users_with_lists
        better = found["popularity"] is not None and found["popularity"].ndcg > found["as_served"].ndcg
        notes = (
            f"{missing:,} of {ranking.users:,} users have no list" if missing else "",
            f"{seen:,} of the pairs are of items that the user had before" if seen else "",
            f"ratings of {predicted:,} pairs were predicted" if predicted else "",
            "the popular items rank better than the lists, as served" if better else "",
        )
        return Report(
            kind=f"evaluate {candidate.origin}",
            sentence=f"{test.nnz:,} pairs of {ranking.users:,} users, measured at {self._k} (95 % intervals):",
            rows=(*_rows(found), *([] if covered is None else [Row("lists", "coverage", "", covered)])),
            notes=tuple(filter(None, notes)),
            listed=True,
            extra={name: None if each is None else asdict(each) for name, each in found.items()}
            | {"origin": candidate.origin, "pairs": int(test.nnz), "seen_pairs": seen, "predicted": predicted}
            | {"coverage": covered},
        )

    def compare(self, one: Candidate, other: Candidate) -> Report:
        """Compare two candidates by user; the report is broken if *other* has a worse nDCG."""
        a, b = (measure_users(self._lists(each), self._test) for each in (one, other))
        rows = list[Row]()
        apart = {name: interval(b.values[name] - a.values[name]) for name in RANKING}
        for name in RANKING:
            before = float(a.values[name].mean())
            now = float(b.values[name].mean())
            low, high = apart[name] or (None, None)
            rows += [Row(name, "A", "", before), Row(name, "B", "", now)]
            rows.append(Row(name, "B - A", "", now - before, low=low, high=high, note=_verdict(apart[name])))
        verdict = _verdict(apart["ndcg"])
        decisive = apart["ndcg"]
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
        """Return [users, k], -1 after the end of a list."""
        if candidate.lists.is_empty():
            raise DataError(
                f"Of {len(self.truth.users):,} users in the truth, none has a list in {candidate.origin}; "
                "check that both use the same user ids."
            )
        users = _numbers(candidate.lists.get_column("user"), self._users)
        first = np.r_[0, np.flatnonzero(np.diff(users)) + 1]
        ranks = np.arange(len(users)) - np.repeat(first, np.diff(np.r_[first, len(users)]))
        lists = np.full((self._test.shape[0], self._k), -1, dtype=np.int32)
        lists[users, ranks] = _numbers(candidate.lists.get_column("item"), self._items)
        return lists

    def _rating(self, candidate: Candidate) -> tuple[RatingMetrics | None, int]:
        if "rating" not in self.truth.pairs.columns:
            return None, 0
        both = candidate.predictions.join(self.truth.pairs, on=["user", "item"]).sort("user", "item")
        if both.is_empty():
            raise DataError(
                f"Of {self.truth.pairs.height:,} pairs in the truth, none has a score in {candidate.origin}; omit "
                "--rating-column."
            )
        predicted = both.get_column("score").to_numpy()
        actual = both.get_column("rating").to_numpy()
        return measure_ratings(predicted, actual), both.height

    def _matrix(self, users: Indices, items: Indices) -> UserItems:
        shape = len(self._users.categories), len(self._items.categories)
        made = csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
        made.sort_indices()
        return made


def _numbers(ids: pl.Series, known: pl.Enum) -> Indices:
    return ids.cast(known).to_physical().to_numpy().astype(np.int32)


def _verdict(apart: MetricInterval | None) -> str:
    if apart is None or apart[0] <= 0 <= apart[1]:
        return "cannot tell"
    return "better" if apart[0] > 0 else "worse"


def _rows(found: Mapping[str, Any]) -> Iterator[Row]:
    subjects = {
        "ranking": "lists",
        "as_served": "lists, as served",
        "popularity": "popularity, as served",
        "rating": "scores as ratings",
    }
    for kind, metrics in found.items():
        figures = {} if metrics is None else asdict(metrics)
        for name, value in figures.items():
            if isinstance(value, float):
                low, high = figures.get("intervals", {}).get(name, (None, None))
                yield Row(subjects[kind], name, "", value, low=low, high=high)

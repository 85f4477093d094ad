"""The reports of `hotplate evaluate` on lists.

Candidates are lists of a file, a model or a release; the truth is what users chose, and the history what they had
chosen before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.base.report import Report, Row, format_count, rounded
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import (
    EvaluatedLists,
    baseline_record,
    measure_lists,
    popularity_of,
    recommend_all,
    record_of,
)
from hotplate.offline.evaluate.metrics import (
    RatingMetrics,
    measure_ratings,
    measure_users,
    measured,
)
from hotplate.offline.evaluate.model_report import (
    columns_of,
    difference_in_words,
    evaluation_report,
    rows_of,
)
from hotplate.offline.evaluate.records import BaselineRecord, EvaluationRecord, Lead
from hotplate.offline.evaluate.splits import Parts, rank_in_groups
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataSource, input_files, named_paths
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.input.pairs import Indices, UserItems, has_items, items_per_user, no_items
from hotplate.offline.input.rows import read_roles, with_found_header
from hotplate.offline.input.tables import open_tables
from hotplate.offline.list_encoder import check_length
from hotplate.offline.list_import import read_scored
from hotplate.offline.measurement import read_lists
from hotplate.offline.model import Model
from hotplate.offline.options import Format
from hotplate.offline.train.popularity import Popularity, PopularityParams, chosen_items
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import OVERALL, POPULAR, USER
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.origin import Origin
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

_REQUIRED_ROLES = ("user", "item")
# Of a truth, this share may be rows that a model has learnt.
_MOST_LEARNT = 0.01
_NO_ITEMS: Indices = np.zeros(0, dtype=np.int32)
_LISTS_SCHEMA = {"user": pl.String, "item": pl.String, "score": pl.Float64}


@dataclass(frozen=True, slots=True)
class Truth:
    """The choices of users.

    pairs      [user, item, perhaps rating: f64, perhaps time of the last row, in UTC], unique and sorted
    left_out   number of rows left out by reason
    """

    pairs: pl.DataFrame
    rows: int
    left_out: dict[str, int]


def read_truth(path: DataSource, named: Mapping[str, str | None], form: Format | None = None) -> Truth:
    """Read the choices of users that lists are measured against: pairs of user and item, perhaps with a rating.

    *path* is a file, a folder of files of one kind, or a URL of one. *named* are the names of columns by their role:
    `user`, `item`, `time` and `rating`. The first three are found by usual names if None, and the time `none` reads no
    times; a rating is read only if named, and averaged per pair. *form* is the format of the lists; see
    `with_found_header`. Raises DataError.
    """
    source = named_paths([path])
    needed = {role: named.get(role) for role in _REQUIRED_ROLES}
    with input_files([path]) as files, data_errors(source, files):
        tables = open_tables(files, with_found_header(form or Format(), files, needed))
        rows = read_roles(tables, source, named, required=_REQUIRED_ROLES, optional=("time",))
        kept = rows.kept
        aggregates = {"rating": pl.col("rating").mean(), "time": pl.col("time").max()}
        read = [aggregate for role, aggregate in aggregates.items() if role in kept.collect_schema()]
        pairs = kept.group_by(_REQUIRED_ROLES).agg(read).sort(_REQUIRED_ROLES).collect(engine="streaming")
    return Truth(pairs, rows.total, rows.left_out)


def read_history(path: DataSource, named: Mapping[str, str | None], form: Format | None = None) -> Matrix:
    """Read histories as `read_truth`; DataError for fewer than two users or items, too."""
    return to_matrix(read_truth(path, named, form).pairs.with_columns(weight=pl.lit(1.0)))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Lists to evaluate.

    lists           [user, item, score], contiguous rows a user, best first; only users of the truth
    popular         the items served to users without a list, best first, if known
    learnt          the interactions that were learnt, if known
    learnt_until_s  time of the newest of them in epoch seconds, if known
    """

    origin: str
    lists: pl.DataFrame
    popular: pl.Series | None = None
    learnt: Matrix | None = None
    learnt_until_s: float | None = None


def candidate_from_files(
    path: DataSource, pairs: pl.DataFrame, named: Mapping[str, str | None], form: Format | None = None
) -> Candidate:
    """Read lists from files with rows of user, item and score, for the users of *pairs* [user, item].

    A list has the items with the highest scores first, ties by item id; of duplicates the highest score counts. *named*
    are the names of columns by role, found by usual names if None.
    """
    source = named_paths([path])
    tested_users = pairs.select("user").unique().lazy()
    with input_files([path]) as files, data_errors(source, files):
        rows = read_scored(files, source, named, form or Format()).rows.kept
        tested_rows = rows.join(tested_users, on="user", how="semi")
        scores = tested_rows.group_by("user", "item").agg(pl.col("score").max())
        best_first = scores.sort("user", "score", "item", descending=[False, True, False])
        return Candidate(source, best_first.collect(engine="streaming"))


def candidate_from_model(model: Model, origin: str, pairs: pl.DataFrame, k: int) -> Candidate:
    """Compute the lists of *k* items of a model for the users of *pairs* [user, item], without items that they have.

    *pairs* are what users chose, to measure the lists by. *origin* names the model in the report.
    """
    matrix = model.matrix
    user_ids = pl.Series("user", matrix.user_ids, dtype=pl.String)
    users = user_ids.is_in(pairs.get_column("user").unique().implode()).arg_true()
    ranked = model.ranker.recommend(matrix.user_items, users.to_numpy().astype(np.int32), k)

    item_ids = pl.Series("item", matrix.item_ids, dtype=pl.String)
    is_listed = ranked.items >= 0  # [users, k]
    places_of_users, _ = np.nonzero(is_listed)
    lists = pl.DataFrame(
        {
            "user": user_ids.gather(users.gather(places_of_users)),
            "item": item_ids.gather(ranked.items[is_listed]),
            "score": ranked.scores[is_listed],
        },
        schema=_LISTS_SCHEMA,
    )
    return Candidate(
        origin=origin,
        lists=lists,
        popular=item_ids.gather(model.popular.items),
        learnt=matrix,
        learnt_until_s=Origin(learnt_until=model.learnt_until).learnt_until_s,
    )


async def candidate_from_release(reader: Reader, release: ReleaseRef, origin: str, pairs: pl.DataFrame) -> Candidate:
    """Read the published lists of the users of *pairs* [user, item] from a store.

    *pairs* are what users chose, to measure the lists by. *origin* names the release in the report. Raises
    ReleaseCorrupt for a damaged row, and StoreError.
    """
    manifest = await load_manifest(reader, release)
    decode = await load_decode(reader, release, manifest)

    rows = list[tuple[str, str, float | None]]()
    popular = list[str]()
    users = pairs.get_column("user").unique().sort()
    async for user, items in read_lists(reader, release, decode, [POPULAR + OVERALL, *(USER + users)]):
        if isinstance(items, ReleaseCorrupt):
            raise items
        if user == OVERALL:
            popular = [item["id"] for item in items]
        else:
            rows += [(user, item["id"], item.get("score")) for item in items]

    return Candidate(
        origin=origin,
        lists=pl.DataFrame(rows, schema=_LISTS_SCHEMA, orient="row"),
        popular=pl.Series("item", popular, dtype=pl.String),
        learnt_until_s=manifest.origin.learnt_until_s,
    )


class Evaluator:
    """Measures the first *k* items of the lists of *candidates* against one truth.

    Users and items of the truth, the candidates and the *history*, if any, are numbered in the order of their ids;
    matrices are [users, items].
    """

    def __init__(self, truth: Truth, candidates: Sequence[Candidate], k: int, history: Matrix | None) -> None:
        check_length(k, "k")
        self._k = k
        self.truth = truth

        learnt = [candidate.learnt for candidate in candidates]
        known = [matrix for matrix in (history, *learnt) if matrix is not None]
        past_users = [pl.Series(matrix.user_ids, dtype=pl.String) for matrix in known]
        past_items = [pl.Series(matrix.item_ids, dtype=pl.String) for matrix in known]
        listed = [candidate.lists.get_column("item") for candidate in candidates]
        popular = [candidate.popular for candidate in candidates if candidate.popular is not None]
        users = [truth.pairs.get_column("user"), *past_users]
        items = [truth.pairs.get_column("item"), *past_items, *listed, *popular]
        self._users = pl.Enum(pl.concat(users).unique().sort())
        self._items = pl.Enum(pl.concat(items).unique().sort())

        self._test = self._pairs(truth.pairs)
        self._history = None if history is None else self._numbered(history)

    def evaluate(self, candidate: Candidate) -> Report:
        """Report the metrics of the lists of *candidate*, alone and as served, those of popularity, and its ratings.

        As served, users without a list get popular items. Raises DataError if no user of the truth (what users chose)
        has a list, and SettingError as `_learnt_in_words`.
        """
        learnt = self._learnt_in_words(candidate)
        record = self._measure(candidate)
        rating = self._measure_scores(candidate)
        report = evaluation_report(f"evaluate {candidate.origin}", record, f"The lists of {candidate.origin}")
        origins = dict(report.origins)
        if rating is not None:
            origins["ratings"] = ", ".join(f"{name} {rounded(value, 3)}" for name, value in measured(rating).items())
        return replace(
            report,
            sentence=" ".join([report.sentence, *learnt]),
            origins=origins,
            notes=tuple(self._notes(candidate)),
            extra={**record.to_json(), "origin": candidate.origin, "rating": rating and asdict(rating)},
        )

    def _notes(self, candidate: Candidate) -> Iterator[str]:
        """Yield sentences on pairs of the truth that users had before."""
        if self._history is None and candidate.popular is not None:
            yield (
                "popular items count also where the user had them before, which lists may leave out; with earlier "
                "interactions, they are left out"
            )
        if self._history is not None and (seen_pairs := self._history.multiply(self._test).nnz):
            yield f"{seen_pairs:,} of the pairs are of items that the user had before, which a model leaves out"

    def _learnt_in_words(self, *candidates: Candidate) -> list[str]:
        """Return sentences on the pairs of the truth that candidates have learnt; SettingError if above 1 % of it."""
        pairs = self._test.nnz
        learnt_pairs = self._test * 0
        sentences = list[str]()
        for candidate in candidates:
            learnt = self._learnt_by(candidate)
            if learnt is None:
                sentences.append(f"Whether {candidate.origin} has learnt any pair of the truth is unknown.")
            elif learnt.nnz:
                # The pairs of a release are not known.
                has = "may have" if candidate.learnt is None else "has"
                sentences.append(f"{candidate.origin} {has} learnt {learnt.nnz:,} of {pairs:,} pairs of the truth.")
                learnt_pairs += learnt

        if learnt_pairs.count_nonzero() > _MOST_LEARNT * pairs:
            raise SettingError(
                f"{' '.join(sentences)} At most {_MOST_LEARNT:.0%} may be: give a later log with times, or measure on "
                "rows that are held back, as hotplate train --split does."
            )
        return list(dict.fromkeys(sentences))

    def _learnt_by(self, candidate: Candidate) -> UserItems | None:
        """Return the pairs of the truth that a candidate has learnt, a matrix [users, items]; None if that is unknown.

        A pair with a row after the newest learnt one is fair, even if the user had the item before. Without times on
        either side, a pair is learnt if any row of it was.
        """
        truth = self.truth.pairs
        until_s = candidate.learnt_until_s if "time" in truth.columns else None
        if candidate.learnt is None and until_s is None:
            return None

        if until_s is not None:
            is_later = pl.col("time").dt.timestamp("us") > round(1e6 * until_s)
            truth = truth.filter(~is_later.fill_null(value=False))
        pairs = self._pairs(truth)
        return pairs if candidate.learnt is None else pairs.multiply(self._numbered(candidate.learnt))

    def _measure(self, candidate: Candidate) -> EvaluationRecord:
        """Measure the lists of a candidate, alone and as served, beside popular items, if any are known."""
        history = self._history
        known = csr_matrix(self._test.shape, dtype=np.float32) if history is None else history
        parts = Parts.of(known, self._test, repeats=True)
        popularity = popularity_of(parts, PopularityParams())
        evaluated = self._evaluated(candidate, chosen_items(popularity.counts))
        result = measure_lists(evaluated, self._test, history)

        baselines = dict[str, BaselineRecord]()
        if len(evaluated.popular):
            popular = self._popular_lists(parts, popularity, evaluated.popular)
            baselines["popularity"] = baseline_record(measure_lists(popular, self._test, history), {}, result)
        return record_of(parts, "lists", {}, result, baselines)

    def _evaluated(self, candidate: Candidate, popular: Indices = _NO_ITEMS) -> EvaluatedLists:
        """Return the lists of a candidate, and the popular items that are served in place of one, or else *popular*."""
        if candidate.popular is not None:
            popular = _numbers_of_ids(candidate.popular, self._items)
        return EvaluatedLists(self._item_numbers(candidate), popular)

    def _popular_lists(self, parts: Parts, popularity: Popularity, popular_items: Indices) -> EvaluatedLists:
        """Return lists of popular items that the user does not have; of *popular_items* for all without a history."""
        if self._history is not None:
            return recommend_all(popularity, parts, self._k, popularity)
        nobody = EvaluatedLists(no_items(self._test.shape[0], self._k), popular_items)
        return nobody._replace(lists=nobody.as_served)

    def compare(self, first: Candidate, second: Candidate) -> Report:
        """Return a report on the metrics of two candidates, A and B, with the 95 % intervals of their differences.

        Each user's two lists are compared, as served: a user without a list gets the candidate's popular list, if that
        is known. The values of a metric are those of the same users, in the same order. If the nDCG of the *second* is
        certainly worse, the report counts as broken. Raises DataError and SettingError as `evaluate`.
        """
        learnt = self._learnt_in_words(first, second)
        of_first = self._evaluated(first)
        of_second = self._evaluated(second)
        served_by_first = of_first.as_served
        served_by_second = of_second.as_served
        a = measure_users(served_by_first, self._test)
        b = measure_users(served_by_second, self._test)

        apart = replace(b, values={name: values - a.values[name] for name, values in b.values.items()})
        rows = list[Row]()
        for subject, users in (("A", a), ("B", b), ("B - A", apart)):
            rows += rows_of(subject, users.metrics, None, self._k)

        lead = Lead.of(apart.values["ndcg"])
        sentence = f"{second.origin} is {difference_in_words(first.origin, lead)} by nDCG@{self._k}"
        # Two candidates of one origin have the same notes.
        notes = (
            f"{format_count(len(a.users), 'user')}, each user's two lists compared at {self._k}",
            *_notes_on_missing_lists(of_first.lists[a.users], first),
            *_notes_on_missing_lists(of_second.lists[a.users], second),
        )
        return Report(
            kind=f"evaluate compare {first.origin} {second.origin}",
            sentence=" ".join([f"{sentence}.", self._common_in_words(served_by_first, served_by_second), *learnt]),
            rows=tuple(rows),
            columns=columns_of(rows, self._k),
            notes=tuple(dict.fromkeys(notes)),
            broken=("B is worse than A, beyond what chance explains",) if lead.verdict == "worse" else (),
            extra={"verdict": lead.verdict},
        )

    def _common_in_words(self, first: Indices, second: Indices) -> str:
        """Return a sentence on how much the two lists of a user of the truth differ; both are [users, k]."""
        tested = np.flatnonzero(items_per_user(self._test)).astype(np.int32)
        if np.array_equal(first[tested], second[tested]):
            return "Each user's two lists are the same."
        users, _ = np.nonzero(second >= 0)
        listed = self._matrix(users.astype(np.int32), second[second >= 0])
        are_common = has_items(listed, tested, first[tested])
        return f"A user's two lists have {are_common.sum() / len(tested):.1f} of {self._k} items in common."

    def _item_numbers(self, candidate: Candidate) -> Indices:
        """Return the lists of *candidate* as item numbers [users, k], -1 after the end; DataError if no user has any.

        The rows of `candidate.lists` (user, item) are best first, so the rank of a row in the list is its place among
        the user's rows. `_users` and `_items` number all ids.
        """
        if candidate.lists.is_empty():
            tested = format_count(self.truth.pairs.get_column("user").n_unique(), "user")
            raise DataError(
                f"Of {tested} in the truth, none has a list in {candidate.origin}; check that both use the same user "
                "ids."
            )

        first_rows = candidate.lists.group_by("user", maintain_order=True).head(self._k)
        users = _numbers_of_ids(first_rows.get_column("user"), self._users)
        ranks = rank_in_groups(users.astype(np.int64), np.arange(len(users))).ranks  # from 1
        lists = no_items(self._test.shape[0], self._k)
        lists[users, ranks - 1] = _numbers_of_ids(first_rows.get_column("item"), self._items)
        return lists

    def _measure_scores(self, candidate: Candidate) -> RatingMetrics | None:
        """Measure scores of the candidate as predictions of the ratings in the truth; None if it has no ratings.

        Raises DataError if none of the truth's pairs has a score.
        """
        if "rating" not in self.truth.pairs.columns:
            return None

        with_scores = candidate.lists.drop_nulls("score")
        scored = with_scores.join(self.truth.pairs, on=["user", "item"]).sort("user", "item")
        if scored.is_empty():
            pairs = format_count(self.truth.pairs.height, "pair")
            raise DataError(
                f"Of {pairs} in the truth, none has a score in {candidate.origin}; omit the column of ratings."
            )
        return measure_ratings(scored["score"].to_numpy(), scored["rating"].to_numpy())

    def _pairs(self, pairs: pl.DataFrame) -> UserItems:
        """Return the matrix with 1 at the *pairs* [user, item]."""
        users = _numbers_of_ids(pairs.get_column("user"), self._users)
        return self._matrix(users, _numbers_of_ids(pairs.get_column("item"), self._items))

    def _numbered(self, matrix: Matrix) -> UserItems:
        """Return the pairs of *matrix* in the numbers of `_users` and `_items`."""
        pairs = matrix.user_items.tocoo()
        users = _numbers_of_ids(pl.Series(matrix.user_ids), self._users)
        items = _numbers_of_ids(pl.Series(matrix.item_ids), self._items)
        return self._matrix(users[pairs.row], items[pairs.col])

    def _matrix(self, users: Indices, items: Indices) -> UserItems:
        """Return the matrix with 1 at the pairs of numbered *users* and *items*."""
        shape = len(self._users.categories), len(self._items.categories)
        matrix = csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
        matrix.sort_indices()
        return matrix


def _notes_on_missing_lists(lists: Indices, candidate: Candidate) -> Iterator[str]:
    """Yield a sentence if users have no list among *lists* [users, k], which end with -1."""
    missing = int(np.count_nonzero((lists < 0).all(axis=1)))
    if missing:
        counted = "nothing: its popular list is not known" if candidate.popular is None else "its popular list"
        users = format_count(len(lists), "user")
        yield f"{missing:,} of {users} have no list in {candidate.origin}, and count with {counted}"


def _numbers_of_ids(ids: pl.Series, known: pl.Enum) -> Indices:
    """Return the number of each id, its place in *known*."""
    return ids.cast(known).to_physical().to_numpy().astype(np.int32)

"""Reports of models, and of lists of any origin against a truth."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.base.report import to_json
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.reports import (
    Candidate,
    Evaluator,
    Truth,
    candidate_from_files,
    read_history,
    read_truth,
)
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.options import Format

TRUTH = "user,item,rating\na,x,5\na,y,1\nb,y,3\nc,z,2\n"
LISTS = "user,item,score\nb,x,2\nb,y,1\na,x,4.5\na,q,9\nstranger,x,1\na,x,4\n"
HISTORY = "user,item\na,q\nb,x\nd,x\nd,q\ne,x\nc,z\n"


def written(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return [folder / f"{name}.csv" for name in texts]


def held(folder: Path, k: int = 2) -> tuple[Evaluator, Candidate]:
    truth, lists, train = written(folder, truth=TRUTH, lists=LISTS, train=HISTORY)
    read = read_truth(truth, {"rating": "rating"})
    imported = candidate_from_files(lists, read.pairs, {})
    return Evaluator(read, [imported], k, read_history(train, {})), imported


def test_lists_from_files_are_measured_as_counted_by_hand(tmp_path: Path) -> None:
    evaluator, lists = held(tmp_path)
    facts = to_json(evaluator.evaluate(lists))
    assert lists.lists.rows() == [("a", "q", 9.0), ("a", "x", 4.5), ("b", "x", 2.0), ("b", "y", 1.0)]
    ranking = facts["model"]
    popularity = facts["baselines"]["popularity"]
    assert (ranking["users"], ranking["users_with_lists"], facts["test_pairs"], facts["cold_pairs"]) == (3, 2, 4, 2)
    assert facts["notes"] == ("1 of the pairs are of items that the user had before, which a model leaves out",)
    assert ranking["precision"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert ranking["recall"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert facts["as_served"]["users_with_lists"] == 3
    assert facts["as_served"]["precision"] == ranking["precision"]  # q and x are popular, and c chose z
    assert popularity["as_served"]["hit_rate"] == pytest.approx(1 / 3)  # a has q already, and gets x
    assert facts["rating"]["mae"] == pytest.approx((0.5 + 2) / 2)
    assert ranking["coverage"] == pytest.approx(2 / 3)  # q and x of q, x and z; y was unknown in training
    low, high = facts["intervals"]["recall"]
    assert low <= ranking["recall"] <= high


def test_report_of_one_user_has_no_interval(tmp_path: Path) -> None:
    truth, lists, train = written(tmp_path, truth="user,item\na,x\n", lists=LISTS, train=HISTORY)
    pairs = read_truth(truth, {})
    imported = candidate_from_files(lists, pairs.pairs, {})
    report = Evaluator(pairs, [imported], 2, read_history(train, {})).evaluate(imported)
    assert "Of 1 user, 100 % chose an item" in report.sentence
    assert report.origins == {
        "nDCG": "no interval is known, as it takes two users",
        "test": "given split: 1 of 7 pairs, of 1 user",
    }


def test_popular_list_without_a_history_is_not_called_new_to_users(tmp_path: Path) -> None:
    evaluator, lists = held(tmp_path)
    unknown = Evaluator(evaluator.truth, [lists], 2, None)
    note = "popular items count also where the user had them before"
    for measured, is_noted in ((unknown, True), (evaluator, False)):
        report = measured.evaluate(replace(lists, popular=pl.Series(["x", "q"])))
        assert any(note in text for text in report.notes) == is_noted


def test_report_counts_users_without_a_list(tmp_path: Path) -> None:
    evaluator, _ = held(tmp_path)
    (path,) = written(tmp_path, one="user,item,score\nc,q,3\nc,x,2\nc,z,1\n")
    sparse = evaluator.evaluate(candidate_from_files(path, evaluator.truth.pairs, {}))
    assert "2 of 3 users have no list and get the popular one" in sparse.origins["test"]
    assert not any("the popular items rank better" in note for note in sparse.notes), "both serve them"


def test_ratings_without_a_single_score_are_an_error(tmp_path: Path) -> None:
    truth, lists = written(tmp_path, truth="user,item,stars\na,y,1\n", lists=LISTS)
    read = read_truth(truth, {"rating": "stars"})
    imported = candidate_from_files(lists, read.pairs, {})
    with pytest.raises(DataError, match="Of 1 pair in the truth, none has a score"):
        Evaluator(read, [imported], 2, None).evaluate(imported)


@pytest.mark.parametrize(
    ("first_line", "columns"),
    [("", {}), ("user,item\n", {}), ("buyer,sku\n", {"user": "buyer"}), ("", {"user": "1", "item": "2"})],
)
def test_truth_beside_lists_without_a_header_may_have_one(
    first_line: str, columns: dict[str, str], tmp_path: Path
) -> None:
    (path,) = written(tmp_path, truth=f"{first_line}1,2\n1,3\n")
    assert read_truth(path, columns, Format(header=False)).pairs.rows() == [("1", "2"), ("1", "3")]


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=30)


@given(truth=ROWS, learnt=ROWS, has_times=st.booleans(), knows_pairs=st.booleans())
def test_learnt_pairs_are_those_without_a_row_after_the_newest_learnt_one(
    truth: list[tuple[int, int, int]], learnt: list[tuple[int, int, int]], *, has_times: bool, knows_pairs: bool
) -> None:
    truth_pairs = pairs_with_last_hour([*truth, (0, 9, 9)])  # a user with a list
    learnt_pairs = pairs_with_last_hour([*learnt, (0, 0, 0), (1, 1, 0)])  # a matrix has two users and items
    expected = 0
    if has_times:
        newest = max(learnt_pairs.values())
        expected = sum(
            hour <= newest and (not knows_pairs or pair in learnt_pairs) for pair, hour in truth_pairs.items()
        )
    elif knows_pairs:
        expected = len(truth_pairs.keys() & learnt_pairs.keys())

    log = frame_of(learnt_pairs)
    newest_time = log.get_column("time").max()
    assert isinstance(newest_time, datetime)
    lists = pl.DataFrame({"user": ["u0"], "item": ["i0"], "score": [1.0]})
    candidate = Candidate("model", lists, learnt_until_s=newest_time.replace(tzinfo=UTC).timestamp())
    if knows_pairs:
        candidate = replace(candidate, learnt=to_matrix(log.with_columns(weight=1.0)))
    pairs = frame_of(truth_pairs)
    if not has_times:
        pairs = pairs.drop("time")

    evaluator = Evaluator(Truth(pairs, len(pairs), {}), [candidate], 2, None)
    if not has_times and not knows_pairs:
        assert evaluator.evaluate(candidate).sentence.endswith(
            "Whether model has learnt any pair of the truth is unknown."
        )
    elif expected:
        with pytest.raises(SettingError, match=f"learnt {expected} of {len(pairs)} pairs"):
            evaluator.evaluate(candidate)
    else:
        assert "learnt" not in evaluator.evaluate(candidate).sentence


def pairs_with_last_hour(rows: list[tuple[int, int, int]]) -> dict[tuple[int, int], int]:
    pairs = dict[tuple[int, int], int]()
    for user, item, hour in rows:
        pairs[user, item] = max(hour, pairs.get((user, item), 0))
    return pairs


def frame_of(pairs: dict[tuple[int, int], int]) -> pl.DataFrame:
    times = [datetime(2026, 1, 1, hour) for hour in pairs.values()]  # noqa: DTZ001 -- naive UTC
    users = [f"u{user}" for user, _ in pairs]
    items = [f"i{item}" for _, item in pairs]
    frame = pl.DataFrame({"user": users, "item": items, "time": times})
    return frame.with_columns(pl.col("time").cast(pl.Datetime("us"))).sort("user", "item")


def test_truth_is_read_and_left_out_rows_are_counted(tmp_path: Path) -> None:
    (path,) = written(tmp_path, truth="user,item,rating\na,x,5\na,x,2\n,x,1\na,,1\nb,x,\n")
    read = read_truth(path, {"rating": "rating"})
    assert read.pairs.rows() == [("a", "x", 3.5)]
    assert read.rows == 5
    assert read.left_out == {"no user": 1, "no item": 1, "no rating": 1}
    assert read_truth(path, {}).pairs.columns == ["user", "item"]
    path.write_text("user,item,rating\na,x,good\n")
    with pytest.raises(DataError, match="row 2, column 'rating': 'good' is not a finite number"):
        read_truth(path, {"rating": "rating"})


def test_users_without_a_list_are_told_apart_where_popularity_has_the_same(tmp_path: Path) -> None:
    truth = "".join(f"u{user},i{user % 3}\n" for user in range(8))
    history = "".join(f"u{user},j{user % 2}\n" for user in range(6))
    lists = "".join(f"u{user},i{user % 3},1\n" for user in range(6))
    paths = written(tmp_path, t=f"user,item\n{truth}", h=f"user,item\n{history}", l=f"user,item,score\n{lists}")
    choices = read_truth(paths[0], {})
    candidate = candidate_from_files(paths[2], choices.pairs, {})
    report = Evaluator(choices, [candidate], 1, read_history(paths[1], {})).evaluate(candidate)
    assert (
        "For 6 returning users it is 1.000 against 0.000; for 2 new users, 0.000 with the popular list that they are "
        "served, as with popularity. "
    ) in report.sentence
    assert report.origins["test"].endswith(
        "2 of 8 users have no list and get the popular one; 8 pairs of items that were new"
    )
    fewer = replace(candidate, lists=candidate.lists.head(3))
    assert "returning" not in Evaluator(choices, [fewer], 1, read_history(paths[1], {})).evaluate(fewer).sentence
    alone = Evaluator(choices, [candidate], 1, None).evaluate(candidate)
    assert alone.origins["test"] == "given split: 8 of 8 pairs, of 8 users; 2 of 8 users have no list"

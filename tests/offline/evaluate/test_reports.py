"""Reports of models, and of lists of any origin against a truth."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from hotplate.base.report import to_json
from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.reports import Candidate, Evaluator, candidate_from_files, read_history, read_truth
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
    imported = candidate_from_files(lists, read.pairs, k, {})
    return Evaluator(read, [imported], k, read_history(train, {})), imported


def test_lists_from_files_are_measured_as_counted_by_hand(tmp_path: Path) -> None:
    evaluator, lists = held(tmp_path)
    facts = to_json(evaluator.evaluate(lists))
    assert lists.lists.rows() == [("a", "q", 9.0), ("a", "x", 4.5), ("b", "x", 2.0), ("b", "y", 1.0)]
    ranking = facts["ranking"]
    assert (ranking["users"], ranking["users_with_lists"], facts["pairs"], facts["seen_pairs"]) == (3, 2, 4, 1)
    assert ranking["precision"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert ranking["recall"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert facts["as_served"]["users_with_lists"] == 3
    assert facts["as_served"]["precision"] == ranking["precision"]  # q and x are popular, and c chose z
    assert facts["popularity"]["hit_rate"] == pytest.approx(1 / 3)  # a has q already, and gets x
    assert facts["predicted"] == 2
    assert facts["rating"]["mae"] == pytest.approx((0.5 + 2) / 2)
    assert facts["coverage"] == pytest.approx(2 / 3)  # q and x of q, x and z; y was unknown in training
    low, high = ranking["intervals"]["recall"]
    assert low <= ranking["recall"] <= high


def test_report_rows_repeat_the_metrics(tmp_path: Path) -> None:
    evaluator, lists = held(tmp_path)
    facts = to_json(evaluator.evaluate(lists))
    rows = {(row["subject"], row["figure"]): row["value"] for row in facts["rows"]}
    assert rows["lists", "recall"] == facts["ranking"]["recall"]
    assert rows["scores as ratings", "mae"] == facts["rating"]["mae"]
    assert rows["popularity, as served", "ndcg"] == facts["popularity"]["ndcg"]


def test_report_of_one_user_has_no_interval(tmp_path: Path) -> None:
    truth, lists, train = written(tmp_path, truth="user,item\na,x\n", lists=LISTS, train=HISTORY)
    pairs = read_truth(truth, {})
    imported = candidate_from_files(lists, pairs.pairs, 2, {})
    report = Evaluator(pairs, [imported], 2, read_history(train, {})).evaluate(imported)
    assert "Of 1 user, 100 % chose an item" in report.sentence
    assert report.origins == {
        "nDCG": "no interval is known, as it takes two users",
        "test": "1 pair of 1 user, measured at 2 (95 % intervals)",
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
    sparse = evaluator.evaluate(candidate_from_files(path, evaluator.truth.pairs, 2, {}))
    assert sparse.notes[0] == "2 of 3 users have no list"
    assert not any("the popular items rank better" in note for note in sparse.notes), "both serve them"


def test_ratings_without_a_single_score_are_an_error(tmp_path: Path) -> None:
    truth, lists = written(tmp_path, truth="user,item,stars\na,y,1\n", lists=LISTS)
    read = read_truth(truth, {"rating": "stars"})
    imported = candidate_from_files(lists, read.pairs, 2, {})
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

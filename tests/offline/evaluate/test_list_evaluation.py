"""Lists of any origin against a truth: figures that can be counted by hand, the same from files, models and stores."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.candidate import (
    Candidate,
    Truth,
    from_files,
    from_model,
    from_release,
    read_history,
    read_truth,
)
from hotplate.offline.evaluate.list_evaluation import Evaluator, evaluate_files
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.publish import PublishSettings, publish
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import fit
from hotplate.stores.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.interactions import checkerboard_model

TRUTH = "user,item,rating\na,x,5\na,y,1\nb,y,3\nc,z,2\n"
LISTS = "user,item,score\nb,x,2\nb,y,1\na,x,4.5\na,q,9\nstranger,x,1\na,x,4\n"
HISTORY = "user,item\na,q\nb,x\nd,x\nd,q\ne,x\nc,z\n"


def written(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return [folder / f"{name}.csv" for name in texts]


def held(folder: Path, k: int = 2) -> tuple[Evaluator, Candidate]:
    truth, lists, train = written(folder, truth=TRUTH, lists=LISTS, train=HISTORY)
    found = read_truth(truth, {"rating": "rating"})
    made = from_files(lists, found.pairs, k, {})
    return Evaluator(found, [made], k, read_history(train, {})), made


def test_lists_from_files_are_measured_as_counted_by_hand(tmp_path: Path) -> None:
    evaluator, lists = held(tmp_path)
    found = evaluator.evaluate(lists)
    assert lists.lists.rows() == [("a", "q", 9.0), ("a", "x", 4.5), ("b", "x", 2.0), ("b", "y", 1.0)]
    ranking = found.ranking
    assert (ranking.users, ranking.users_with_lists, found.pairs, found.seen_pairs) == (3, 2, 4, 1)
    assert ranking.precision == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert ranking.recall == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.as_served is not None
    assert found.as_served.users_with_lists == 3
    assert found.as_served.precision == ranking.precision  # q and x are popular, and c chose z
    assert found.popularity is not None
    assert found.popularity.hit_rate == pytest.approx(1 / 3)  # a has q already, and gets x
    assert found.rating is not None
    assert found.predicted == 2
    assert found.rating.mae == pytest.approx((0.5 + 2) / 2)
    assert found.variety is not None
    assert found.variety.coverage == pytest.approx(3 / 4)
    assert found.ranking.intervals["recall"][0] <= ranking.recall <= found.ranking.intervals["recall"][1]


def test_of_a_file_the_best_rows_of_the_users_of_the_truth_are_read(tmp_path: Path) -> None:
    rows = [(f"u{n % 7}", f"i{n % 93}", n * 7919 % 101) for n in range(500)]
    path = tmp_path / "lists.parquet"
    pl.DataFrame(rows, ["user", "item", "score"], orient="row").write_parquet(path)
    pairs = pl.DataFrame({"user": ["u1", "u2", "nobody"], "item": ["i1", "i2", "i3"]})
    best = dict[tuple[str, str], float]()
    for user, item, score in rows:
        best[user, item] = max(score, best.get((user, item), 0))
    wanted = [
        sorted((-score, item) for (each, item), score in best.items() if each == user)[:5] for user in ("u1", "u2")
    ]
    found = from_files(path, pairs, 5, {})
    assert [(-score, item) for _, item, score in found.lists.rows()] == [*wanted[0], *wanted[1]]
    assert set(found.predictions.rows()) == {(*pair, best[pair]) for pair in pairs.rows() if pair in best}


async def test_a_model_and_its_release_have_the_same_figures() -> None:
    model = checkerboard_model(8)
    ids = model.matrix.user_ids
    pairs = pl.DataFrame({"user": [*ids, "stranger"], "item": [*(f"i{one}" for one in ids), "in1"]})
    store = MemoryStore(FakeClock())
    await publish(ModelLists(model, ListSettings(5)), store, PublishSettings("zstd"))
    release = (await store.catalogue()).live_ref
    assert release is not None
    assert from_model(model, "model", pairs.filter(pl.col("user") == "stranger"), 5).lists.is_empty()
    computed = from_model(model, "model", pairs, 5)
    served = await from_release(store, release, "store", pairs, 5)
    assert served.lists.select("user", "item").equals(computed.lists.select("user", "item"))
    evaluator = Evaluator(Truth(pairs, len(pairs), {}), [computed, served], 5, computed.history)
    one, other = evaluator.evaluate(computed), evaluator.evaluate(served)
    assert one.ranking == other.ranking
    assert one.as_served == other.as_served
    assert one.ranking.hit_rate == pytest.approx(8 / 9)
    assert one.ranking.users_with_lists == 8
    assert {each.interval for each in evaluator.compare(computed, served).changes} == {(0, 0)}


def test_users_that_two_files_name_differently_are_an_error(tmp_path: Path) -> None:
    truth, lists = written(tmp_path, truth="user,item\nA,x\n", lists=LISTS)
    found = read_truth(truth, {})
    made = from_files(lists, found.pairs, 2, {})
    with pytest.raises(DataError, match=r"Of 1 users in the truth, none has a list in .*lists\.csv"):
        Evaluator(found, [made], 2, None).evaluate(made)


def test_ratings_without_a_single_score_are_an_error(tmp_path: Path) -> None:
    truth, lists = written(tmp_path, truth="user,item,stars\na,y,1\n", lists=LISTS)
    found = read_truth(truth, {"rating": "stars"})
    made = from_files(lists, found.pairs, 2, {})
    with pytest.raises(DataError, match="Of 1 pairs in the truth, none has a score"):
        Evaluator(found, [made], 2, None).evaluate(made)


def test_a_truth_is_read_with_what_is_left_out_counted(tmp_path: Path) -> None:
    (path,) = written(tmp_path, truth="user,item,rating\na,x,5\na,x,2\n,x,1\na,,1\nb,x,\n")
    found = read_truth(path, {"rating": "rating"})
    assert found.pairs.rows() == [("a", "x", 3.5)]
    assert found.rows == 5
    assert found.left_out == {"no user": 1, "no item": 1, "no rating": 1}
    assert read_truth(path, {}).pairs.columns == ["user", "item"]
    path.write_text("user,item,rating\na,x,good\n")
    with pytest.raises(DataError, match="row 2, column 'rating': the rating 'good' is not a finite number"):
        read_truth(path, {"rating": "rating"})


def test_the_same_lists_differ_by_nothing_and_better_ones_by_more(tmp_path: Path) -> None:
    evaluator, lists = held(tmp_path)
    assert evaluator.compare(lists, lists).verdict == "cannot tell"
    pairs = pl.DataFrame({"user": [f"u{n}" for n in range(50)], "item": ["x"] * 50})
    good = Candidate("good", pairs.with_columns(score=pl.lit(1.0)), pairs.clear())
    bad = Candidate("bad", pairs.with_columns(item=pl.lit("y"), score=pl.lit(1.0)), pairs.clear())
    evaluator = Evaluator(Truth(pairs, 50, {}), [good, bad], 1, None)
    found = evaluator.compare(good, bad)
    assert found.sentence == "bad is worse than good: nDCG@1 -1.0000 (95 %: -1.0000 to -1.0000)"
    assert evaluator.compare(bad, good).verdict == "better"


def test_figures_of_given_files_are_those_of_the_paper_on_lightgcn(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    has = {user: set(rng.choice(60, rng.integers(3, 20), replace=False).tolist()) for user in range(50)}
    held = {user: set(rng.choice(70, rng.integers(1, 30), replace=False).tolist()) for user in range(5, 55)}  # some new
    for path, pairs in ((train, has), (test, held)):
        path.write_text("".join(f"{user} {' '.join(map(str, sorted(items)))}\n" for user, items in pairs.items()))
    with test.open("a") as file:
        file.write("99\n")  # a user with nothing to test
    params = ALSParams(factors=8, iterations=3)
    found, _ = evaluate_files(train, test, params)
    rows = [(str(user), str(item), 1.0) for user in has for item in has[user]]
    matrix = to_matrix(pl.DataFrame(rows, ["user", "item", "weight"], orient="row"))
    users = np.arange(50, dtype=np.int32)
    lists, _ = fit(matrix.user_items, params).recommend(matrix.user_items, users, 60, keep_seen=True)
    recalls, gains = [], []
    for user, wanted in held.items():
        ranked = list[int]()
        if user in has:
            row = lists[matrix.user_ids.index(str(user))]
            ranked = [int(matrix.item_ids[column]) for column in row[row >= 0]]
            ranked = [item for item in ranked if item not in has[user]][:20]
        hits = np.isin(ranked, list(wanted)).astype(float)
        recalls.append(hits.sum() / len(wanted))
        best = (1 / np.log2(np.arange(2, 2 + min(20, len(wanted))))).sum()
        gains.append((hits / np.log2(np.arange(2, 2 + len(hits)))).sum() / best)
    assert found.ranking.recall == pytest.approx(np.mean(recalls))
    assert found.ranking.ndcg == pytest.approx(np.mean(gains))
    assert found.ranking.users == 50

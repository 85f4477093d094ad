"""Evaluation: splits are disjoint and of the share that was requested, and metrics are what their definitions say."""

import math
from dataclasses import asdict

import implicit.evaluation
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from offline.errors import SettingError
from offline.evaluate.metrics import measure
from offline.evaluate.splits import SplitKind, SplitOptions, split
from offline.input.matrix import UserItems
from offline.train.als import Factors
from tests.support.soak import scaled


def naive(recommended: list[list[int]], liked: list[set[int]], k: int) -> dict[str, float]:
    rows = []
    for items, wanted in zip(recommended, liked, strict=True):
        if not wanted:
            continue
        hits = [item in wanted for item in items]
        at_hits = sum(sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit)
        gain = sum(1 / math.log(rank + 2) for rank, hit in enumerate(hits) if hit)
        ideal = sum(1 / math.log(rank + 2) for rank in range(min(k, len(wanted))))
        rows.append(
            {
                "precision": sum(hits) / k,
                "recall": sum(hits) / len(wanted),
                "map": at_hits / len(wanted),
                "map_at_k": at_hits / min(k, len(wanted)),
                "ndcg": gain / ideal,
            }
        )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]], int, int]:
    items, k, users = draw(st.integers(2, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 6))
    lists = draw(
        st.lists(
            st.lists(st.integers(0, items - 1), unique=True, max_size=k).map(lambda row: row + [-1] * (k - len(row))),
            min_size=users,
            max_size=users,
        )
    )
    liked = draw(st.lists(st.sets(st.integers(0, items - 1)), min_size=users, max_size=users).filter(any))
    return lists, liked, k, items


Case = tuple[list[list[int]], list[set[int]], int, int]


def check_metrics(case: Case) -> None:
    lists, liked, k, items = case
    test = np.zeros((len(liked), items), dtype=np.float32)
    for user, wanted in enumerate(liked):
        test[user, list(wanted)] = 1
    metrics = measure(np.array(lists, dtype=np.int32).reshape(len(liked), k), csr_matrix(test))
    for name, value in naive(lists, liked, k).items():
        assert asdict(metrics)[name] == pytest.approx(value)
    assert metrics.k == k
    assert metrics.users == sum(map(bool, liked))
    assert metrics.users_with_lists == sum(
        bool(wanted) and max(row) >= 0 for row, wanted in zip(lists, liked, strict=True)
    )


@settings(deadline=None)  # a busy machine is no failure
@given(cases())
def test_the_metrics_are_what_their_definitions_say(case: Case) -> None:
    check_metrics(case)


@pytest.mark.soak
@settings(deadline=None, max_examples=scaled(2000))
@given(cases())
def test_thousands_of_metrics_are_what_their_definitions_say(case: Case) -> None:
    check_metrics(case)


def test_ndcg_and_map_at_k_are_those_of_implicit() -> None:
    rng = np.random.default_rng(7)
    whole = csr_matrix((rng.random((60, 40)) < 0.3).astype(np.float32))
    train, _, _, test = split(whole, None, SplitOptions("random", 0.3, seed=1))
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=4, random_state=1)
        model.fit(train, show_progress=False)
        wanted = implicit.evaluation.ranking_metrics_at_k(model, train, test, K=10, show_progress=False)
    lists, _ = Factors(model.user_factors, model.item_factors).recommend(train, np.arange(60, dtype=np.int32), 10)
    metrics = measure(lists, test)
    assert metrics.ndcg == pytest.approx(wanted["ndcg"])
    assert metrics.map_at_k == pytest.approx(wanted["map"])


def test_no_user_with_test_items_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no user has test items"):
        measure(np.zeros((2, 3), dtype=np.int32), csr_matrix((2, 4), dtype=np.float32))


@st.composite
def matrices(draw: st.DrawFn) -> UserItems:
    shape = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    cells = draw(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return csr_matrix(np.array(cells, dtype=np.float32).reshape(shape))


def check_split(kind: SplitKind, user_items: UserItems, test_share: float, seed: int) -> None:
    train, _, _, test = split(user_items, None, SplitOptions(kind, test_share, seed=seed))
    assert train.shape == test.shape == user_items.shape
    assert train.multiply(test).nnz == 0
    assert (train + test != user_items).nnz == 0
    assert train.nnz + test.nnz == user_items.nnz
    again = split(user_items, None, SplitOptions(kind, test_share, seed=seed)).train
    assert (again != train).nnz == 0
    assert train.has_canonical_format
    assert test.dtype == np.float32


@pytest.mark.parametrize("kind", ["random", "by-item", "by-user"])
@settings(deadline=None)  # a busy machine is no failure
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_train_and_test_are_disjoint_and_together_the_whole(
    kind: SplitKind, user_items: UserItems, test_share: float, seed: int
) -> None:
    check_split(kind, user_items, test_share, seed)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["random", "by-item", "by-user"])
@settings(deadline=None, max_examples=scaled(800))
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_thousands_of_splits_are_disjoint_and_together_the_whole(
    kind: SplitKind, user_items: UserItems, test_share: float, seed: int
) -> None:
    check_split(kind, user_items, test_share, seed)


@settings(deadline=None)  # a busy machine is no failure
@given(matrices(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_each_group_is_split_by_the_share(user_items: UserItems, test_share: float, seed: int) -> None:
    axes: tuple[tuple[int, SplitKind], ...] = ((0, "by-item"), (1, "by-user"))
    for axis, kind in axes:
        train = split(user_items, None, SplitOptions(kind, test_share, seed=seed)).train
        wanted = np.round((1 - test_share) * user_items.getnnz(axis=axis))
        assert (train.getnnz(axis=axis) == wanted).all()
    train = split(user_items, None, SplitOptions("random", test_share, seed=seed)).train
    assert train.nnz == round((1 - test_share) * user_items.nnz)


def test_another_seed_splits_otherwise() -> None:
    user_items = csr_matrix(np.ones((30, 30), dtype=np.float32))
    one = split(user_items, None, SplitOptions(seed=1)).train
    two = split(user_items, None, SplitOptions(seed=2)).train
    assert (one != two).nnz > 0


@pytest.mark.parametrize("test_share", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(test_share: float) -> None:
    with pytest.raises(SettingError, match="test share"):
        SplitOptions("random", test_share)

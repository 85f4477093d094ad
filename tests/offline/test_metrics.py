"""Metrics: what the plain definitions give, user by user, and what implicit gives for nDCG."""

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

from offline.evaluate import measure, random_split
from offline.train.als import Factors, recommend


def naive(recommended: list[list[int]], liked: list[set[int]], k: int) -> dict[str, float]:
    rows = []
    for items, wanted in zip(recommended, liked, strict=True):
        if not wanted:
            continue
        hits = [item in wanted for item in items]
        at_hits = sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit)
        gain = sum(1 / math.log(place + 2) for place, hit in enumerate(hits) if hit)
        ideal = sum(1 / math.log(place + 2) for place in range(min(k, len(wanted))))
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
def judgements(draw: st.DrawFn) -> tuple[list[list[int]], list[set[int]], int, int]:
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


@settings(deadline=None)  # a busy machine is no failure
@given(judgements())
def test_the_metrics_are_what_their_definitions_say(judged: tuple[list[list[int]], list[set[int]], int, int]) -> None:
    lists, liked, k, items = judged
    test = np.zeros((len(liked), items), dtype=np.float32)
    for user, wanted in enumerate(liked):
        test[user, list(wanted)] = 1
    found = measure(np.array(lists, dtype=np.int32).reshape(len(liked), k), csr_matrix(test))
    for name, value in naive(lists, liked, k).items():
        assert asdict(found)[name] == pytest.approx(value)
    assert found.k == k
    assert found.users == sum(map(bool, liked))
    assert found.users_with_lists == sum(
        bool(wanted) and max(row) >= 0 for row, wanted in zip(lists, liked, strict=True)
    )


def test_ndcg_and_map_at_k_are_those_of_implicit() -> None:
    rng = np.random.default_rng(7)
    whole = csr_matrix((rng.random((60, 40)) < 0.3).astype(np.float32))
    train, test = random_split(whole, 0.3, seed=1)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=4, random_state=1)
        model.fit(train, show_progress=False)
        wanted = implicit.evaluation.ranking_metrics_at_k(model, train, test, K=10, show_progress=False)
    lists, _ = recommend(Factors(model.user_factors, model.item_factors), train, np.arange(60, dtype=np.int32), 10)
    found = measure(lists, test)
    assert found.ndcg == pytest.approx(wanted["ndcg"])
    assert found.map_at_k == pytest.approx(wanted["map"])


def test_no_user_with_test_items_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no user has test items"):
        measure(np.zeros((2, 3), dtype=np.int32), csr_matrix((2, 4), dtype=np.float32))

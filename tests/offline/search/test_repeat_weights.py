"""Repeats: what users chose before counts in lists that keep it, as often and as recently as they chose it."""

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.splits import SplitOptions, lists_of_tested, split
from hotplate.offline.input.history import Weighing
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.search.repeat_weights import choose_repeats
from hotplate.offline.search.tuning import SearchData, search_repeats
from hotplate.offline.train import ranking
from hotplate.offline.train.engine import fit
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.repeats import RepeatParams, own_counts
from tests.support.interactions import matrix_of


@pytest.fixture(scope="module")
def groceries() -> Matrix:
    """Each user buys two staples again and again, and a new item each day."""
    rng = np.random.default_rng(5)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        (f"u{user:02}", f"i{item:02}", start + timedelta(days=day, minutes=user))
        for user in range(40)
        for day in range(20)
        for item in ([user, (user + 7) % 40] if day % 2 else rng.integers(0, 40, 2).tolist())
    ]
    return matrix_of(rows, Weighing("binary"))


def test_own_counts_improve_repeat_recommendations(groceries: Matrix) -> None:
    parts = split(groceries.user_items, groceries.history, SplitOptions("by-time", repeats=True))
    ranker = fit(parts.train, NeighbourParams())
    chosen = choose_repeats(parts, ranker, 5)
    assert 0.3 < chosen.share <= 1
    assert chosen.blended > 1.2 * chosen.alone
    assert parts.history is not None
    own = own_counts(parts.history, chosen.params)
    ranked = ranking.recommend(ranker, parts.seen, parts.tested, 5, ranking.RankOptions(keep_seen=True, own=own))
    assert measure_users(lists_of_tested(parts, 5, ranked.items), parts.test).metrics.ndcg == chosen.blended


def test_repeats_are_searched_only_with_times_and_repeats(groceries: Matrix) -> None:
    by_time = SearchData(groceries.user_items, groceries.history, SplitOptions("by-time"))
    by_item = SearchData(groceries.user_items, groceries.history, SplitOptions("by-item"))
    without_times = SearchData(groceries.user_items, None, SplitOptions("by-time"))
    assert search_repeats(by_time, PopularityParams(), k=5) is not None
    assert search_repeats(without_times, PopularityParams(), k=5) is None
    assert search_repeats(by_item, PopularityParams(), k=5) is None


def test_misleading_own_counts_are_not_used() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    often = [(f"u{user:02}", "a", start + timedelta(hours=hour)) for user in range(10) for hour in range(5)]
    once = [(f"u{user:02}", "b", start + timedelta(days=1)) for user in range(30)]
    again = [(f"u{user:02}", "b" if user < 10 else "c", start + timedelta(days=20)) for user in range(20)]
    matrix = matrix_of([*often, *once, *again], Weighing("binary"))
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-time", 0.2, repeats=True))
    chosen = choose_repeats(parts, fit(parts.train, PopularityParams()), 1)
    assert chosen.blended == chosen.alone == 0.5
    assert chosen.without == 0
    assert chosen.params.weight == 0


def test_own_counts_with_recent_popularity_are_tried(groceries: Matrix) -> None:
    parts = split(groceries.user_items, groceries.history, SplitOptions("by-time", repeats=True))
    history = parts.history
    assert history is not None
    plain = RepeatParams(120.0, 3.0)
    recency = Recency(2.0, 0.25)
    counts = own_counts(history, plain)
    recent = own_counts(history, replace(plain, recency=recency))
    factors = np.exp(recency.weights(parts.train, parts.train_times).logs)
    assert np.allclose(recent.toarray(), counts.toarray() * factors)
    assert msgspec.convert(asdict(replace(plain, recency=recency)), RepeatParams) == replace(plain, recency=recency)
    fashions = choose_repeats(parts, fit(parts.train, NeighbourParams()), 5, popular_half_life_days=2.0)
    usual = choose_repeats(parts, fit(parts.train, NeighbourParams()), 5)
    assert fashions.blended >= usual.blended

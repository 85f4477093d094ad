"""Popular lists: by number of users, ties by id, overall and by segment."""

import polars as pl
import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.train.popularity import most_popular, popular_by_segment

PAIRS = pl.DataFrame(
    {
        "user": ["u", "v", "w", "u", "v", "w", "u"],
        "item": ["b", "b", "b", "c", "a", "a", "c2"],
        "weight": [1.0] * 6 + [99],
    }
)


def test_the_most_users_come_first_and_ties_are_in_order_of_id() -> None:
    matrix = to_matrix(PAIRS)
    popular = most_popular(matrix, 10)
    assert [matrix.item_ids[item] for item in popular.items] == ["b", "a", "c", "c2"]
    assert popular.scores.tolist() == [3, 2, 1, 1]
    assert most_popular(matrix, 2).items.tolist() == popular.items[:2].tolist()


def test_with_a_half_life_what_was_chosen_of_late_comes_first() -> None:
    times = pl.Series([0, 1, 2, 90, 91, 92, 93], dtype=pl.Int64) * 86_400_000_000
    matrix = to_matrix(PAIRS.with_columns(time=times.cast(pl.Datetime("us"))))
    popular = most_popular(matrix, 10, half_life_days=1)
    assert [matrix.item_ids[item] for item in popular.items] == ["c2", "a", "c", "b"]
    assert popular.scores.tolist() == pytest.approx([1, 0.5 + 0.25, 0.125, 3 * 0.5**10])
    assert most_popular(matrix, 10).items.tolist() == most_popular(to_matrix(PAIRS), 10).items.tolist()
    with pytest.raises(DataError, match="A half-life needs times"):
        most_popular(to_matrix(PAIRS), 10, half_life_days=1)


def test_each_segment_has_its_own_list_of_known_items() -> None:
    segments = pl.DataFrame(
        {"segment": ["y", "x", "x", "x"], "item": ["b", "b", "a", "gone"], "weight": [1.0, 1.0, 2.0, 9.0]}
    )
    lists = popular_by_segment(segments, ["a", "b"], 5)
    assert list(lists) == ["x", "y"]
    assert lists["x"].items.tolist() == [0, 1]
    assert lists["x"].scores.tolist() == [2, 1]
    assert lists["y"].items.tolist() == [1]


def test_too_many_segments_and_too_short_lists_are_refused() -> None:
    segments = pl.DataFrame({"segment": [str(at) for at in range(1001)], "item": "a", "weight": 1.0})
    with pytest.raises(DataError, match="has 1,001 different values; at most 1,000"):
        popular_by_segment(segments, ["a"], 5)
    with pytest.raises(SettingError, match="popular list is 0"):
        most_popular(to_matrix(PAIRS), 0)

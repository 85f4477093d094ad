"""The matrix: canonical, its ids in order of bytes, its core stable."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.matrix import decay, known_pairs, to_matrix
from tests.support.soak import scaled


def frame(pairs: dict[tuple[str, str], float]) -> pl.DataFrame:
    return pl.DataFrame(
        {"user": [u for u, _ in pairs], "item": [i for _, i in pairs], "weight": list(pairs.values())},
        schema={"user": pl.String, "item": pl.String, "weight": pl.Float64},
    )


def naive_core(pairs: set[tuple[str, str]], min_per_user: int, min_per_item: int) -> set[tuple[str, str]]:
    while True:
        kept = {
            (user, item)
            for user, item in pairs
            if sum(other == user for other, _ in pairs) >= min_per_user
            and sum(other == item for _, other in pairs) >= min_per_item
        }
        if kept == pairs:
            return kept
        pairs = kept


ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
some_pairs = st.dictionaries(st.tuples(ids, ids), st.floats(0.1, 1e6), min_size=1, max_size=30)


def check_core(pairs: dict[tuple[str, str], float], min_per_user: int, min_per_item: int) -> None:
    wanted = naive_core(set(pairs), min_per_user, min_per_item)
    if len({user for user, _ in wanted}) < 2 or len({item for _, item in wanted}) < 2:
        with pytest.raises(DataError):
            to_matrix(frame(pairs), min_per_user, min_per_item)
        return
    matrix = to_matrix(frame(pairs), min_per_user, min_per_item)
    coo = matrix.user_items.tocoo()
    pairs_kept = {(matrix.user_ids[row], matrix.item_ids[column]) for row, column in zip(coo.row, coo.col, strict=True)}
    assert pairs_kept == wanted
    for row, column, weight in zip(coo.row, coo.col, coo.data, strict=True):
        assert weight == np.float32(pairs[matrix.user_ids[row], matrix.item_ids[column]])
    assert matrix.user_ids == sorted({user for user, _ in wanted}, key=str.encode)
    assert matrix.item_ids == sorted({item for _, item in wanted}, key=str.encode)
    assert matrix.user_items.has_canonical_format
    assert matrix.user_items.dtype == np.float32
    assert matrix.user_items.indices.dtype == np.int32
    assert matrix.pairs_left_out == len(pairs) - len(wanted)
    assert matrix.users_left_out == len({user for user, _ in pairs}) - len(matrix.user_ids)
    assert matrix.items_left_out == len({item for _, item in pairs}) - len(matrix.item_ids)


@settings(deadline=None)  # a busy machine is no failure
@given(some_pairs, st.integers(1, 3), st.integers(1, 3))
def test_the_core_is_what_leaving_out_one_by_one_gives(
    pairs: dict[tuple[str, str], float], min_per_user: int, min_per_item: int
) -> None:
    check_core(pairs, min_per_user, min_per_item)


@pytest.mark.soak
@settings(deadline=None, max_examples=scaled(500))
@given(some_pairs, st.integers(1, 4), st.integers(1, 4))
def test_hundreds_of_cores_are_what_leaving_out_one_by_one_gives(
    pairs: dict[tuple[str, str], float], min_per_user: int, min_per_item: int
) -> None:
    check_core(pairs, min_per_user, min_per_item)


def test_nothing_left_and_one_left_are_errors() -> None:
    pairs = frame({("u", "i"): 1, ("u", "j"): 1, ("v", "i"): 1})
    with pytest.raises(DataError, match=r"Nothing is left of 3 pairs .* lower --min-per-user"):
        to_matrix(pairs, 3, 1)
    with pytest.raises(DataError, match="only one user, 'u'"):
        to_matrix(pairs, 2, 1)
    with pytest.raises(SettingError, match="min-per-item is 0"):
        to_matrix(pairs, 1, 0)


@pytest.mark.parametrize("weight", [1e39, 1e-50])
def test_a_weight_beyond_32_bits_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match="32-bit"):
        to_matrix(frame({("u", "i"): weight, ("v", "j"): 1}))


@settings(deadline=None)  # a busy machine is no failure
@given(some_pairs, some_pairs)
def test_pairs_from_elsewhere_are_placed_or_counted(
    pairs: dict[tuple[str, str], float], others: dict[tuple[str, str], float]
) -> None:
    users, items = {user for user, _ in pairs}, {item for _, item in pairs}
    if len(users) < 2 or len(items) < 2:
        return
    matrix = to_matrix(frame(pairs))
    known = known_pairs(frame(others), matrix)
    coo = known.user_items.tocoo()
    placed = {
        (matrix.user_ids[row], matrix.item_ids[column]): weight
        for row, column, weight in zip(coo.row, coo.col, coo.data, strict=True)
    }
    assert placed == {pair: np.float32(1) for pair in others if pair[0] in users and pair[1] in items}
    assert known.new == len(placed.keys() - pairs.keys())
    assert known.user_items.shape == matrix.user_items.shape
    assert known.user_items.has_canonical_format
    assert known.user_items.dtype == np.float32
    assert sum(known.left_out.values()) == len(others) - known.new
    assert known.unknown_users == len({user for user, _ in others} - users)
    assert known.unknown_items == len({item for _, item in others} - items)


def test_who_cancelled_everything_is_in_the_matrix_of_evaluations_but_does_not_stand() -> None:
    log = pl.DataFrame(
        {
            "user": ["u", "u", "v", "v", "w"],
            "item": ["a", "b", "a", "b", "c"],
            "weight": [1.0, 2.0, 1.0, 8.0, 1.0],
            "time": [1, 1, 1, 1, 1],
            "ended": [None, None, None, None, 2],
        }
    ).with_columns(pl.col("time", "ended").cast(pl.Datetime("us")))
    matrix = to_matrix(log)
    assert (matrix.user_ids, matrix.item_ids) == (["u", "v", "w"], ["a", "b", "c"])
    assert matrix.user_items.toarray().tolist() == [[1, 2, 0], [1, 8, 0], [0, 0, 0]]
    assert matrix.history is not None
    assert matrix.history.until(1).matrix().toarray().tolist() == [[1, 2, 0], [1, 8, 0], [0, 0, 1]], "not cancelled yet"
    standing = matrix.standing()
    assert (standing.user_ids, standing.item_ids) == (["u", "v"], ["a", "b"])
    assert standing.user_items.toarray().tolist() == [[1, 2], [1, 8]]
    assert standing.times is not None
    assert standing.times.tolist() == [1, 1, 1, 1]
    assert (matrix.users_left_out, matrix.items_left_out, matrix.pairs_left_out) == (0, 0, 0)
    assert known_pairs(log, matrix).left_out == {"pair that is learnt from": 4}, "the fifth was cancelled"


def test_rows_that_all_lack_a_time_are_a_matrix_without_times() -> None:
    log = frame({("u", "i"): 1.0, ("v", "j"): 1.0})
    timeless = log.with_columns(time=pl.lit(None, pl.Datetime("us")))
    assert to_matrix(timeless).times is None
    assert to_matrix(timeless.with_columns(time=pl.Series([datetime(2026, 1, 1), None]))).times is not None  # noqa: DTZ001 -- naive UTC


def test_half_is_left_after_each_half_life_but_never_nothing() -> None:
    day = 86_400_000_000
    assert decay(np.array([10, 9, 8, 0]) * day, 1.0) == pytest.approx([1, 0.5, 0.25, 0.5**10])
    assert decay(np.array([10**6, 0]) * day, 1.0) == pytest.approx([1, 0.5**10])

"""The matrix: canonical, its ids in order of bytes, its core stable."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.matrix import to_matrix
from tests.support.property import explored


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


@explored(40, 500, pairs=some_pairs, min_per_user=st.integers(1, 4), min_per_item=st.integers(1, 4))
def test_core_equals_repeated_removal(
    pairs: dict[tuple[str, str], float], min_per_user: int, min_per_item: int
) -> None:
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
    assert matrix.left_out.pairs_left_out == len(pairs) - len(wanted)
    assert matrix.left_out.users_left_out == len({user for user, _ in pairs}) - len(matrix.user_ids)
    assert matrix.left_out.items_left_out == len({item for _, item in pairs}) - len(matrix.item_ids)


def test_empty_and_single_row_matrices_are_errors() -> None:
    pairs = frame({("u", "i"): 1, ("u", "j"): 1, ("v", "i"): 1})
    with pytest.raises(DataError, match=r"Nothing is left of 3 pairs .* lower --min-per-user"):
        to_matrix(pairs, 3, 1)
    with pytest.raises(DataError, match="only one user, 'u'"):
        to_matrix(pairs, 2, 1)
    with pytest.raises(DataError, match="only one item, 'i'"):
        to_matrix(pairs, 1, 2)
    with pytest.raises(SettingError, match="min-per-item is 0"):
        to_matrix(pairs, 1, 0)


@pytest.mark.parametrize("weight", [1e39, 1e-50])
def test_a_weight_beyond_32_bits_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match="32-bit"):
        to_matrix(frame({("u", "i"): weight, ("v", "j"): 1}))


def test_undated_rows_give_a_matrix_without_times() -> None:
    log = frame({("u", "i"): 1.0, ("v", "j"): 1.0})
    timeless = log.with_columns(time=pl.lit(None, pl.Datetime("us")))
    assert to_matrix(timeless).times is None
    assert to_matrix(timeless.with_columns(time=pl.Series([datetime(2026, 1, 1), None]))).times is not None  # noqa: DTZ001 -- naive UTC

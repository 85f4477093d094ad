"""Fitting and ranking: a checkerboard, whose right recommendations can be proved, and every trap of the library."""

import warnings

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.matrix import Indices
from hotplate.offline.train.als import ALSParams, Factors, fit
from tests.support.interactions import checkerboard

SIZE = 50
PARAMS = ALSParams(factors=3, regularization=0.1, alpha=1.0, seed=23)


def everyone() -> Indices:
    return np.arange(SIZE, dtype=np.int32)


@pytest.fixture(scope="module")
def factors() -> Factors:
    return fit(checkerboard(SIZE), PARAMS)


def test_lists_end_where_a_user_has_everything_or_there_are_no_more_items(factors: Factors) -> None:
    items, scores = factors.recommend(checkerboard(SIZE), everyone(), 1000)
    assert items.shape == (SIZE, SIZE)
    liked = SIZE // 2 - 1
    assert (items[:, : SIZE - liked] >= 0).all()
    assert (items[:, SIZE - liked :] == -1).all()
    assert (scores[:, SIZE - liked :] == 0).all()
    assert all(len(set(row[row >= 0])) == SIZE - liked for row in items)


def test_many_users_are_ranked_in_batches(monkeypatch: pytest.MonkeyPatch, factors: Factors) -> None:
    whole, _ = factors.recommend(checkerboard(SIZE), everyone(), 6)
    alike, _ = factors.similar_items(everyone(), 6)
    monkeypatch.setattr("hotplate.offline.train.ranking._RANKED_AT_ONCE", 7)
    assert (factors.recommend(checkerboard(SIZE), everyone(), 6)[0] == whole).all()
    assert (factors.similar_items(everyone(), 6)[0] == alike).all()


def test_an_item_without_factors_is_like_no_other() -> None:
    item_factors = np.array([[1, 0], [1, 0.1], [0, 0], [0, 1]], dtype=np.float32)
    factors = Factors(np.ones((2, 2), dtype=np.float32), item_factors)
    items, scores = factors.similar_items(np.arange(4, dtype=np.int32), 3)
    assert items.tolist() == [[1, 3, -1], [0, 3, -1], [-1, -1, -1], [1, 0, -1]]
    assert scores[2].tolist() == [0, 0, 0]


def test_a_fit_is_the_same_for_the_same_seed_and_reports_every_iteration(factors: Factors) -> None:
    reports: list[tuple[int, int]] = []
    again = fit(checkerboard(SIZE), PARAMS, lambda done, total: reports.append((done, total)))
    assert reports == [(at, 15) for at in range(1, 16)]
    assert np.array_equal(again.user_factors, factors.user_factors)
    assert np.array_equal(again.item_factors, factors.item_factors)
    other = fit(checkerboard(SIZE), ALSParams(factors=3, regularization=0.1, alpha=1.0, seed=24))
    assert not np.array_equal(other.item_factors, factors.item_factors)


def test_the_factors_of_users_are_those_that_folding_in_gives(factors: Factors) -> None:
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=3, regularization=0.1, alpha=1.0)
        model.item_factors = factors.item_factors
        folded = model.recalculate_user(0, checkerboard(SIZE)[0])
    assert np.allclose(folded, factors.user_factors[0], atol=1e-4)


def test_a_fit_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(checkerboard(SIZE), PARAMS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factors", 0),
        ("iterations", 0),
        ("regularization", -1.0),
        ("regularization", float("nan")),
        ("alpha", 0.0),
        ("alpha", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"{name} is {value}"):
        ALSParams(**{name: value})  # type: ignore[arg-type]  # the wrong value is the point


def test_factors_that_are_not_finite_are_an_error_with_advice() -> None:
    board = checkerboard(SIZE)
    board.data[:] = 3e38
    for alpha in (1.0, 100.0):
        with pytest.raises(DataError, match=r"not finite with regularization .* lower alpha"):
            fit(board, ALSParams(factors=3, alpha=alpha))


def test_users_of_another_matrix_are_refused(factors: Factors) -> None:
    with pytest.raises(ValueError, match="was learnt from"):
        factors.recommend(checkerboard(SIZE)[:3], everyone(), 3)

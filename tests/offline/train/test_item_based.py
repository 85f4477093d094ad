"""EASE and neighbours: the same weights and lists as their definitions and implicit give."""

import warnings
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from implicit.utils import ParameterWarning
from scipy.sparse import csr_matrix

from hotplate.offline.input.pairs import Floats
from hotplate.offline.train.item_based import EASEParams, NeighbourParams, NeighbourWeighting, fit_ease, fit_neighbours
from hotplate.offline.train.ranking import RankOptions

IMPLICIT = {"tfidf": TFIDFRecommender, "bm25": BM25Recommender, "cosine": CosineRecommender}
USERS = np.arange(40, dtype=np.int32)


@pytest.mark.parametrize("weighting", ["tfidf", "bm25", "cosine"])
@pytest.mark.parametrize("neighbours", [3, 30])
def test_lists_match_implicit(weighting: NeighbourWeighting, neighbours: int) -> None:
    generator = np.random.default_rng(5)
    weights = generator.random((40, 30)) * (generator.random((40, 30)) < 0.3)
    user_items = csr_matrix(weights.astype(np.float32))
    theirs = IMPLICIT[weighting](K=neighbours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)
        theirs.fit(user_items, show_progress=False)
    for keep_seen in (False, True):
        wanted, wanted_scores = theirs.recommend(USERS, user_items, N=8, filter_already_liked_items=not keep_seen)
        items, scores = fit_neighbours(user_items, NeighbourParams(weighting, neighbours)).recommend(
            user_items, USERS, 8, RankOptions(keep_seen)
        )
        present = wanted_scores > 0  # left out items are at the end, with a score of 0
        assert np.array_equal(items >= 0, present)
        assert (items[present] == wanted[present]).all()
        assert np.allclose(scores[present], wanted_scores[present], rtol=1e-5)


@pytest.mark.parametrize(("alpha", "beta", "neighbours"), [(0.7, 0.3, 4), (1.0, 0.0, 30), (1.3, 0.9, 30)])
def test_random_walk_weights_match_the_formula(alpha: float, beta: float, neighbours: int) -> None:
    generator = np.random.default_rng(5)
    weights = (generator.integers(1, 4, (40, 30)) * (generator.random((40, 30)) < 0.3)).astype(np.float32)
    weights[:, 7] = 0  # no user has it
    with np.errstate(invalid="ignore"):
        to_users, to_items = (np.nan_to_num(edges / edges.sum(axis=1, keepdims=True)) for edges in (weights.T, weights))
    users = np.maximum((weights > 0).sum(axis=0), 1)
    similarity = (to_users.astype(np.float64) ** alpha) @ (to_items.astype(np.float64) ** alpha) / users**beta
    ranker = fit_neighbours(csr_matrix(weights), NeighbourParams("rp3beta", neighbours, alpha, beta))
    nearest_of = np.sort(similarity, axis=1)[:, [-neighbours]]
    wanted = weights @ np.where(similarity >= nearest_of, similarity, 0)
    assert ranker.score(csr_matrix(weights), USERS) == pytest.approx(wanted, rel=1e-4)
    lists, listed = ranker.recommend(csr_matrix(weights), USERS, 8)
    for user, items in enumerate(lists):
        unseen = np.where(weights[user] > 0, 0, wanted[user])
        assert listed[user] == pytest.approx(np.sort(unseen)[::-1][:8], rel=1e-4)
        assert not (weights[user][items[items >= 0]] > 0).any()


def test_item_of_all_users_has_no_weight() -> None:
    user_items = csr_matrix(np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=np.float32))
    for weighting in get_args(NeighbourWeighting):
        ranker = fit_neighbours(user_items, NeighbourParams(weighting, 3))
        assert np.isfinite(ranker.similarity.data).all()
        _, scores = ranker.recommend(user_items, np.arange(3, dtype=np.int32), 3)
        assert np.isfinite(scores).all()


REGULARIZATION = 3.0


def regressions(weights: Floats) -> npt.NDArray[np.float64]:
    """Predict each item by ridge regression on the others, one at a time, as the papers state the problem."""
    values = np.sqrt(weights.astype(np.float64))
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    scaled = values / np.sqrt(np.where(norms > 0, norms, 1))
    penalty = REGULARIZATION + 0.25 * (scaled**2).sum(axis=0)
    coefficients = np.zeros((weights.shape[1], weights.shape[1]))
    for item in range(weights.shape[1]):
        other_items = np.delete(np.arange(weights.shape[1]), item)
        inputs = scaled[:, other_items]
        gram = inputs.T @ inputs + np.diag(penalty[other_items])
        coefficients[other_items, item] = np.linalg.solve(gram, inputs.T @ scaled[:, item])
    return coefficients


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 12))
def test_ease_weights_match_item_regressions(seed: int, users: int, items: int) -> None:
    generator = np.random.default_rng(seed)
    weights = (generator.random((users, items)) * 9 + 1) * (generator.random((users, items)) < 0.4)
    weights[0, 0] = 1  # nothing can be learnt from no pair
    matrix = csr_matrix(weights.astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hotplate.offline.train.item_based._ROWS_AT_ONCE", 5)
        fitted = fit_ease(matrix, EASEParams(REGULARIZATION)).weights
    assert fitted.dtype == np.float32
    assert np.allclose(fitted, regressions(matrix.toarray()), atol=1e-5)
    assert (np.diag(fitted) == 0).all()

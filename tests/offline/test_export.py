"""A model in a program of one's own: loaded by its public name, used by its arrays, and handed on to implicit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hotplate
from hotplate.offline.model import save
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.engine import Params, fit
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from tests.support.interactions import ROUNDING, checkerboard_model


def saved(params: Params | None, folder: Path) -> Path:
    model = checkerboard_model()
    if params is not None:
        model = replace(model, ranker=fit(model.matrix.user_items, params), params=params)
    save(model, folder)
    return folder


def test_a_loaded_model_is_its_arrays_with_the_ids_of_their_rows(tmp_path: Path) -> None:
    model: hotplate.Model = hotplate.load_model(str(saved(None, tmp_path / "model")))
    users, items = model.matrix.user_items.shape
    assert (len(model.matrix.user_ids), len(model.matrix.item_ids)) == (users, items) == (20, 20)
    found, scores = model.ranker.recommend(model.matrix.user_items, np.array([3], dtype=np.int32), 5)
    assert found.shape == scores.shape == (1, 5)
    assert found[0, 0] == 3  # the one that was withheld
    with pytest.raises(hotplate.DataError, match="no model folder"):
        hotplate.load_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (None, "AlternatingLeastSquares"),
        (NeighbourParams("tfidf", 3), "TFIDFRecommender"),
        (NeighbourParams("bm25", 15), "BM25Recommender"),
        (NeighbourParams("cosine", 15), "CosineRecommender"),
        (NeighbourParams("rp3beta", 15), "ItemItemRecommender"),
    ],
)
def test_what_is_exported_to_implicit_recommends_the_same(params: Params | None, name: str, tmp_path: Path) -> None:
    model = hotplate.load_model(saved(params, tmp_path / "model"))
    exported = hotplate.to_implicit(model)
    assert type(exported).__name__ == name
    user_items = model.matrix.user_items
    _, expected = model.ranker.recommend(user_items, np.arange(20, dtype=np.int32), 5)
    given = user_items if params is None else user_items.astype(np.float64)
    for user in range(20):
        _, scores = exported.recommend(user, given[user], N=5)
        assert scores[: np.count_nonzero(expected[user])] == pytest.approx(
            expected[user][expected[user] != 0], rel=1e-5, abs=ROUNDING
        )


@pytest.mark.parametrize(("params", "what"), [(PopularityParams(), "model of popularity"), (EASEParams(), "EASE")])
def test_popularity_and_ease_are_not_implicits(params: Params, what: str, tmp_path: Path) -> None:
    with pytest.raises(hotplate.DataError, match=f"implicit has no {what}"):
        hotplate.to_implicit(hotplate.load_model(saved(params, tmp_path / "model")))

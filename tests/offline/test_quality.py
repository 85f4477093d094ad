"""Quality on real data: the recipes give the known matrices, and the parameters reach the known figures."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.evaluate.evaluation import evaluate, evaluate_engine
from hotplate.offline.evaluate.splits import Parts, SplitOptions
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import Matrix, UserItems, to_matrix
from hotplate.offline.quality import DATA_SETS
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.tuning import Search, TuneOptions, tune
from tests.support.paths import DATA

RECIPE = DATA_SETS[1]
RETAIL = DATA / RECIPE.file
MOVIES = DATA / "movietweetings-100k"

pytestmark = pytest.mark.soak
retail_is_here = pytest.mark.skipif(not RETAIL.exists(), reason=f"{RETAIL} is not on this machine")
movies_are_here = pytest.mark.skipif(not MOVIES.exists(), reason=f"{MOVIES} is not on this machine")


@pytest.fixture(scope="module")
def retail() -> Matrix:
    interactions = read_interactions(RETAIL, columns=RECIPE.columns, where=RECIPE.where, weighting="binary")
    assert interactions.rows == 541_909
    assert interactions.titles["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    return to_matrix(interactions.log, 5, 5)


@pytest.fixture(scope="module")
def movies() -> Matrix:
    interactions = read_interactions(MOVIES / "ratings.csv.gz", titles=MOVIES / "movies.csv.gz", weighting="binary")
    assert interactions.rows == 100_000
    assert interactions.titles["4972"] == "The Birth of a Nation (1915)"
    return to_matrix(interactions.log, 5, 5)


@retail_is_here
def test_the_recipe_for_online_retail_gives_its_matrix_and_quality(retail: Matrix) -> None:
    assert retail.user_items.shape == (4074, 3145)
    assert retail.user_items.nnz == 264_510
    evaluation = evaluate(retail, ALSParams(factors=128, regularization=30, alpha=4), SplitOptions("by-item"))
    assert evaluation is not None
    assert evaluation.model.metrics.ndcg >= 0.260
    assert evaluation.model.metrics.map >= 0.098
    assert evaluation.model.metrics.precision >= 0.195
    assert evaluation.model.metrics.recall >= 0.177
    assert evaluation.model.metrics.ndcg >= 1.5 * evaluation.baselines[0].metrics.ndcg


@movies_are_here
def test_movie_tweetings_recipe_builds_its_matrix_and_beats_popularity(movies: Matrix) -> None:
    assert movies.user_items.shape == (4333, 2414)
    assert movies.user_items.nnz == 68_055
    evaluation = evaluate(movies, ALSParams(factors=64, regularization=150, alpha=20), SplitOptions("by-item"))
    assert evaluation is not None
    assert evaluation.model.metrics.ndcg >= 1.2 * evaluation.baselines[0].metrics.ndcg


@movies_are_here
def test_movie_tweetings_reach_their_figures_on_the_reference_draw(movies: Matrix) -> None:
    parts = reference_split(movies)
    search = found(parts)
    tuned = evaluate_engine(parts, search.trials[search.best].params, 10).metrics
    assert tuned.ndcg >= 0.176
    assert tuned.recall >= 0.220
    assert evaluate_engine(parts, ALSParams(), 10).metrics.ndcg >= 0.159


@retail_is_here
def test_online_retail_reaches_its_figures_with_and_without_a_search(retail: Matrix) -> None:
    parts = reference_split(retail)
    search = found(parts)
    assert evaluate_engine(parts, search.trials[search.best].params, 10).metrics.ndcg >= 0.297
    assert evaluate_engine(parts, NeighbourParams("tfidf", 5), 10).metrics.ndcg == pytest.approx(0.2908, abs=2e-4)
    assert evaluate_engine(parts, ALSParams(), 10).metrics.ndcg >= 0.280


def found(parts: Parts) -> Search:
    search = tune(parts.train, parts.history, SplitOptions("by-item"), TuneOptions())
    assert search is not None
    return search


def reference_split(matrix: Matrix) -> Parts:
    """Split as Recommenders' `python_stratified_split(data, 0.75, filter_by="item", seed=42)` does.

    It gives each row a number of numpy's old generator, which is to say that its draw depends on the order of the rows:
    here by user and item, in which MovieTweetings come, and Online Retail once its lines are grouped by them.
    """
    rows = _pairs(matrix.user_items).sort(
        pl.col("user").replace_strict(_places(matrix.user_ids)), pl.col("item").replace_strict(_places(matrix.item_ids))
    )
    rows = rows.with_columns(draw=np.random.RandomState(42).random_sample(rows.height))
    train = pl.col("draw").rank("ordinal").over("item") <= (0.75 * pl.len().over("item")).round(mode="half_to_even")
    parts = (_matrix_of(rows.filter(kept), matrix) for kept in (train, ~train))
    return Parts.of(*parts)


def _places(ids: Sequence[str]) -> dict[int, int]:
    """Return where each of *ids* comes once they are sorted: as numbers if all are numbers."""
    key = int if all(each.isdecimal() for each in ids) else str
    return {at: place for place, at in enumerate(sorted(range(len(ids)), key=lambda at: key(ids[at])))}


def _pairs(user_items: UserItems) -> pl.DataFrame:
    users = np.repeat(np.arange(user_items.shape[0]), np.diff(user_items.indptr))
    return pl.DataFrame({"user": users, "item": user_items.indices})


def _matrix_of(rows: pl.DataFrame, matrix: Matrix) -> UserItems:
    ones = np.ones(rows.height, dtype=np.float32)
    made = csr_matrix((ones, (rows.get_column("user"), rows.get_column("item"))), shape=matrix.user_items.shape)
    made.sum_duplicates()
    return made

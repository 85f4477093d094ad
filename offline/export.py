"""Models as objects of the library that learnt them, for programs that go on with implicit itself."""

import numpy as np
from implicit._nearest_neighbours import NearestNeighboursScorer
from implicit.cpu.als import AlternatingLeastSquares
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, ItemItemRecommender, TFIDFRecommender
from implicit.recommender_base import RecommenderBase

from hotplate.offline.errors import DataError
from hotplate.offline.model import Model
from hotplate.offline.train.als import Factors, SparkParams
from hotplate.offline.train.ease import EASE
from hotplate.offline.train.neighbours import Neighbours, nearest

# Without their `fit`, all that distinguishes them is how they were fitted.
_RECOMMENDERS = {
    "tfidf": TFIDFRecommender,
    "bm25": BM25Recommender,
    "cosine": CosineRecommender,
    "rp3beta": ItemItemRecommender,
}


def to_implicit(model: Model) -> RecommenderBase:
    """Return a fitted model of implicit that recommends what *model* does; its arrays are copies.

    Factors become an `implicit.cpu.als.AlternatingLeastSquares`, neighbours the class of their weighting in
    `implicit.nearest_neighbours`. Users and items are rows and columns of `model.matrix.user_items`; neighbours need it
    as float64. Raises DataError for EASE and popularity, which implicit does not have, and for factors that Spark
    learnt.
    """
    ranker = model.ranker
    if isinstance(ranker, Neighbours):
        made = _RECOMMENDERS[ranker.params.weighting](K=ranker.params.neighbours)
        made.similarity = nearest(ranker.similarity, ranker.params.neighbours).astype(np.float64)
        made.scorer = NearestNeighboursScorer(made.similarity)
        return made
    if isinstance(ranker, EASE):
        raise DataError("implicit has no EASE; the weights of an EASE model are `model.ranker.weights`.")
    if not isinstance(ranker, Factors):
        raise DataError(
            "implicit has no model of popularity; the counts of a popularity model are `model.ranker.counts`."
        )
    params = ranker.params
    if isinstance(params, SparkParams):
        raise DataError(
            "implicit has no regularization that grows with interactions, by which Spark learnt this model; its arrays "
            "are `model.ranker.user_factors` and `model.ranker.item_factors`."
        )
    made = AlternatingLeastSquares(
        factors=params.factors,
        regularization=params.regularization,
        alpha=params.alpha,
        iterations=params.iterations,
        random_state=params.seed,
    )
    made.user_factors, made.item_factors = ranker.user_factors.copy(), ranker.item_factors.copy()
    return made

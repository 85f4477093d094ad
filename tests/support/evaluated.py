"""A model with an evaluation and hostile titles, for the tests of its report."""

from datetime import UTC, datetime
from pathlib import Path

from hotplate.offline.evaluate.evaluation import evaluate
from hotplate.offline.evaluate.splits import SplitOptions
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.model import Model, save
from hotplate.offline.train.item_based import NeighbourParams, fit_neighbours
from hotplate.offline.train.popularity import PopularityParams, most_popular
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from tests.support.interactions import checkerboard

HOSTILE = "</td><script>alert(1)</script>\x1b[31m\u202e" + "long " * 50


def evaluated_model(folder: Path) -> Path:
    """Save a model of a checkerboard of 20 items below *folder*."""
    user_items, params = checkerboard(20), NeighbourParams()
    ids = [f"n{n:02}" for n in range(20)]
    matrix = Matrix(ids, [f"i{one}" for one in ids], user_items)
    evaluation = evaluate(matrix, params, SplitOptions("by-user", 0.3), k=5, baselines=[PopularityParams()])
    assert evaluation is not None
    model = Model(
        ranker=fit_neighbours(user_items, params),
        matrix=matrix,
        titles={item: f"{item} {HOSTILE}" for item in matrix.item_ids[::2]},
        popular=most_popular(matrix, 5),
        segments={},
        params=params,
        metrics=evaluation.to_json(),
        data={"rows": 1234, "source": "<b>data</b>.csv", "left_out": {"no user": 3}, "fingerprint": "abc"},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        similar=fit_similar(user_items, SimilarParams(0)),
    )
    save(model, folder / "model")
    return folder / "model"

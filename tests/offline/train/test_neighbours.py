"""Item neighbours: nobody is recommended what they have."""

import numpy as np
from scipy.sparse import csr_matrix

from offline.train.neighbours import NeighbourParams, fit


def test_a_list_that_is_longer_than_there_are_items_to_recommend_ends_early() -> None:
    rng = np.random.default_rng(1)
    user_items = csr_matrix((rng.random((20, 8)) < 0.6).astype(np.float32))
    ranker = fit(user_items, NeighbourParams(neighbours=8))
    lists, scores = ranker.recommend(user_items, np.arange(20, dtype=np.int32), 8)
    for user, (items, values) in enumerate(zip(lists, scores, strict=True)):
        has = set(user_items[user].indices.tolist())
        assert not has & set(items.tolist()), "a user is recommended what they have"
        assert np.count_nonzero(items >= 0) <= 8 - len(has)
        assert ((items >= 0) == (values > 0)).all()

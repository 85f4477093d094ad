"""A model divided into blocks for other processes: each is computed of itself and of what all have in common."""

import pickle
from dataclasses import replace
from itertools import chain

import numpy as np
import polars as pl
import pytest

from hotplate.offline import lists as offline_lists
from hotplate.offline.exploration import Explore
from hotplate.offline.input.history import History
from hotplate.offline.input.showings import Showings
from hotplate.offline.lists import ListSettings, ModelLists, blocks_of, rows_of
from hotplate.offline.measurement import Measurement
from hotplate.offline.rules import Rules
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.blend import BlendParams
from hotplate.offline.train.engine import Params, fit
from hotplate.offline.train.item_based import EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from hotplate.offline.train.ranking import RankOptions
from hotplate.stores.store import Row
from tests.support.interactions import checkerboard_model
from tests.support.spark import assert_same_lists, bodies_as_lists, model_of

RULES = Rules(excluded=frozenset({"i0003"}), categories={"i0001": "x", "i0002": "x"}, max_per_category=1, min_history=2)
FAVOURS = Rules(boosts={"i0004": 3.0, "i0005": 0.1}, pinned=("i0007", "i0001"))
SHOWN = pl.DataFrame(
    [(f"n{user:06}", f"i{item:04}", day, False) for user in range(60) for item in range(5) for day in range(user % 4)],
    schema={"user": pl.Categorical(), "item": pl.Categorical(), "day": pl.Int32(), "clicked": pl.Boolean()},
    orient="row",
)
VARIED = Rules(diversity=0.3, showings=Showings(SHOWN), explore=Explore(new=2))


def shared(lists: ModelLists) -> ModelLists:
    """Return what blocks have in common as another process gets it."""
    copied: ModelLists = pickle.loads(pickle.dumps(lists.for_users(lists.model.users(0, 0))))
    return copied


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_lists, "_LEAST_IN_BLOCK", 13)


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("rules", [Rules(), RULES, FAVOURS, VARIED], ids=["free", "ruled", "favouring", "varied"])
def test_blocks_make_the_same_rows_as_the_whole_model(rules: Rules, keep_seen: bool) -> None:  # noqa: FBT001
    model = model_of(60)
    history = History.of(model.matrix.user_items, np.arange(300))
    model = replace(model, matrix=replace(model.matrix, history=history))
    lists = ModelLists.of(model, ListSettings(length=7, rules=rules, keep_seen=keep_seen))
    blocks = blocks_of(lists)
    common = shared(lists)
    assert [block.part for block in blocks] == list(range(1, len(blocks) + 1))
    assert len(blocks) == 4 + 5
    rows = [row for block in blocks for batch in rows_of(common, block) for row in batch]
    everything = [row for batch in lists.batches() for row in batch]
    assert_same_lists(bodies_as_lists([*rows, *chain.from_iterable(lists.popular())]), bodies_as_lists(everything))


BLEND = BlendParams(ALSParams(factors=4), NeighbourParams(neighbours=5))


@pytest.mark.parametrize("params", [EASEParams(), NeighbourParams(neighbours=5), PopularityParams(), BLEND])
def test_other_engines_are_divided_into_blocks(params: Params) -> None:
    model = checkerboard_model(40)
    lists = ModelLists.of(replace(model, ranker=fit(model.matrix.user_items, params), params=params), ListSettings())
    rows = [row for block in blocks_of(lists) for batch in rows_of(shared(lists), block) for row in batch]
    assert sorted([*rows, *chain.from_iterable(lists.popular())]) == sorted(
        row for batch in lists.batches() for row in batch
    )


def test_lists_of_a_blend_hold_the_best_sums_over_its_engines() -> None:
    model = checkerboard_model(40)
    user_items = model.matrix.user_items
    users = np.arange(40, dtype=np.int32)
    blended = replace(model, ranker=fit(user_items, BLEND), params=BLEND)
    lists = ModelLists.of(blended, ListSettings(length=6, rules=Rules(excluded=frozenset({"in7"}))))
    sums = np.zeros((40, 40))
    allowed = np.array([item != "in7" for item in model.matrix.item_ids])
    for part, weight in zip(BLEND.parts, (1, 1, 0.3), strict=True):
        ranked = fit(user_items, part).recommend(user_items, users, 20, RankOptions(allowed=allowed))
        for user, items in enumerate(ranked.items.tolist()):
            for place, item in enumerate(items, start=1):
                sums[user, item] += weight * (item >= 0) / np.log2(1 + place)
    published = lists.ranked.personal(users)
    wanted = -np.sort(-sums, axis=1)[:, :6]
    assert published.scores == pytest.approx(wanted, abs=1e-4)
    assert np.take_along_axis(sums, published.items, axis=1) == pytest.approx(wanted, abs=1e-4)


def test_a_blend_folds_visitors_in_by_its_factors() -> None:
    model = checkerboard_model(40)
    als = replace(model, ranker=fit(model.matrix.user_items, ALSParams(factors=4)), params=ALSParams(factors=4))
    blended = replace(model, ranker=fit(model.matrix.user_items, BLEND), params=BLEND)
    meta = [[*ModelLists.of(each, ListSettings(fold_in=True)).meta()] for each in (als, blended)]
    assert meta[0]
    assert meta[0] == meta[1]


def test_measurements_of_blocks_add_up() -> None:
    lists = ModelLists.of(model_of(60), ListSettings(length=5))
    whole = Measurement(lists.items(), 5)
    merged = Measurement(lists.items(), 5)
    rows = [row for batch in lists.batches(whole.add) for row in batch]
    for block in reversed(blocks_of(lists)):
        part = Measurement(lists.items(), 5)
        list[list[Row]](rows_of(shared(lists), block, part.add))
        merged.merge(part.counts())
    assert len(rows) == 111
    assert (merged.users, merged.users_with_lists, merged.shortest) == (60, 60, 5)
    assert merged.coverage == whole.coverage
    assert merged.popular_share(5) == whole.popular_share(5)
    assert merged.sample() == whole.sample()


def test_a_model_of_any_size_has_a_bounded_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_lists, "_MOST_BLOCKS", 3)
    assert len(blocks_of(ModelLists.of(model_of(100), ListSettings()))) == 6

"""From a model to a release: users, order and length of lists, and the rows."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.errors import SettingError
from hotplate.offline.input.history import History, Weighing
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import Model
from hotplate.offline.publish import publish_source
from hotplate.offline.train.engine import fit
from hotplate.offline.train.popularity import PopularityParams, most_popular
from hotplate.offline.train.repeats import RepeatParams
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.stores.encoding import OFFSET_BYTES, decode
from hotplate.stores.store import Row
from hotplate.stores.transfer import copy
from hotplate.stores.verification import load_manifest, verify
from tests.support.interactions import DATA, checkerboard_model, evaluated
from tests.support.memory_store import MemoryStore


def rows_of(model: Model, **settings: object) -> dict[str, bytes]:
    rows = [row for batch in ModelLists.of(model, ListSettings(**settings)).batches() for row in batch]  # type: ignore[arg-type]  # as the test says
    assert [row.key.encode() for row in rows] == sorted(row.key.encode() for row in rows)
    assert all(isinstance(row, Row) for row in rows)
    return {key: body[OFFSET_BYTES:] for key, body in rows}


def test_popular_lists_exist_overall_and_per_segment() -> None:
    rows = rows_of(checkerboard_model())
    assert len(decode(rows["popular:"])) == 5
    assert decode(rows["popular:North & South"]) == [{"id": "in11", "score": 7.0}]


def test_user_without_remaining_items_has_no_row_and_gets_popular_list() -> None:
    model = checkerboard_model()
    everything = model.matrix.user_items.toarray()
    everything[2] = 1
    matrix = Matrix(model.matrix.user_ids, model.matrix.item_ids, csr_matrix(everything))
    rows = rows_of(
        Model(
            model.ranker,
            matrix, {}, model.popular, {}, model.params, None, DATA, model.created_at, model.similar,
        )
    )  # fmt: skip
    assert f"user:{matrix.user_ids[2]}" not in rows
    assert f"user:{matrix.user_ids[3]}" in rows


@pytest.mark.parametrize("length", [0, 1001, -1])
def test_invalid_list_length_is_reported(length: int) -> None:
    with pytest.raises(SettingError, match="between 1 and 1000"):
        ListSettings(length)


async def test_a_published_model_adds_up_and_records_where_it_comes_from() -> None:
    store = MemoryStore()
    reports = list[tuple[int, int]]()
    evaluation = evaluated()
    lists = ModelLists.of(replace(checkerboard_model(), evaluation=evaluation), ListSettings())
    result = (await publish_source(lists, store, on_progress=lambda done, total: reports.append((done, total)))).result
    manifest = await verify(store, (await store.catalogue()).find(result.manifest.release).ref)
    assert manifest.counts == {"item": 20, "popular": 2, "user": 20}
    assert manifest.about["metrics"] == evaluation.to_json()
    assert manifest.about["data"] == "abc"
    assert reports[-1] == (42, 42)
    assert (await store.catalogue()).live == manifest.release
    assert manifest.bytes <= lists.plan().payload_bytes <= 4 * manifest.bytes


def test_users_whose_list_equals_the_popular_one_have_a_row() -> None:
    model = checkerboard_model()
    matrix = model.matrix
    popular = fit(matrix.user_items, PopularityParams())
    same = replace(model, ranker=popular, params=PopularityParams(), popular=most_popular(matrix, 100))
    rows = rows_of(same, length=1)
    lists = [decode(rows[f"user:{user}"]) for user in matrix.user_ids]
    first = decode(rows["popular:"])[0]["id"]
    assert [first] in [[item["id"] for item in items] for items in lists]


def test_similar_items_are_published_for_each_engine() -> None:
    model = checkerboard_model()
    popular = fit(model.matrix.user_items, PopularityParams())
    similar = fit_similar(model.matrix.user_items, SimilarParams())
    rows = rows_of(replace(model, ranker=popular, params=PopularityParams(), similar=similar))
    numbers = {item: number for number, item in enumerate(model.matrix.item_ids)}
    for item, number in numbers.items():
        similar_items = [numbers[entry["id"]] for entry in decode(rows[f"item:{item}"])]
        assert similar_items
        assert {other % 2 for other in similar_items} == {number % 2}


def test_keep_seen_lists_use_the_users_own_counts() -> None:
    model = checkerboard_model()
    has = model.matrix.user_items
    history = History.of(has, np.zeros(has.nnz, dtype=np.int64))
    times = np.where(history.pair_numbers % has.shape[1] == 4, 3, 1)  # users chose item 4 three times
    rows = History(
        has.shape,
        np.repeat(history.pair_numbers, times),
        np.repeat(history.times, times),
        np.repeat(history.weights, times),
        Weighing(),
    )
    again = replace(model, matrix=replace(model.matrix, history=rows), repeats=RepeatParams(None, 1.0))
    kept = rows_of(again, keep_seen=True)
    without = rows_of(again)
    user = int(np.flatnonzero(has[:, 4].toarray())[0])
    name = model.matrix.user_ids[user]
    item = model.matrix.item_ids[4]
    assert decode(kept[f"user:{name}"])[0]["id"] == item
    assert item not in [entry["id"] for entry in decode(without[f"user:{name}"])]


async def test_releases_and_copies_of_one_model_are_recognised() -> None:
    model = checkerboard_model()
    target = MemoryStore()
    later = replace(model, created_at=model.created_at + timedelta(days=1))
    stores = [MemoryStore() for _ in range(4)]
    first, second, shorter, other = [
        (await publish_source(ModelLists.of(published, ListSettings(length=length)), store)).result.manifest
        for store, published, length in zip(stores, (model, model, model, later), (5, 5, 4, 5), strict=True)
    ]
    assert (first.release != second.release, first.origin.model, second.origin.model) == (True, model.id, model.id)
    assert [first.has_lists_of(manifest) for manifest in (second, shorter, other)] == [True, False, False]
    await copy(stores[0], target, first.release)
    copied = await load_manifest(target, (await target.catalogue()).find(first.release).ref)
    assert copied.has_lists_of(first)

"""From a model to a release: whose lists, in which order, of which length, and what the rows say."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from offline.als import ALSParams, Factors, fit
from offline.errors import SettingError
from offline.lists import Lists, ListSettings
from offline.matrix import Matrix
from offline.model import Model
from offline.popular import Popular, most_popular
from offline.publish import publish
from stores.encoding import decode
from stores.errors import StoreFull
from stores.lmdb_store import LmdbStore
from stores.memory import MemoryStore
from stores.store import Row
from stores.verification import verify


def checkerboard(size: int = 20) -> Model:
    """Users like the items of their own parity, except the one with their own number: the one to recommend first."""
    dense = np.fromfunction(lambda user, item: (user + item) % 2 == 0, (size, size)).astype(np.float32)
    np.fill_diagonal(dense, 0)
    user_items = csr_matrix(dense)
    ids = sorted(f"n{n}" for n in range(size))
    matrix = Matrix(ids, [f"i{one}" for one in ids], user_items, 0, 0, 0)
    params = ALSParams(factors=8, regularization=0.1, alpha=2.0, iterations=20)
    segments = {"North & South": Popular(np.array([3], dtype=np.int32), np.array([7], dtype=np.float32))}
    return Model(
        factors=fit(user_items, params),
        matrix=matrix,
        titles={"in0": 'The "first"', "in3": "Üñí 😀"},
        popular=most_popular(matrix, 5),
        segments=segments,
        params=params,
        metrics={"ndcg": 0.5},
        data={"fingerprint": "abc"},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
    )


def rows_of(model: Model, **settings: object) -> dict[str, bytes]:
    rows = [row for batch in Lists(model, ListSettings(**settings)).batches() for row in batch]  # type: ignore[arg-type]  # as the test says
    assert [row.key.encode() for row in rows] == sorted(row.key.encode() for row in rows)
    assert all(isinstance(row, Row) for row in rows)
    return dict(rows)


def test_each_user_gets_the_withheld_item_first_and_nothing_that_is_known_already() -> None:
    model = checkerboard()
    rows = rows_of(model)
    for place, user in enumerate(model.matrix.user_ids):
        items = decode(rows[f"user:{user}"])
        assert items[0]["id"] == model.matrix.item_ids[place]
        known = {model.matrix.item_ids[item] for item in model.matrix.user_items[place].indices}
        assert not known & {item["id"] for item in items}
        assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)
    assert decode(rows["user:n0"])[0].get("title") == 'The "first"'


def test_similar_items_are_of_the_same_parity_and_not_the_item_itself() -> None:
    model = checkerboard()
    rows = rows_of(model, length=3)
    for place, item in enumerate(model.matrix.item_ids):
        similar = [model.matrix.item_ids.index(one["id"]) for one in decode(rows[f"item:{item}"])]
        assert place not in similar
        assert {other % 2 for other in similar} == {place % 2}


def test_popular_lists_are_there_for_everybody_and_for_each_segment() -> None:
    rows = rows_of(checkerboard())
    assert len(decode(rows["popular:"])) == 5
    assert decode(rows["popular:North & South"]) == [{"id": "in11", "score": 7.0}]


def test_keep_seen_lets_lists_name_what_is_known_and_length_is_held() -> None:
    model = checkerboard()
    kept, left_out = rows_of(model, length=7, keep_seen=True), rows_of(model, length=7)
    assert {len(decode(value)) for key, value in kept.items() if key.startswith("user:")} == {7}
    assert kept["user:n0"] != left_out["user:n0"]


def test_a_user_for_whom_nothing_is_left_has_no_row_and_gets_the_popular_list() -> None:
    model = checkerboard()
    everything = model.matrix.user_items.toarray()
    everything[2] = 1
    matrix = Matrix(model.matrix.user_ids, model.matrix.item_ids, csr_matrix(everything), 0, 0, 0)
    rows = rows_of(
        Model(
            Factors(model.factors.user_factors, model.factors.item_factors),
            matrix, {}, model.popular, {}, model.params, None, {}, model.created_at,
        )
    )  # fmt: skip
    assert f"user:{matrix.user_ids[2]}" not in rows
    assert f"user:{matrix.user_ids[3]}" in rows


@pytest.mark.parametrize("length", [0, 1001, -1])
def test_a_length_that_makes_no_sense_is_a_sentence(length: int) -> None:
    with pytest.raises(SettingError, match="between 1 and 1000"):
        ListSettings(length)


async def test_a_published_model_adds_up_and_says_where_it_comes_from() -> None:
    store, told = MemoryStore(), list[tuple[int, int]]()
    report = await publish(
        checkerboard(), store, ListSettings(), on_progress=lambda done, total: told.append((done, total))
    )
    manifest = await verify(store, report.manifest.release)
    assert manifest.counts == {"item": 20, "popular": 2, "user": 20}
    assert manifest.about["metrics"] == {"ndcg": 0.5}
    assert manifest.about["data"] == "abc"
    assert told[-1] == (42, 42)
    assert (await store.catalogue()).live == manifest.release
    assert manifest.bytes <= report.plan.payload_bytes <= 4 * manifest.bytes


async def test_a_ready_release_is_not_live() -> None:
    store = MemoryStore()
    await publish(checkerboard(), store, ListSettings(), live=False)
    assert (await store.catalogue()).live is None


async def test_a_disk_that_is_too_small_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.lmdb_store.file_bytes", lambda _rows, _bytes: 1 << 60)
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreFull, match="needs about"):
        await publish(checkerboard(), store, ListSettings())
    assert (await store.catalogue()).releases == ()

"""Folding in: the scores of implicit, whatever the order of a basket; of one release at a time, or a reason."""

import asyncio
import gc
import json
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from hotplate.base.recommendations import Item
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import Model
from hotplate.offline.publish import publish_source
from hotplate.offline.rules import Rules
from hotplate.offline.train import similar
from hotplate.offline.train.als import ALSParams, Factors, SparkParams, confidences
from hotplate.offline.train.popularity import most_popular
from hotplate.offline.train.ranking import RecentWeights
from hotplate.serve.errors import FoldInFull
from hotplate.serve.lists import fold_in
from hotplate.serve.lists.baskets import FoldedIn, compute_list
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.fold_in import MAX_ITEMS, from_similar, summed_weights
from hotplate.serve.lists.item_factors import ItemFactors
from hotplate.serve.lists.options import RECENCY, Selection
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import LOOKUPS
from hotplate.stores.encoding import FACTORS, ITEM, OFFSET_BYTES, USER, decode, encode, encode_id
from hotplate.stores.factors import ItemEntry, lift_of, read_description, read_piece
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Reader
from tests.support.interactions import checkerboard_model, under_cap
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore
from tests.support.service import Service, running

ITEMS, FACTORS_EACH = 300, 32
TOLERANCE = 1e-5
few = settings(max_examples=15, deadline=None)


@lru_cache
def model(seed: int = 1, title: str = "Title") -> Model:
    """A model of random factors; its titles tell models apart."""
    draw = np.random.default_rng(seed)
    other = checkerboard_model()
    ids = [f"i{n:03}" for n in range(ITEMS)]
    user_items = csr_matrix(draw.integers(0, 2, (4, ITEMS)).astype(np.float32))
    matrix = replace(other.matrix, user_ids=list("abcd"), item_ids=ids, user_items=user_items)
    params = ALSParams(factors=FACTORS_EACH, regularization=3.0, alpha=4.0)
    user_factors, item_factors = (draw.normal(0, 0.3, (n, FACTORS_EACH)).astype(np.float32) for n in (4, ITEMS))
    return replace(
        other,
        ranker=Factors(user_factors, item_factors, params),
        similar=similar.fit(matrix.user_items, similar.SimilarParams()),
        matrix=matrix,
        params=params,
        titles={item: f"{title} {item}" for item in ids},
        popular=most_popular(matrix, 5),
        segments={},
    )


def loaded(of: Model, rules: Rules | None = None) -> ItemFactors:
    """Return the factors of a model as they are in memory after a publish."""
    settings = ListSettings(rules=rules or Rules(), fold_in=True)
    rows = dict(row for batch in ModelLists.of(of, settings).meta() for row in batch)
    description = read_description(rows.pop(FACTORS))
    pieces = [read_piece(rows[key], description.factors) for key in sorted(rows)]
    entries = [entry for piece_entries, _ in pieces for entry in piece_entries]
    matrix = np.frombuffer(b"".join(factors for _, factors in pieces), dtype="<f4").reshape(len(entries), -1)
    return ItemFactors(description, entries, matrix)


def row_of(basket: Mapping[int, float]) -> UserItems:
    row = np.zeros((1, ITEMS), dtype=np.float32)
    row[0, list(basket)] = list(basket.values())
    return csr_matrix(row)


def scores_of(items: list[Item]) -> dict[str, float]:
    return {item["id"]: item["score"] for item in items}


BASKETS = st.dictionaries(st.integers(0, ITEMS - 1), st.floats(0.125, 50, width=32), min_size=1, max_size=30)


@few
@given(BASKETS)
def test_scores_match_implicit(basket: dict[int, float]) -> None:
    theirs = of_implicit()
    expected = theirs.item_factors @ theirs.recalculate_user(0, row_of(basket))
    recommended = loaded_once().recommend(basket, ITEMS)
    assert len(recommended) == ITEMS - len(basket)
    for item, score in scores_of(recommended).items():
        assert score == pytest.approx(expected[int(item[1:])], abs=TOLERANCE)


@lru_cache
def of_implicit() -> AlternatingLeastSquares:
    """The same factors, in the hands of the library that learns them."""
    ranker = model().ranker
    assert isinstance(ranker, Factors)
    theirs = AlternatingLeastSquares(factors=FACTORS_EACH, regularization=3.0, alpha=4.0, num_threads=1)
    theirs.item_factors = ranker.item_factors
    return theirs


@lru_cache
def loaded_once(of: Callable[[], Model] = model) -> ItemFactors:
    return loaded(of())


@few
@given(BASKETS)
def test_scores_of_spark_factors_match_its_last_step(basket: dict[int, float]) -> None:
    ranker = of_spark().ranker
    assert isinstance(ranker, Factors)
    assert isinstance(ranker.params, SparkParams)
    items = ranker.item_factors.astype(np.float64)
    weights = row_of(basket).toarray()[0]
    confidence = np.where(weights, confidences(weights, ranker.params.alpha), 1)
    left = items.T @ (confidence[:, None] * items) + ranker.params.reg_param * len(basket) * np.eye(FACTORS_EACH)
    expected = items @ np.linalg.solve(left, items.T @ np.where(weights, confidence, 0))
    recommended = loaded_once(of_spark).recommend(basket, ITEMS)
    for item, score in scores_of(recommended).items():
        assert score == pytest.approx(expected[int(item[1:])], abs=TOLERANCE)


@lru_cache
def of_spark() -> Model:
    """The same factors, as if Spark had learnt them."""
    params = SparkParams(factors=FACTORS_EACH, reg_param=0.2)
    ranker = model().ranker
    assert isinstance(ranker, Factors)
    return replace(model(), ranker=replace(ranker, params=params), params=params)


NAMED = st.lists(st.tuples(st.integers(-5, ITEMS - 1), st.sampled_from([None, 0.5, 1.0, 3.0])), max_size=30)


@few
@given(NAMED, st.sampled_from([0.5, 0.9, 1.0]), st.randoms())
def test_weights_of_an_item_add_up_and_order_counts_only_with_recency(
    named: list[tuple[int, float | None]], recency: float, draw: random.Random
) -> None:
    factors = loaded_once()
    items = [(f"i{number:03}", weight) for number, weight in named]
    weights = Counter[str]()
    for place, (item, weight) in enumerate(items, 1):
        weights[item] += (2.0 if weight is None else weight) * recency ** (len(items) - place)  # type: ignore[assignment]  # floats
    assert summed_weights(items, 2.0, recency) == pytest.approx(dict(weights))
    shuffled = list(items)
    draw.shuffle(shuffled)
    baskets = [factors.known(summed_weights(ordered, 1.0, 1.0)) for ordered in (items, shuffled)]
    if baskets[0]:
        scored, again = (factors.recommend(basket, 10) for basket in baskets)
        assert scores_of(scored) == pytest.approx(scores_of(again), abs=2 * TOLERANCE)
        assert not {item["id"] for item in scored} & {item for item, _ in items}
        scores = [item["score"] for item in scored]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("seed", range(20))
def test_each_category_has_its_best_items_up_to_its_cap(seed: int) -> None:
    draw = random.Random(seed)  # Hypothesis takes longer to draw hundreds of sets than they take to be ranked
    categories = {
        f"i{number:03}": set(draw.sample("abcdefgh", draw.randint(1, 4)))
        for number in range(ITEMS)
        if draw.random() < seed / 20
    }
    n = draw.randint(1, 70)
    most = draw.randint(1, 5)
    rules = Rules(
        excluded=frozenset({"i001", "i002"}),
        categories=categories or {"i000": {"a"}},
        max_per_category=most,
    )
    plain = loaded_once()
    factors = loaded(model(), rules)
    excluded = frozenset(encode_id(f"i{number:03}") for number in draw.sample(range(ITEMS - 1), draw.randint(0, 200)))
    ranked = [item["id"] for item in plain.recommend({0: 1.0}, ITEMS, frozenset(), excluded)]
    expected = under_cap([item for item in ranked if item not in rules.excluded], rules.categories, most)
    half = frozenset(sorted(excluded)[::2])
    recommended = factors.recommend({0: 1.0}, n, half, excluded - half)
    assert [item["id"] for item in recommended] == expected[:n]


@pytest.mark.parametrize("gamma", [0.5, 16.0])
def test_scores_are_combined_with_recency_and_boosts_as_in_lists_of_users(gamma: float) -> None:
    ranker = model().ranker
    logs = gamma * np.log(np.linspace(0.001, 1, ITEMS))
    assert isinstance(ranker, Factors)
    recent = RecentWeights(logs.astype(np.float32), gamma)
    boosts = {"i005": 3.0, "i007": 0.5, "i009": 1e6}
    factors = loaded(replace(model(), ranker=replace(ranker, recent=recent)), Rules(boosts=boosts))
    scores = scores_of(factors.recommend({0: 1.0}, ITEMS))
    plain = scores_of(loaded_once().recommend({0: 1.0}, ITEMS))
    expected = {
        item: math.exp((math.log(score) + float(logs[int(item[1:])])) / (1 + gamma))
        for item, score in plain.items()
        if score > 0
    }
    best = max(expected.values())
    for item, score in expected.items():
        boost = boosts.get(item, 1.0)
        boosted = boost * score / best + lift_of(boost)
        assert scores[item] == pytest.approx(boosted, rel=1e-3)
    assert next(iter(scores)) == "i009"


def test_multipliers_of_earlier_releases_are_factors_of_scores() -> None:
    ranker = model().ranker
    assert isinstance(ranker, Factors)
    entries = [ItemEntry(f"i{n:03}", multiplier=0.5) for n in range(ITEMS)]
    halved = ItemFactors(loaded_once().description, entries, ranker.item_factors)
    plain = scores_of(loaded_once().recommend({0: 1.0}, ITEMS))
    expected = {item: score / 2 for item, score in plain.items()}
    assert scores_of(halved.recommend({0: 1.0}, ITEMS)) == pytest.approx(expected, rel=1e-4)


async def publish_model(store: LmdbStore | MemoryStore, of: Model, *, fold_in: bool = True) -> str:
    return (await publish_source(ModelLists.of(of, ListSettings(fold_in=fold_in)), store)).result.manifest.release


async def opened(*stores: Reader, deny_list: DenyListFile | None = None) -> TieredReader:
    """Return a reader that folds in, and has read each store."""
    names = {f"tier{place}": store for place, store in enumerate(stores)}
    reader = TieredReader(names, fold_in=True, deny_list=deny_list)
    for tier in reader.tiers:
        await tier.follower.refresh()
    return reader


def ids(folded: FoldedIn) -> list[str]:
    return [item["id"] for item in decode(folded.encoded.body[OFFSET_BYTES:])]


async def test_known_basket_gets_a_list_and_unknown_basket_the_popular_one(memory: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "denied").write_text("item:i007\n")
    release = await publish_model(memory, model())
    reader = await opened(memory, deny_list=DenyListFile(tmp_path / "denied"))
    everything = [item["id"] for item in loaded_once().recommend({3: RECENCY**3, 4: 2 * RECENCY}, ITEMS)]
    answer = await compute_list(
        reader, [("i003", 1.0), ("who", None), ("i004", 2.0), ("who", 1.0)], Selection(5, exclude=("i008",))
    )
    assert (answer.encoded.source, answer.encoded.release.id, answer.known, answer.unknown) == (
        "fold-in",
        release,
        2,
        1,
    )
    assert ids(answer) == [item for item in everything if item not in {"i007", "i008"}][:5]
    assert decode(answer.encoded.body[OFFSET_BYTES:])[0].get("title") == f"Title {ids(answer)[0]}"
    for strangers in ([], [("who", None)]):
        answer = await compute_list(reader, strangers, Selection(5))
        assert (answer.encoded.source, answer.known, answer.unknown) == ("popular", 0, len(strangers))
    assert reader.metrics.total(LOOKUPS["fold-in", "hit"]) == [1]
    assert reader.metrics.total(LOOKUPS["popular", "miss"]) == [1]


async def test_answers_keep_the_cap_on_each_category_of_an_item(memory: MemoryStore) -> None:
    names = [{"red"}, {"red", "blue"}, {"blue"}, {"green", "blue", "red"}, set[str](), {"green"}]
    categories = {item: names[number % len(names)] for number, item in enumerate(model().matrix.item_ids)}
    capped = ListSettings(length=ITEMS, rules=Rules(categories=categories, max_per_category=2), fold_in=True)
    await publish_source(ModelLists.of(model(), capped), memory)
    reader = await opened(memory)

    plain = ModelLists.of(model(), ListSettings(length=ITEMS))
    ranked = {
        key: [item["id"] for item in decode(body[OFFSET_BYTES:])] for batch in plain.batches() for key, body in batch
    }
    answers = {"user:a": await reader.read(USER, "a"), "item:i003": await reader.read(ITEM, "i003")}
    for key, answer in answers.items():
        listed = [item["id"] for item in decode(answer.body[OFFSET_BYTES:])]
        assert listed == under_cap(ranked[key], categories, 2)[: len(listed)]
        assert len(listed) > 4
    popular = [item["id"] for item in decode((await reader.read(USER, "new")).body[OFFSET_BYTES:])]
    assert popular == under_cap(popular, categories, 2) != []

    everything = [item["id"] for item in loaded_once().recommend({3: 1.0}, ITEMS)]
    folded = await compute_list(reader, [("i003", 1.0)], Selection(ITEMS))
    assert folded.encoded.source == "fold-in"
    assert ids(folded) == under_cap(everything, categories, 2)


def test_only_factors_of_items_with_several_categories_need_a_newer_service() -> None:
    for categories, written in (({"i001": "x", "i002": "y"}, 1), ({"i001": {"x", "y"}}, 2)):
        rules = Rules(categories=categories, max_per_category=1)
        rows = dict(
            row for batch in ModelLists.of(model(), ListSettings(rules=rules, fold_in=True)).meta() for row in batch
        )
        assert read_description(rows[FACTORS]).format == written
        entries, _ = read_piece(rows[f"{FACTORS}/000000"], FACTORS_EACH)
        assert [entry.categories for entry in entries[1:3]] == ([(0,), (1,)] if written == 1 else [(0, 1), ()])


async def test_without_factors_similar_lists_are_summed(memory: MemoryStore) -> None:
    await publish_model(memory, model(), fold_in=False)
    basket = [("i003", None), ("who", 2.0), ("i007", 3.0), ("i003", None)]
    reader = await opened(memory)
    expected = dict[str, float]()
    for item, weight in (("i003", 1 + RECENCY**3), ("i007", 3 * RECENCY)):
        for other in decode((await reader.read(ITEM, item)).body[OFFSET_BYTES:]):
            expected[other["id"]] = expected.get(other["id"], 0.0) + weight * other["score"]
    best = sorted(expected.keys() - {"i003", "i007"}, key=lambda item: (-expected[item], item))
    for tiered in (reader, await opened(RemoteStore(memory))):
        answer = await compute_list(tiered, basket, Selection(5, exclude=(best[1],)))
        assert (answer.encoded.source, answer.known, answer.unknown) == ("fold-in", 2, 1)
        assert ids(answer) == [best[0], *best[2:6]]


async def test_large_basket_yields_the_loop_and_uses_all_lists_equally() -> None:
    lists = {f"i{n}": encode([Item(id=f"{n}-{rank}", score=1 / (rank + 1)) for rank in range(500)]) for n in range(200)}
    turns = list[int]()

    async def other_work() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(other_work())
    summed = await from_similar(lists, dict.fromkeys(lists, 1.0), 100_000)
    task.cancel()
    assert len(turns) >= 4
    assert {item["id"] for item in summed} == {f"{n}-{rank}" for n in range(200) for rank in range(25)}


async def test_basket_of_more_lists_than_items_are_read_has_the_best_of_the_first() -> None:
    lists = {f"i{n}": encode([Item(id=f"{n}-{rank}", score=1.0) for rank in range(2)]) for n in range(MAX_ITEMS + 2)}
    summed = await from_similar(lists, dict.fromkeys(lists, 1.0), 100_000)
    assert {item["id"] for item in summed} == {f"{n}-0" for n in range(MAX_ITEMS)}


async def test_a_list_that_cannot_be_read_is_an_error(memory: MemoryStore) -> None:
    await publish_model(memory, model(), fold_in=False)
    for release in memory.releases.values():
        row = release.rows[ITEM + "i003"]
        release.rows[ITEM + "i003"] = row[:-1] + bytes([row[-1] ^ 1])
    reader = await opened(memory)
    answer = await compute_list(reader, [("i003", None), ("who", None)], Selection(5))
    assert (answer.encoded.source, answer.encoded.status, answer.known, answer.unknown) == ("popular", "error", 0, 2)
    assert ids(await compute_list(reader, [("i003", None), ("i007", None)], Selection(5)))


async def test_damaged_piece_disables_only_the_factors(memory: MemoryStore) -> None:
    await publish_model(memory, model())
    key = f"{FACTORS}/000000"
    for release in memory.releases.values():
        release.rows[key] = release.rows[key][:-1] + bytes([release.rows[key][-1] ^ 1])
    reader = await opened(memory)
    assert (await reader.read(USER, "a")).source == "personal"
    assert (await compute_list(reader, [("i003", None)], Selection(5))).encoded.source == "fold-in", (
        "from similar items"
    )


async def test_factors_of_the_live_release_are_in_memory_once(memory: MemoryStore) -> None:
    await publish_model(memory, model())
    reader = await opened(memory, RemoteStore(memory))
    first, second = (tier.follower.live for tier in reader.tiers)
    assert first is not None
    assert second is not None
    assert first.factors is second.factors is not None
    former = weakref.ref(first.factors)
    del first, second
    await publish_model(memory, model(2))
    for tier in reader.tiers:
        await tier.follower.refresh()
    gc.collect()
    assert former() is None


async def test_fold_in_beyond_the_thread_capacity_is_refused(
    memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold_in, "MAX_WAITING", 3)
    await publish_model(memory, model())
    reader = await opened(memory)
    outcomes = await asyncio.gather(
        *(compute_list(reader, [("i003", None)], Selection(5)) for _ in range(8)), return_exceptions=True
    )
    assert Counter(map(type, outcomes)) == {FoldedIn: 3, FoldInFull: 5}
    assert isinstance(await compute_list(reader, [("i003", None)], Selection(5)), FoldedIn)


PATH = "/v1/recommendations/fold-in"


def post(service: Service, body: object) -> tuple[int, bytes]:
    """Post a basket; return the status and the body."""
    answer = service.post(PATH, body)
    assert answer.headers.get("cache-control") == ("no-store" if answer.status == 200 else None)
    return answer.status, answer.body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a model that has factors, and its release."""
    folder = tmp_path_factory.mktemp("fold-in") / "store"

    async def publish() -> str:
        store = LmdbStore(folder)
        release = await publish_model(store, model())
        await store.close()
        return release

    return folder, asyncio.run(publish())


@pytest.fixture(scope="module")
def service(folder: tuple[Path, str]) -> Iterator[Service]:
    with running(folder[0], "--fold-in") as service:
        yield service


def test_service_folds_a_basket_in_and_counts_the_answer(service: Service, folder: tuple[Path, str]) -> None:
    status, body = post(service, {"items": ["i003", {"id": "i004", "weight": 2}, {"id": "who"}], "n": 2.0})
    fields = json.loads(body)
    expected = [item["id"] for item in loaded_once().recommend({3: RECENCY**2, 4: 2 * RECENCY}, 2)]
    assert status == 200
    assert [item["id"] for item in fields.pop("items")] == expected
    assert fields == {"known": 2, "unknown": 1, "release": folder[1], "source": "fold-in", "tier": "file"}
    items = json.loads(post(service, {"items": ["i003"], "n": 2, "fields": "id"})[1])["items"]
    assert [[*item] for item in items] == [["id"]] * 2
    samples = [line for line in service.admin("/metrics").body.decode().splitlines() if "fold-in" in line]
    assert any('code="200"' in line and 'method="POST"' in line for line in samples)
    assert 'hotplate_lookups_total{outcome="hit",source="fold-in"} 2.0' in samples
    assert service.get(PATH).json["user"] == "fold-in", "GET reads the list of a user"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "items"),
        ({"items": [{"id": "i003", "weight": 0}]}, "items[0].weight cannot be used: expected `float` > 0.0"),
        ({"items": ["i003"] * 201}, "of length <= 200"),
        ({"items": ["i003"], "recency": 0}, "recency cannot be used: expected `float` > 0.0"),
        ({"items": ["i003"], "users": ["1"]}, "unknown field `users`; POST /v1/recommendations/fold-in takes"),
    ],
)
def test_basket_that_cannot_be_used_is_refused(service: Service, body: object, sentence: str) -> None:
    status, answer = post(service, body)
    assert (status, sentence in json.loads(answer)["detail"]) == (400, True), answer


def test_service_without_factors_folds_in_by_similar_items(folder: tuple[Path, str]) -> None:
    with running(folder[0]) as service:
        answer = service.post(PATH, b'{"items": ["i003"], "n": 2}')
        assert (answer.status, answer.json["source"], len(answer.json["items"])) == (200, "fold-in", 2)
